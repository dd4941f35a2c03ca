"""Made-up pictures with truth and predictions, and small hand-made ones."""

from __future__ import annotations

import numpy as np

from multibox.evaluation.records import EvaluationSet, Truth
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections

SIZE_HW = (400, 500)
CLASSES = ClassMap(("cat", "dog", "bird"))


def truth(boxes_xyxy=(), labels=(), *, classes=CLASSES, size_hw=SIZE_HW, **columns) -> Truth:
    return Truth(Detections(list(boxes_xyxy), list(labels), None, classes, size_hw), **columns)


def found(boxes_xyxy=(), labels=(), scores=(), *, classes=CLASSES, size_hw=SIZE_HW) -> Detections:
    return Detections(list(boxes_xyxy), list(labels), list(scores), classes, size_hw)


def one_picture(true: Truth, predicted: Detections) -> EvaluationSet:
    return EvaluationSet(predicted.class_map, [true], [predicted])


def random_set(
    seed: int,
    *,
    pictures: int = 12,
    classes: int = 5,
    objects: int = 8,
    extra: int = 12,
    grid: float = 0.0,
    score_steps: int = 0,
    shift: float = 0.15,
) -> EvaluationSet:
    """Objects of all sizes, some crowd or difficult; jittered, duplicated, mislabelled and stray detections.

    `grid` rounds coordinates (for overlaps that lie on thresholds), `score_steps` makes ties; the last class never has
    objects, the one before never detections, and every fifth picture no objects, every seventh no detections.
    """
    rng = np.random.default_rng(seed)
    class_map = ClassMap(tuple(f"class {i}" for i in range(classes)))
    truths, predictions = [], []
    for picture in range(pictures):
        count = 0 if picture % 5 == 4 else int(rng.integers(0, objects + 1))
        boxes_xyxy = _boxes(rng, count, grid)
        labels = rng.integers(0, max(1, classes - 1), count)
        given = np.where(rng.random(count) < 0.5, np.nan, rng.uniform(0, 20000, count))
        # Areas on the borders of COCO's ranges belong to both.
        given = np.where(rng.random(count) < 0.2, rng.choice([32.0**2, 96.0**2], count), given)
        truths.append(
            Truth(
                Detections(boxes_xyxy, labels, None, class_map, SIZE_HW),
                crowd=rng.random(count) < 0.15,
                difficult=rng.random(count) < 0.2,
                area=given,
            )
        )
        predictions.append(_predictions(rng, boxes_xyxy, labels, class_map, extra, grid, score_steps, shift, picture))
    return EvaluationSet(class_map, truths, predictions, name=f"random {seed}")


def _predictions(rng, boxes_xyxy, labels, class_map, extra, grid, score_steps, shift, picture) -> Detections:
    classes = len(class_map)
    chosen = rng.integers(0, len(labels), 2 * len(labels)) if len(labels) else np.zeros(0, int)
    stray = 0 if picture % 7 == 6 else extra
    chosen = chosen if stray else chosen[:0]
    sides = boxes_xyxy[chosen, 2:] - boxes_xyxy[chosen, :2]
    near = boxes_xyxy[chosen] + rng.normal(0, shift, (len(chosen), 4)) * np.tile(sides, 2)
    near = np.concatenate([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])], axis=1)
    near[::5] = boxes_xyxy[chosen][::5]
    every = np.concatenate([_snap(near, grid), _boxes(rng, stray, grid)])
    wrong = rng.random(len(chosen)) < 0.1
    near_labels = np.where(wrong, rng.integers(0, classes, len(chosen)), labels[chosen])
    every_label = np.concatenate([near_labels, rng.integers(0, classes, stray)]).astype(int)
    every_label[every_label == classes - 2] = 0 if classes > 2 else classes - 2
    scores = rng.random(len(every))
    if score_steps:
        scores = np.round(scores * score_steps) / score_steps
    return Detections(every, every_label, scores, class_map, SIZE_HW)


def _boxes(rng, count, grid):
    wh = np.exp(rng.uniform(np.log(8), np.log(250), (count, 2)))
    xy = rng.uniform(0, 1, (count, 2)) * np.maximum(np.array(SIZE_HW[::-1]) - wh, 1)
    return _snap(np.concatenate([xy, xy + wh], axis=1), grid)


def _snap(boxes_xyxy, grid):
    return np.round(boxes_xyxy / grid) * grid if grid else boxes_xyxy
