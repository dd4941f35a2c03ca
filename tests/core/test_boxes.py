import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.core.boxes import (
    area_xyxy,
    clip_xyxy,
    complete_iou,
    cxcywh_to_xyxy,
    generalised_iou,
    ioa_matrix,
    iou_matrix,
    xyxy_to_cxcywh,
)

coordinates = st.floats(-2, 2, width=32).map(lambda v: 0.0 if abs(v) < 1e-12 else v)
any_box = st.tuples(coordinates, coordinates, coordinates, coordinates)
proper_box = any_box.map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])))
some_boxes = st.lists(proper_box, min_size=0, max_size=6).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
)


def overlap_of(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height


def area_of(box):
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou_of(a, b):
    union = area_of(a) + area_of(b) - overlap_of(a, b)
    return overlap_of(a, b) / union if union > 0 else 0.0


@pytest.mark.slow
@given(some_boxes, some_boxes)
def test_iou_is_that_of_two_loops(a_xyxy, b_xyxy):
    iou = iou_matrix(a_xyxy.double(), b_xyxy.double())
    expected = [[iou_of(a, b) for b in b_xyxy.tolist()] for a in a_xyxy.tolist()]
    torch.testing.assert_close(iou, torch.tensor(expected, dtype=torch.float64).reshape(iou.shape))


@pytest.mark.slow
@given(some_boxes, some_boxes)
def test_iou_is_symmetric_and_between_0_and_1(a_xyxy, b_xyxy):
    iou = iou_matrix(a_xyxy, b_xyxy)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert iou.equal(iou_matrix(b_xyxy, a_xyxy).T)


@pytest.mark.parametrize("side", [1e-18, 1e-7, 1e-3, 1.0, 1e6])
def test_equal_boxes_overlap_by_exactly_one(side):
    boxes_xyxy = torch.tensor([[0.0, 0.0, side, side], [0.0, 0.0, side, side * 3]])
    assert iou_matrix(boxes_xyxy, boxes_xyxy).diagonal().tolist() == [1.0, 1.0]


@given(proper_box)
def test_a_box_overlaps_itself_by_one_or_has_no_area(box):
    box_xyxy = torch.tensor([box])
    assert iou_matrix(box_xyxy, box_xyxy).item() == (1.0 if area_xyxy(box_xyxy) > 0 else 0.0)


def test_a_box_without_area_overlaps_nothing():
    boxes_xyxy = torch.tensor([[0.5, 0.5, 0.5, 0.9], [0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1], [0.0, 0.0, 1.0, 1.0]])
    iou = iou_matrix(boxes_xyxy, boxes_xyxy)
    assert iou[:3].eq(0).all()
    assert iou[3].tolist() == [0, 0, 0, 1]
    assert area_xyxy(boxes_xyxy).tolist() == [0, 0, 0, 1]


def test_half_precision_is_computed_in_float32():
    box_xyxy = torch.tensor([[0.0, 0.0, 1e-4, 1e-4]], dtype=torch.float16)
    iou = iou_matrix(box_xyxy, box_xyxy)
    assert iou.dtype == torch.float32
    assert iou.item() == 1.0


def test_leading_axes_broadcast():
    a_xyxy, b_xyxy = torch.rand(3, 1, 2, 4).sort().values, torch.rand(5, 7, 4).sort().values
    iou = iou_matrix(a_xyxy, b_xyxy)
    assert iou.shape == (3, 5, 2, 7)
    torch.testing.assert_close(iou[2, 4], iou_matrix(a_xyxy[2, 0], b_xyxy[4]))


@pytest.mark.slow
@given(some_boxes, some_boxes)
def test_ioa_is_the_share_of_the_second_box(a_xyxy, b_xyxy):
    share = ioa_matrix(a_xyxy.double(), b_xyxy.double())
    expected = [
        [overlap_of(a, b) / area_of(b) if area_of(b) > 0 else 0.0 for b in b_xyxy.tolist()] for a in a_xyxy.tolist()
    ]
    torch.testing.assert_close(share, torch.tensor(expected, dtype=torch.float64).reshape(share.shape))
    assert (ioa_matrix(a_xyxy, b_xyxy) >= iou_matrix(a_xyxy, b_xyxy) - 1e-6).all()


def test_corners_and_centres():
    boxes_xyxy = torch.tensor([[[0.1, 0.2, 0.5, 0.9]]])
    torch.testing.assert_close(xyxy_to_cxcywh(boxes_xyxy), torch.tensor([[[0.3, 0.55, 0.4, 0.7]]]))
    torch.testing.assert_close(cxcywh_to_xyxy(torch.tensor([0.3, 0.55, 0.4, 0.7])), boxes_xyxy[0, 0])


@given(some_boxes)
def test_corners_come_back(boxes_xyxy):
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes_xyxy)), boxes_xyxy, atol=1e-6, rtol=0)


def test_clip_leaves_its_argument_alone():
    boxes_xyxy = torch.tensor([[-5.0, -1.0, 30.0, 2.0], [3.0, 1.0, 4.0, 2.0]])
    before = boxes_xyxy.clone()
    assert clip_xyxy(boxes_xyxy, (20.0, 1.5)).tolist() == [[0, 0, 20, 1.5], [3, 1, 4, 1.5]]
    assert clip_xyxy(boxes_xyxy).tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert boxes_xyxy.equal(before)


sides = st.floats(1 / 64, 2, width=32)
visible_box = st.tuples(coordinates, coordinates, sides, sides).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
pairs = st.lists(st.tuples(visible_box, visible_box), min_size=1, max_size=5)


def hull_of(a, b):
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


def generalised_of(a, b):
    union = area_of(a) + area_of(b) - overlap_of(a, b)
    return iou_of(a, b) - (area_of(hull_of(a, b)) - union) / area_of(hull_of(a, b))


def complete_of(a, b):
    """Zheng et al., 2020, equations 7 to 11."""
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b)]
    hull = hull_of(a, b)
    distance = math.dist(*centres) ** 2 / math.dist(hull[:2], hull[2:]) ** 2
    shapes = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    aspect = 4 / math.pi**2 * (shapes[0] - shapes[1]) ** 2
    weight = aspect / (1 - iou_of(a, b) + aspect) if aspect else 0.0
    return iou_of(a, b) - distance - weight * aspect


@pytest.mark.parametrize(("measure", "of_two"), [(generalised_iou, generalised_of), (complete_iou, complete_of)])
@given(drawn=pairs)
def test_overlaps_of_pairs_are_those_of_the_papers(measure, of_two, drawn):
    a_xyxy, b_xyxy = (torch.tensor(boxes, dtype=torch.float64) for boxes in zip(*drawn, strict=True))
    found = measure(xyxy_to_cxcywh(a_xyxy), xyxy_to_cxcywh(b_xyxy))
    expected = [of_two(a, b) for a, b in zip(a_xyxy.tolist(), b_xyxy.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("measure", [generalised_iou, complete_iou])
@given(drawn=pairs)
def test_overlaps_of_pairs_are_between_their_limits(measure, drawn):
    a, b = (xyxy_to_cxcywh(torch.tensor(boxes)) for boxes in zip(*drawn, strict=True))
    torch.testing.assert_close(measure(a, a), torch.ones(len(a)))
    assert ((measure(a, b) >= (-1 if measure is generalised_iou else -2) - 1e-5) & (measure(a, b) <= 1 + 1e-5)).all()
    torch.testing.assert_close(measure(a, b), measure(b, a))


@pytest.mark.parametrize("measure", [generalised_iou, complete_iou])
def test_boxes_that_are_apart_are_drawn_together(measure):
    found = torch.tensor([[0.2, 0.2, 0.1, 0.1]], requires_grad=True)
    truth = torch.tensor([[0.8, 0.7, 0.1, 0.2]])
    near = measure(found + torch.tensor([[0.1, 0.1, 0.0, 0.0]]), truth)
    assert near > measure(found, truth)
    measure(found, truth).sum().backward()
    assert (found.grad[0, :2] > 0).all()


@pytest.mark.parametrize("measure", [generalised_iou, complete_iou])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-6, 1e4, 1e8])
def test_overlaps_of_hostile_pairs_are_finite(measure, size):
    found = (size * torch.tensor([[0.5, 0.5, 1.0, 1.0], [-3.0, 2.0, 0.0, 1.0], [0.5, 0.5, 1.0, 0.0]])).requires_grad_()
    truth = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 1e-6, 1e-6], [0.5, 0.5, 1.0, 1e-6]])
    measure(found, truth).sum().backward()
    assert measure(found, truth).isfinite().all()
    assert found.grad.isfinite().all()
