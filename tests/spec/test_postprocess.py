import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.errors import ContractError, OptionError
from multibox.spec.postprocess import (
    DEFAULT_VARIANCES,
    PostprocessSpec,
    decode_np,
    postprocess_np,
)
from multibox.spec.suppression import iou_matrix_np, nms_np

SOFTMAX = PostprocessSpec("softmax", score_threshold=0.05, top_k=8, max_detections=20)
SIGMOID = PostprocessSpec("sigmoid", score_threshold=0.3, top_k=8, max_detections=20)


def random_input(count, scores, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    anchors_cxcywh = np.concatenate([rng.random((count, 2)), rng.random((count, 2)) * 0.5 + 0.05], axis=1)
    arrays = rng.standard_normal((count, 4)), rng.standard_normal((count, scores)) * spread, anchors_cxcywh
    return tuple(a.astype(np.float32) for a in arrays)


def run(offsets, logits, anchors_cxcywh, spec, classes=None):
    return postprocess_np(offsets, logits, anchors_cxcywh, variances=DEFAULT_VARIANCES, spec=spec, classes=classes)


def iou_of(a, b):
    def area(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    overlap = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - overlap
    return overlap / union if union > 0 else 0.0


def scores_of(row, activation):
    if activation == "softmax":
        exponentials = np.exp(row - row.max())
        return (exponentials / exponentials.sum())[1:]
    return np.reciprocal(1 + np.exp(-row))


def box_of(offset, anchor):
    cx, cy = anchor[0] + offset[0] * 0.1 * anchor[2], anchor[1] + offset[1] * 0.1 * anchor[3]
    w, h = anchor[2] * math.exp(offset[2] * 0.2), anchor[3] * math.exp(offset[3] * 0.2)
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)


def clipped(box):
    return tuple(min(max(v, 0.0), 1.0) for v in box)


def postprocess_loop(offsets, logits, anchors_cxcywh, spec, classes=None):
    """All candidates, class by class, best first: rows of (score, label, box)."""
    class_count = logits.shape[1] - (spec.activation == "softmax")
    scores = [scores_of(row, spec.activation) for row in logits]
    candidates = []
    for label in range(class_count) if classes is None else classes:
        rows = [(-scores[a][label], a, label) for a in range(len(logits)) if scores[a][label] > spec.score_threshold]
        candidates += sorted(rows)[: spec.top_k]
    kept = []
    for negated, a, label in sorted(candidates):
        box = box_of(offsets[a].tolist(), anchors_cxcywh[a].tolist())
        box = clipped(box) if spec.clip == "before_nms" else box
        rivals = [k for k in kept if spec.class_agnostic or k[1] == label]
        if not any(iou_of(box, rival[2]) > spec.nms_iou for rival in rivals):
            kept.append((-negated, label, box))
    return [(score, label, clipped(box)) for score, label, box in kept[: spec.max_detections]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [None, (0, 3), (2,), ()])
@pytest.mark.parametrize(
    "spec",
    [
        SOFTMAX,
        SIGMOID,
        replace(SOFTMAX, class_agnostic=True, top_k=None),
        replace(SIGMOID, class_agnostic=True, clip="after_nms"),
        replace(SIGMOID, clip="after_nms", nms_iou=0.2),
        replace(SOFTMAX, score_threshold=0.0, max_detections=1000),
        replace(SIGMOID, score_threshold=0.9, top_k=1),
        replace(SIGMOID, nms_iou=0.0),
        replace(SIGMOID, nms_iou=1.0, max_detections=1),
    ],
)
def test_the_result_is_that_of_plain_loops(spec, classes, seed):
    arrays = random_input(70, 4 + (spec.activation == "softmax"), seed)
    unit_xyxy, scores, labels = run(*arrays, spec, classes)
    expected = postprocess_loop(*arrays, spec, classes)
    assert labels.tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(scores, [score for score, _, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(unit_xyxy, np.reshape([box for _, _, box in expected], (-1, 4)), atol=1e-5)
    assert (unit_xyxy.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)


@pytest.mark.parametrize("spec", [SOFTMAX, SIGMOID, replace(SIGMOID, class_agnostic=True)])
def test_candidates_beyond_the_first_prefix_count(spec):
    offsets, logits, anchors_cxcywh = random_input(1200, 4, seed=5)
    anchors_cxcywh[:, 2:] += 0.5
    spec = replace(spec, top_k=900, nms_iou=0.3, score_threshold=0.01, max_detections=1000)
    _, scores, labels = run(offsets, logits, anchors_cxcywh, spec)
    expected = postprocess_loop(offsets, logits, anchors_cxcywh, spec)
    assert len(expected) < spec.max_detections
    assert labels.tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(scores, [score for score, _, _ in expected], rtol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.3, 0.5, 0.9999])
def test_a_score_must_be_above_the_threshold(activation, threshold):
    """Logits packed around the threshold: deciding by logit must be deciding by score."""
    edge = math.log(threshold / (1 - threshold)) if threshold else -80.0
    logits = np.float32(edge) + np.arange(-3000, 3000, dtype=np.float32)[:, None] * np.float32(3e-7 * abs(edge) + 1e-9)
    if activation == "softmax":
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    anchors_cxcywh = np.full((len(logits), 4), 1e-4, dtype=np.float32)
    anchors_cxcywh[:, 0] = np.linspace(0, 1, len(logits))
    spec = PostprocessSpec(activation, score_threshold=threshold, nms_iou=1.0, top_k=None, max_detections=len(logits))
    _, scores, _ = run(np.zeros_like(anchors_cxcywh), logits, anchors_cxcywh, spec)
    if activation == "softmax":
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        every_score = (shifted / shifted.sum(axis=1, keepdims=True))[:, 1]
    else:
        every_score = np.reciprocal(1 + np.exp(-logits[:, 0]))
    expected = every_score[every_score > np.float32(threshold)]
    assert len(scores) == len(expected) > 0
    assert np.array_equal(scores, np.sort(expected)[::-1])


def test_a_score_exactly_at_the_threshold_is_left_out():
    offsets, logits = np.zeros((2, 4), np.float32), np.array([[0.0], [1e-6]], np.float32)
    anchors_cxcywh = np.array([[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1]], np.float32)
    unit_xyxy, scores, labels = run(offsets, logits, anchors_cxcywh, replace(SIGMOID, score_threshold=0.5))
    assert labels.tolist() == [0]
    assert scores[0] > 0.5
    np.testing.assert_allclose(unit_xyxy, [[0.65, 0.65, 0.75, 0.75]], rtol=1e-6)


def test_clip_before_or_after_suppression():
    # Alike inside the picture, different outside.
    anchors_cxcywh = np.array([[0.0, 0.5, 0.4, 0.2], [-0.4, 0.5, 1.2, 0.2]], np.float32)
    logits = np.array([[2.0], [1.0]], np.float32)
    count = {
        clip: len(run(np.zeros((2, 4), np.float32), logits, anchors_cxcywh, replace(SIGMOID, clip=clip))[1])
        for clip in ("before_nms", "after_nms")
    }
    assert count == {"before_nms": 1, "after_nms": 2}


def test_extreme_logits_are_no_problem():
    offsets, _, anchors_cxcywh = random_input(4, 1)
    logits = np.array([[3e38, -3e38, 0], [-1e4, 1e4, 1e4], [0, 0, 0], [-200, -200, 200]], np.float32)
    for activation in ("softmax", "sigmoid"):
        _, scores, _ = run(offsets * 1e3, logits, anchors_cxcywh, PostprocessSpec(activation))
        assert np.isfinite(scores).all()
        assert scores.max() > 0.99


def test_half_precision_gives_float32():
    arrays = [a.astype(np.float16) for a in random_input(70, 4)]
    half, full = run(*arrays, SIGMOID), run(*(a.astype(np.float32) for a in arrays), SIGMOID)
    assert [a.dtype for a in half] == [np.float32, np.float32, np.int64]
    assert all(np.array_equal(h, f) for h, f in zip(half, full, strict=True))


def test_arguments_are_left_alone():
    arrays = random_input(70, 4)
    before = [a.copy() for a in arrays]
    run(*arrays, SOFTMAX)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", [SOFTMAX, SIGMOID])
def test_values_that_are_not_finite_are_counted(value, spec):
    offsets, logits, anchors_cxcywh = random_input(7, 3)
    broken = logits.copy()
    broken[2, :2] = value
    with pytest.raises(ContractError, match="2 of 21 logits are not finite"):
        run(offsets, broken, anchors_cxcywh, spec)
    offsets[0, 0] = value
    with pytest.raises(ContractError, match="1 of 28 offsets are not finite"):
        run(offsets, logits, anchors_cxcywh, spec)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((7, 4), (7, 1), (7, 4)), r"logits: expected shape \[7, at least 2\] for softmax, got \[7, 1\]"),
        (((7, 4), (6, 3), (7, 4)), r"logits: .*got \[6, 3\]"),
        (((6, 4), (7, 3), (7, 4)), r"offsets: expected shape \[7, 4\], got \[6, 4\]"),
        (((7, 4), (7, 3), (7, 5)), r"anchors_cxcywh: expected shape \[7, 4\], got \[7, 5\]"),
        (((0, 4), (0, 3), (0, 4)), r"anchors_cxcywh: .*got \[0, 4\]"),
    ],
)
def test_shapes_must_agree(shapes, message):
    with pytest.raises(ContractError, match=message):
        run(*(np.zeros(s, np.float32) for s in shapes), SOFTMAX)


def test_unknown_classes_are_refused():
    with pytest.raises(ContractError, match=r"classes \[3\] do not exist; expected 0 to 2"):
        run(*random_input(7, 3), SIGMOID, classes=[1, 3])


def test_classes_may_repeat_and_come_in_any_order():
    arrays = random_input(70, 4)
    once, again = run(*arrays, SIGMOID, classes=(1, 3)), run(*arrays, SIGMOID, classes=[3, 1, 3])
    assert len(once[1]) > 0
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


coordinate = st.integers(0, 6)
grid_boxes = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=8).map(
    lambda rows: np.array(rows, dtype=np.float32).reshape(-1, 4)
)


@settings(deadline=None)
@given(grid_boxes, grid_boxes)
def test_iou_is_that_of_two_loops(a_xyxy, b_xyxy):
    iou = iou_matrix_np(a_xyxy, b_xyxy)
    assert iou.shape == (len(a_xyxy), len(b_xyxy))
    expected = np.reshape([iou_of(a, b) for a in a_xyxy.tolist() for b in b_xyxy.tolist()], iou.shape)
    np.testing.assert_allclose(iou, expected, rtol=1e-12)
    assert np.array_equal(iou, iou_matrix_np(b_xyxy, a_xyxy).T)


@pytest.mark.parametrize("side", [1e-38, 1e-7, 1.0, 1e6])
def test_equal_boxes_overlap_by_exactly_one(side):
    box_xyxy = np.array([[0, 0, side, side]], np.float32)
    assert iou_matrix_np(box_xyxy, box_xyxy).item() == 1.0


@settings(deadline=None)
@given(grid_boxes, st.data())
def test_suppression_is_greedy(boxes_xyxy, data):
    count = len(boxes_xyxy)
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), np.float32)
    labels = np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), np.int64)
    kept = nms_np(boxes_xyxy, scores, nms_iou=0.25, labels=labels).tolist()
    order = sorted(range(count), key=lambda i: (-scores[i], i))
    place = {row: order.index(row) for row in order}
    assert [place[row] for row in kept] == sorted(place[row] for row in kept)
    for row in range(count):
        better = [
            k
            for k in kept
            if place[k] < place[row]
            and labels[k] == labels[row]
            and iou_of(boxes_xyxy[k].tolist(), boxes_xyxy[row].tolist()) > 0.25
        ]
        assert (row in kept) == (not better)


def test_suppression_across_labels_and_over_many_chunks():
    rng = np.random.default_rng(0)
    corner = rng.random((700, 2)).astype(np.float32)
    boxes_xyxy = np.concatenate([corner, corner + 0.2], axis=1)
    scores = rng.random(700).astype(np.float32)
    expected = []
    for row in np.argsort(-scores).tolist():
        if all(iou_of(boxes_xyxy[row].tolist(), boxes_xyxy[k].tolist()) <= 0.4 for k in expected):
            expected.append(row)
    assert nms_np(boxes_xyxy, scores, nms_iou=0.4).tolist() == expected
    assert len(nms_np(boxes_xyxy, scores, nms_iou=0.4, labels=np.arange(700))) == 700


def test_an_iou_of_exactly_the_limit_does_not_suppress():
    boxes_xyxy = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert nms_np(boxes_xyxy, scores, nms_iou=0.5).tolist() == [0, 1]
    assert nms_np(boxes_xyxy, scores, nms_iou=0.49).tolist() == [0]


def test_decode_limits_growth():
    anchors_cxcywh = np.array([[0.5, 0.5, 0.1, 0.2]], np.float32)
    decoded = decode_np(np.array([[1, -1, 1e6, -1e6]], np.float32), anchors_cxcywh, DEFAULT_VARIANCES)
    np.testing.assert_allclose(decoded, [[0.51, 0.48, 6.25, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("spec", [SOFTMAX, PostprocessSpec("sigmoid", 0, 1, None, 7, True, "after_nms")])
def test_a_specification_survives_json(spec):
    assert PostprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_defaults():
    assert PostprocessSpec.from_dict({"activation": "softmax"}).to_dict() == {
        "activation": "softmax",
        "score_threshold": 0.01,
        "nms_iou": 0.45,
        "top_k": 400,
        "max_detections": 200,
        "class_agnostic": False,
        "clip": "before_nms",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "softmaxx"}, "did you mean 'softmax'"),
        ({"score_threshold": 1.0}, "score_threshold: expected 0 <= number < 1, got 1.0"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"score_threshold": "0.5"}, "score_threshold"),
        ({"nms_iou": -0.1}, "nms_iou"),
        ({"nms_iou": True}, "nms_iou"),
        ({"top_k": 0}, "top_k: .*None for no limit"),
        ({"top_k": 2.5}, "top_k"),
        ({"max_detections": 0}, "max_detections"),
        ({"max_detections": None}, "max_detections"),
        ({"class_agnostic": 1}, "class_agnostic"),
        ({"clip": "before"}, "clip 'before' is unknown"),
        ({"nms_thresh": 0.5}, "no option 'nms_thresh'"),
        ({"topk": 5}, "did you mean 'top_k'"),
    ],
)
def test_a_wrong_specification_is_refused(change, message):
    with pytest.raises(OptionError, match=message):
        PostprocessSpec.from_dict(SOFTMAX.to_dict() | change)


def test_the_activation_must_be_given():
    with pytest.raises(OptionError, match="needs 'activation': softmax or sigmoid"):
        PostprocessSpec.from_dict({})
