import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.core.codec import DEFAULT_VARIANCES, SMALLEST_SIDE, decode, encode, fold, stage_anchors
from multibox.core.structures import Stage
from multibox.errors import ContractError
from multibox.spec.postprocess import decode_np

centres = st.floats(-1, 2, width=32)
sides = st.floats(0.0625, 2, width=32)
boxes = st.lists(st.tuples(centres, centres, sides, sides), min_size=1, max_size=8).map(torch.tensor)


def encode_loop(box, anchor, variances):
    return [
        (box[0] - anchor[0]) / anchor[2] / variances[0],
        (box[1] - anchor[1]) / anchor[3] / variances[1],
        math.log(box[2] / anchor[2]) / variances[2],
        math.log(box[3] / anchor[3]) / variances[3],
    ]


@given(boxes, boxes, st.sampled_from([DEFAULT_VARIANCES, (1.0, 1.0, 1.0, 1.0), (0.1, 0.2, 0.3, 0.4)]))
def test_decode_undoes_encode(unit_cxcywh, anchors_cxcywh, variances):
    count = min(len(unit_cxcywh), len(anchors_cxcywh))
    unit_cxcywh, anchors_cxcywh = unit_cxcywh[:count], anchors_cxcywh[:count]
    offsets = encode(unit_cxcywh, anchors_cxcywh, variances)
    torch.testing.assert_close(decode(offsets, anchors_cxcywh, variances), unit_cxcywh, atol=1e-5, rtol=1e-5)
    expected = [
        encode_loop(b, a, variances) for b, a in zip(unit_cxcywh.tolist(), anchors_cxcywh.tolist(), strict=True)
    ]
    torch.testing.assert_close(offsets, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_no_offset_means_the_anchor_itself():
    anchors_cxcywh = torch.tensor([[0.3, 0.4, 0.1, 0.2]])
    assert decode(torch.zeros(1, 4), anchors_cxcywh).equal(anchors_cxcywh)
    assert encode(anchors_cxcywh, anchors_cxcywh).equal(torch.zeros(1, 4))


@given(
    st.lists(st.floats(0, 1e3, width=32), min_size=4, max_size=4),
    st.lists(st.floats(0, 1e3, width=32), min_size=4, max_size=4),
)
def test_encode_is_always_finite(box, anchor):
    assert encode(torch.tensor([box]), torch.tensor([anchor])).isfinite().all()


def test_encode_of_negative_sides_is_that_of_the_smallest():
    anchor = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    offsets = encode(torch.tensor([[0.5, 0.5, -0.2, 0.0]]), anchor)
    smallest = math.log(SMALLEST_SIDE / 0.1) / 0.2
    torch.testing.assert_close(offsets, torch.tensor([[0.0, 0.0, smallest, smallest]]))


def test_decode_limits_growth():
    anchors_cxcywh = torch.tensor([[0.5, 0.5, 0.1, 0.2]])
    unit_cxcywh = decode(torch.tensor([[0.0, 0.0, 1e6, -1e6]]), anchors_cxcywh)
    torch.testing.assert_close(unit_cxcywh, torch.tensor([[0.5, 0.5, 6.25, 0.0]]))


def test_half_precision_gives_float32():
    offsets, anchors_cxcywh = torch.randn(5, 4).half(), torch.rand(5, 4) + 0.1
    unit_cxcywh = decode(offsets, anchors_cxcywh)
    assert unit_cxcywh.dtype == torch.float32
    torch.testing.assert_close(unit_cxcywh, decode(offsets.float(), anchors_cxcywh))
    assert encode(unit_cxcywh.half(), anchors_cxcywh.half()).dtype == torch.float32


def test_numpy_decodes_alike():
    offsets, anchors_cxcywh = torch.randn(50, 4) * 10, torch.rand(50, 4)
    expected = decode(offsets, anchors_cxcywh, DEFAULT_VARIANCES).numpy()
    result = decode_np(offsets.numpy(), anchors_cxcywh.numpy(), DEFAULT_VARIANCES)
    assert result.dtype == expected.dtype
    assert result == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_cascade_starts_each_stage_from_the_boxes_before():
    anchors_cxcywh = torch.rand(7, 4) + 0.1
    raw = tuple(Stage(torch.randn(2, 7, 4, requires_grad=True), torch.zeros(2, 7, 3)) for _ in range(3))
    first, second, third = stage_anchors(raw, anchors_cxcywh)
    assert first is anchors_cxcywh
    assert second.equal(decode(raw[0].offsets, anchors_cxcywh))
    assert third.equal(decode(raw[1].offsets, second))
    assert not third.requires_grad


def plain_decode(offsets: list[float], anchor: list[float]) -> list[float]:
    (dx, dy, dw, dh), (cx, cy, w, h) = offsets, anchor
    return [cx + 0.1 * dx * w, cy + 0.1 * dy * h, w * math.exp(0.2 * dw), h * math.exp(0.2 * dh)]


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("gate", [None, 0.3])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_folded_stage_says_what_plain_loops_over_the_stages_say(stages, gate, activation):
    """Boxes stage by stage in Python's own floats; what a gate rejects has no class."""
    anchors_cxcywh = torch.rand(7, 4) * 0.5 + 0.2
    narrow = 2 if activation == "softmax" else 1
    raw = [Stage(torch.randn(2, 7, 4), torch.randn(2, 7, narrow) * 2) for _ in range(stages - 1)]
    raw = (*raw, Stage(torch.randn(2, 7, 4), torch.randn(2, 7, 3)))
    gates = (gate,) + (None,) * (stages - 2)
    offsets, logits = fold(raw, anchors_cxcywh, gates=gates, activation=activation)
    for picture in range(2):
        for place in range(7):
            box = anchors_cxcywh[place].tolist()
            for stage in raw:
                box = plain_decode(stage.offsets[picture, place].tolist(), box)
            folded = plain_decode(offsets[picture, place].tolist(), anchors_cxcywh[place].tolist())
            assert folded == pytest.approx(box, rel=1e-5, abs=1e-6)
            first = raw[0].logits[picture, place].tolist()
            object_score = 1 / (1 + math.exp(-first[0] if narrow == 1 else first[0] - first[1]))
            if gate is not None and object_score < gate:
                row = logits[picture, place]
                scores = row.softmax(0)[1:] if activation == "softmax" else row.sigmoid()
                assert scores.max() < 1e-30
            else:
                assert logits[picture, place].equal(raw[-1].logits[picture, place])


def test_mean_scores_are_those_of_the_stages_that_tell_the_classes():
    raw = tuple(Stage(torch.randn(2, 7, 4), torch.randn(2, 7, width)) for width in (2, 3, 3))
    anchors_cxcywh = torch.rand(7, 4) * 0.5 + 0.2
    offsets, logits = fold(raw, anchors_cxcywh, gates=(0.5, None), mean_scores=True)
    assert offsets.equal(fold(raw, anchors_cxcywh).offsets)
    gated = 0
    for picture in range(2):
        for place in range(7):
            objects = raw[0].logits[picture, place].softmax(0)[1].item()
            expected = [
                (a + b) / 2 for a, b in zip(*(raw[n].logits[picture, place].tolist() for n in (1, 2)), strict=True)
            ]
            if objects < 0.5:
                gated += 1
                assert logits[picture, place].softmax(0)[1:].max() < 1e-30
            else:
                assert logits[picture, place].tolist() == pytest.approx(expected, abs=1e-6)
    assert 0 < gated < 14


def test_a_single_stage_is_its_own_fold():
    raw = (Stage(torch.randn(1, 7, 4), torch.randn(1, 7, 3)),)
    assert fold(raw, torch.rand(7, 4)) is raw[0]


def test_a_gate_of_several_classes_and_no_stage_are_refused():
    stage = Stage(torch.zeros(1, 7, 4), torch.zeros(1, 7, 3))
    with pytest.raises(ContractError, match="a gate needs the scores of one class"):
        fold((stage, stage), torch.rand(7, 4), gates=(0.5,))
    with pytest.raises(ContractError, match="at least one stage"):
        fold((), torch.rand(7, 4))
