import pytest
import torch
from jaxtyping import TypeCheckError

from multibox.core.structures import Target
from multibox.errors import ContractError

BOX = [[0.1, 0.2, 0.5, 0.9]]


def target(boxes, labels, **more):
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), **more)


def test_nothing_is_ignored_by_default():
    assert target(BOX * 3, [0, 4, 2]).ignore.tolist() == [False, False, False]


def test_a_picture_may_be_empty():
    empty = target([], [])
    assert empty.truth_unit_xyxy.shape == (0, 4)
    assert empty.ignore.shape == (0,)
    assert empty.ignore.dtype == torch.bool


def test_to_keeps_everything_and_leaves_the_original():
    ignored = target(BOX * 2, [1, 0], ignore=torch.tensor([False, True]))
    moved = ignored.to("meta")
    assert {t.device.type for t in (moved.truth_unit_xyxy, moved.labels, moved.ignore)} == {"meta"}
    assert ignored.labels.device.type == "cpu"
    again = ignored.to("cpu")
    assert again.ignore.tolist() == [False, True]
    assert again.truth_unit_xyxy.equal(ignored.truth_unit_xyxy)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0.1, 0.2, float("nan"), 0.9], "truth box 1 .*not finite"),
        ([0.1, 0.2, float("inf"), 0.9], "truth box 1 .*not finite"),
        ([0.5, 0.2, 0.5, 0.9], "truth box 1 .*no area"),
        ([0.5, 0.9, 0.8, 0.2], "truth box 1 .*no area"),
        ([10.0, 20.0, 50.0, 90.0], "truth box 1 .*divide pixels"),
    ],
)
def test_a_bad_box_is_named(box, message):
    with pytest.raises(ContractError, match=message):
        target([*BOX, box], [0, 0])


def test_a_box_may_reach_a_little_outside():
    assert target([[-0.2, 0.0, 1.3, 1.0]], [0]).labels.tolist() == [0]


def test_labels_start_at_zero():
    with pytest.raises(ContractError, match="label -1 of truth box 1"):
        target(BOX * 2, [0, -1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"truth_unit_xyxy": torch.zeros(2, 4)}, r"truth_unit_xyxy: expected .*\[1, 4\].*\[2, 4\]"),
        ({"truth_unit_xyxy": torch.tensor(BOX).double()}, "expected torch.float32.*got torch.float64"),
        ({"labels": torch.tensor([0], dtype=torch.int32)}, "labels: expected torch.int64.*got torch.int32"),
        ({"ignore": torch.tensor([0])}, "ignore: expected torch.bool"),
        ({"ignore": torch.tensor([True, False])}, r"ignore: .*\[1\].*\[2\]"),
    ],
)
def test_a_wrong_layout_is_refused(values, message):
    good = {"truth_unit_xyxy": torch.tensor(BOX), "labels": torch.tensor([0])}
    # Where annotations are checked too, they may speak first.
    with pytest.raises((ContractError, TypeCheckError), match=f"{message}|Type-check error"):
        Target(**(good | values))
