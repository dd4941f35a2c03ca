"""What each picture costs: its missed objects, wrong classes, badly placed boxes and false detections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multibox.evaluation.records import EvaluationSet, Truth
from multibox.spec.detections import Detections
from multibox.spec.suppression import iou_matrix_np

__all__ = ["PictureCost", "picture_costs"]

FOUND_IOU = 0.5  # overlap from which a box shows an object
NEAR_IOU = 0.1  # overlap from which a box means an object, as in TIDE (ECCV 2020, section 2.2)


@dataclass(frozen=True)
class PictureCost:
    """The errors of one picture, as indexes into its truth (missed, mistaken) and its predictions (the others).

    Attributes:
        picture: its place in the set.
        missed: objects that no detection shows or nearly shows.
        mistaken: objects that a detection of a wrong class or a badly placed one is meant for.
        wrong_class: detections over an object of another class.
        badly_placed: detections that overlap an object of their class by less than half.
        false: detections of nothing, or of what a better detection shows already.
        right: detections that show an object.
    """

    picture: int
    missed: tuple[int, ...]
    mistaken: tuple[int, ...]
    wrong_class: tuple[int, ...]
    badly_placed: tuple[int, ...]
    false: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def errors(self) -> int:
        """How many there are."""
        return len(self.missed) + len(self.wrong_class) + len(self.badly_placed) + len(self.false)


def picture_costs(data: EvaluationSet, *, confidence: float) -> list[PictureCost]:
    """The errors of every picture, the costliest first.

    Args:
        data: truth and predictions.
        confidence: detections with lower scores do not count.
    """
    found = [
        _cost(number, truth, predictions, confidence)
        for number, (truth, predictions) in enumerate(zip(data.truths, data.predictions, strict=True))
    ]
    return sorted(found, key=lambda cost: -cost.errors)


def _cost(picture: int, truth: Truth, predictions: Detections, confidence: float) -> PictureCost:
    objects = truth.detections
    overlaps = iou_matrix_np(predictions.boxes_xyxy, objects.boxes_xyxy)
    same = predictions.labels[:, None] == objects.labels[None]
    skipped = truth.crowd | truth.difficult  # neither asked for nor held against a detection
    free = ~skipped
    scores = np.ones(len(predictions)) if predictions.scores is None else predictions.scores
    rows = [int(row) for row in np.argsort(-scores, kind="stable") if scores[row] >= confidence]
    right: list[int] = []
    for row in rows:
        fitting = np.where(same[row] & free, overlaps[row], 0.0)
        if fitting.size and fitting.max() >= FOUND_IOU:
            free[int(fitting.argmax())] = False
            right.append(row)
    kinds: dict[str, list[int]] = {"wrong_class": [], "badly_placed": [], "false": []}
    mistaken: list[int] = []
    for row in (row for row in rows if row not in set(right)):
        if (overlaps[row, skipped] >= FOUND_IOU).any():
            continue
        others, near = (np.where(kind & free, overlaps[row], 0.0) for kind in (~same[row], same[row]))
        if others.size and others.max() >= FOUND_IOU:
            kinds["wrong_class"].append(row)
            mistaken.append(int(others.argmax()))
        elif near.size and near.max() >= NEAR_IOU:
            kinds["badly_placed"].append(row)
            mistaken.append(int(near.argmax()))
        else:
            kinds["false"].append(row)
            continue
        free[mistaken[-1]] = False
    missed = tuple(int(i) for i in np.flatnonzero(free))
    return PictureCost(picture, missed, tuple(mistaken), right=tuple(right), **{k: tuple(v) for k, v in kinds.items()})
