import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.core.codec import DEFAULT_VARIANCES, SMALLEST_SIDE, decode, encode, stage_anchors
from multibox.core.structures import Stage
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
