from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from multibox.core.boxes import cxcywh_to_xyxy
from multibox.core.codec import DEFAULT_VARIANCES, decode
from multibox.core.postprocess import postprocess
from multibox.core.structures import Stage
from multibox.errors import ContractError
from multibox.spec.postprocess import PostprocessSpec, postprocess_np

SOFTMAX = PostprocessSpec("softmax", score_threshold=0.05, top_k=20, max_detections=30)
SIGMOID = PostprocessSpec("sigmoid", score_threshold=0.3, top_k=20, max_detections=30)


def anchors(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.rand(count, 2, generator=generator), torch.rand(count, 2, generator=generator) * 0.5 + 0.05], 1
    )


def random_stage(batch, count, scores, seed=0, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(batch, count, 4, generator=generator)
    return Stage(offsets, torch.randn(batch, count, scores, generator=generator) * spread)


def run(stage, anchors_cxcywh, spec, **more):
    return postprocess(stage, anchors_cxcywh, variances=DEFAULT_VARIANCES, spec=spec, **more)


def assert_numpy_agrees(stage, anchors_cxcywh, spec, classes=None):
    found = run(stage, anchors_cxcywh, spec, classes=classes)
    for b, picture in enumerate(found):
        arrays = (stage.offsets[b].numpy(), stage.logits[b].numpy(), anchors_cxcywh.numpy())
        unit_xyxy, scores, labels = postprocess_np(*arrays, variances=DEFAULT_VARIANCES, spec=spec, classes=classes)
        assert picture.labels.tolist() == labels.tolist()
        np.testing.assert_allclose(picture.scores.numpy(), scores, rtol=1e-5)
        np.testing.assert_allclose(picture.unit_xyxy.numpy(), unit_xyxy, atol=1e-5)
        assert (unit_xyxy.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [None, (4, 1), (), (2,)])
@pytest.mark.parametrize(
    "spec",
    [
        SOFTMAX,
        SIGMOID,
        replace(SOFTMAX, class_agnostic=True),
        replace(SIGMOID, clip="after_nms", top_k=None),
        replace(SIGMOID, score_threshold=0.0, max_detections=1),
        replace(SOFTMAX, score_threshold=0.99),
    ],
)
def test_tensors_and_arrays_agree(spec, classes, seed):
    stage = random_stage(2, 90, 6 + (spec.activation == "softmax"), seed)
    found = assert_numpy_agrees(stage, anchors(90, seed), spec, classes)
    if classes is not None:
        assert {int(c) for picture in found for c in picture.labels} <= set(classes)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_tensors_and_arrays_agree_over_many_prefixes(activation, agnostic):
    # All boxes alike: hardly anything survives, so the list of candidates must be searched to its end.
    anchors_cxcywh = (
        torch.tensor([0.5, 0.5, 0.3, 0.3]) + torch.rand(2000, 4, generator=torch.Generator().manual_seed(3)) * 0.05
    )
    stage = random_stage(1, 2000, 5)
    stage = Stage(stage.offsets * 0.01, stage.logits)
    spec = PostprocessSpec(activation, score_threshold=0.01, top_k=None, class_agnostic=agnostic)
    (picture,) = assert_numpy_agrees(stage, anchors_cxcywh, spec)
    assert 0 < len(picture.scores) < 30


@pytest.mark.parametrize("spec", [SOFTMAX, SIGMOID])
def test_equal_scores_rank_by_anchor_then_class(spec):
    count = 1500  # more candidates of one score than the first prefix holds
    anchors_cxcywh = torch.tensor([[0.5, 0.5, 1e-3, 1e-3]]).repeat(count, 1)
    anchors_cxcywh[:, 0] = torch.linspace(0.1, 0.9, count)
    stage = Stage(torch.zeros(1, count, 4), torch.zeros(1, count, 3))
    spec = replace(spec, nms_iou=1.0, top_k=None, max_detections=1300)
    (picture,) = assert_numpy_agrees(stage, anchors_cxcywh, spec)
    classes = 3 - (spec.activation == "softmax")
    assert picture.labels.tolist() == [i % classes for i in range(1300)]
    torch.testing.assert_close(picture.unit_xyxy[:, 0], (anchors_cxcywh[:, 0] - 5e-4).repeat_interleave(classes)[:1300])


@pytest.mark.parametrize("spec", [SOFTMAX, SIGMOID])
def test_suppression_is_that_of_torchvision(spec):
    spec = replace(spec, top_k=None, max_detections=10_000, clip="after_nms")
    softmax = spec.activation == "softmax"
    anchors_cxcywh, stage = anchors(300), random_stage(1, 300, 6 + softmax)
    (picture,) = run(stage, anchors_cxcywh, spec)
    scores = stage.logits[0].softmax(-1)[:, 1:] if softmax else stage.logits[0].sigmoid()
    anchor, label = (scores > spec.score_threshold).nonzero(as_tuple=True)
    unit_xyxy = cxcywh_to_xyxy(decode(stage.offsets[0], anchors_cxcywh))[anchor]
    kept = batched_nms(unit_xyxy.double(), scores[anchor, label].double(), label, spec.nms_iou)
    assert len(kept) > 100
    assert picture.labels.equal(label[kept])
    assert picture.scores.equal(scores[anchor, label][kept])
    assert picture.unit_xyxy.equal(unit_xyxy[kept].clamp(0, 1))


def test_nothing_found_is_an_empty_result():
    stage = Stage(torch.zeros(2, 9, 4), torch.full((2, 9, 3), -20.0))
    for picture in run(stage, anchors(9), SIGMOID):
        assert picture.unit_xyxy.shape == (0, 4)
        assert picture.scores.shape == picture.labels.shape == (0,)
        assert picture.labels.dtype == torch.int64


def test_half_precision_gives_float32():
    stage = Stage(*(t.half() for t in random_stage(1, 90, 6)))
    (half,) = run(stage, anchors(90), SIGMOID)
    (full,) = run(Stage(*(t.float() for t in stage)), anchors(90), SIGMOID)
    assert half.scores.dtype == half.unit_xyxy.dtype == torch.float32
    assert all(h.equal(f) for h, f in zip(half, full, strict=True))


def test_results_carry_no_gradient_and_arguments_are_left_alone():
    stage = Stage(*(t.requires_grad_() for t in random_stage(1, 90, 6)))
    before = [t.detach().clone() for t in stage]
    (picture,) = run(stage, anchors(90), SOFTMAX)
    assert not picture.scores.requires_grad
    assert all(t.equal(b) for t, b in zip(stage, before, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("spec", [SOFTMAX, SIGMOID])
def test_values_that_are_not_finite_are_counted(value, spec):
    stage = random_stage(3, 9, 5)
    stage.logits[1, 2, :2] = value
    with pytest.raises(ContractError, match=r"2 of 135 logits are not finite \(2 in picture 1\)"):
        run(stage, anchors(9), spec)
    stage = random_stage(3, 9, 5)
    stage.offsets[2, 0, 0] = value
    with pytest.raises(ContractError, match=r"1 of 108 offsets are not finite \(1 in picture 2\)"):
        run(stage, anchors(9), spec)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (random_stage(1, 8, 5), r"offsets: expected \[1, 9, 4\], got \[1, 8, 4\]"),
        (random_stage(1, 9, 1), r"logits: expected \[1, 9, at least 2\], got \[1, 9, 1\]"),
        (Stage(torch.zeros(1, 9, 4), torch.zeros(1, 8, 5)), "logits: expected"),
    ],
)
def test_shapes_must_agree(stage, message):
    with pytest.raises(ContractError, match=message):
        run(stage, anchors(9), SOFTMAX)


@pytest.mark.parametrize("classes", [(5,), (-1, 2)])
def test_unknown_classes_are_refused(classes):
    with pytest.raises(ContractError, match="do not exist; expected 0 to 4"):
        run(random_stage(1, 9, 5), anchors(9), SIGMOID, classes=classes)
