"""What differs between an exported file and its network: tensors level by level, detections one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.export.heads import RAW_OUTPUTS
from multibox.export.layout import NETWORK_INPUT
from multibox.export.verify.artefact import Seen
from multibox.spec.card import ModelCard
from multibox.spec.detections import Detections
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.suppression import iou_matrix_np

__all__ = ["Agreement", "TensorDifference", "agreement", "found_again", "tensor_differences", "worst_classes"]

FloatArray = NDArray[np.float32]
CONFIDENT, OVER = 0.3, 0.5  # score of a detection that counts, and the overlap that finds it again
NEAR_TIE = 0.002  # of an overlap to the suppression threshold: on which side it falls may hang on rounding


@dataclass(frozen=True)
class TensorDifference:
    """The largest difference in one tensor, or one level of it, over all pictures.

    `tolerance` is absolute, and was made from the size of the expected values (`scale`).
    """

    output: str
    level: str
    largest: float
    scale: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerance; what is not a number is not."""
        return self.largest <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        largest = self.largest if np.isfinite(self.largest) else None
        return {
            "output": self.output,
            "level": self.level,
            "max_abs_difference": largest,
            "max_abs_expected": self.scale,
            "tolerance": self.tolerance,
            "holds": self.holds,
        }


def tensor_differences(
    pairs: Iterable[tuple[Seen, Seen]], card: ModelCard, *, relative: float
) -> list[TensorDifference]:
    """Largest differences of the network's input, and of both raw outputs on every level.

    Args:
        pairs: (expected, given) for each picture; tensors that either lacks are left out.
        card: names the levels.
        relative: tolerance as a part of the largest expected value of the tensor (at least of 1).
    """
    largest: dict[tuple[str, str], float] = {}
    scales: dict[str, float] = {}
    for expected, given in pairs:
        for name in (NETWORK_INPUT, *RAW_OUTPUTS):
            if name not in expected.tensors or name not in given.tensors:
                continue
            ours, theirs = expected.tensors[name], given.tensors[name]
            scales[name] = max(scales.get(name, 1.0), float(np.abs(ours).max()))
            for level, rows in _levels(name, card):
                key = (name, level)
                if ours.shape != theirs.shape:
                    largest[key] = np.inf
                    continue
                difference = float(np.abs(ours[rows] - theirs[rows]).max(initial=0))
                largest[key] = max(largest.get(key, 0.0), difference if np.isfinite(difference) else np.inf)
    return [
        TensorDifference(name, level, value, scales[name], relative * scales[name])
        for (name, level), value in largest.items()
    ]


def _levels(name: str, card: ModelCard) -> list[tuple[str, slice]]:
    if name == NETWORK_INPUT:
        return [("", slice(None))]
    named = [str(level.get("name", number)) for number, level in enumerate(card.summary.get("levels", []))]
    parts, start = [], 0
    sizes = zip(card.feature_sizes_hw, card.anchors.boxes_per_cell, strict=True)
    for number, ((height, width), boxes) in enumerate(sizes):
        stop = start + height * width * boxes
        parts.append((named[number] if number < len(named) else str(number), slice(start, stop)))
        start = stop
    return parts


@dataclass
class Agreement:
    """How well two lists of detections agree over all pictures.

    Attributes:
        expected, given: numbers of detections.
        paired: those that have a partner of the same class within the tolerances.
        explained: those without one, which rounding explains: the score lies within the tolerance of the threshold or
            of the last place, or an overlap on the suppression threshold.
        unexplained: a line for each of the others.
        largest_px, largest_score: over the pairs.
    """

    expected: int = 0
    given: int = 0
    paired: int = 0
    explained: int = 0
    unexplained: list[str] | None = None
    largest_px: float = 0.0
    largest_score: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every detection has a partner or an explanation."""
        return not self.unexplained

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the first lines only."""
        lines = self.unexplained or []
        return {
            "expected": self.expected,
            "given": self.given,
            "paired": self.paired,
            "explained_by_rounding": self.explained,
            "unexplained": len(lines),
            "examples": lines[:10],
            "largest_box_difference_px": self.largest_px,
            "largest_score_difference": self.largest_score,
            "holds": self.holds,
        }


def agreement(
    pairs: Iterable[tuple[Detections, Detections]], spec: PostprocessSpec, *, box_px: float, score: float
) -> Agreement:
    """Pair detections by class name, box and score; say of the rest whether rounding explains them.

    Args:
        pairs: (expected, given) for each picture, in pixels.
        spec: of the expected ones.
        box_px: tolerance of a coordinate.
        score: tolerance of a score.
    """
    total = Agreement(unexplained=[])
    assert total.unexplained is not None
    for number, (expected, given) in enumerate(pairs):
        total.expected += len(expected)
        total.given += len(given)
        mine, theirs = _pair(expected, given, total, box_px=box_px, score=score)
        for lonely, one, other, what in (
            (mine, expected, given, "is missing"),
            (theirs, given, expected, "should not be there"),
        ):
            for row in lonely:
                if _explained(row, one, other, spec, score=score):
                    total.explained += 1
                else:
                    total.unexplained.append(f"picture {number}: {_words(one, row)} {what}{_near(one, row, other)}")
    return total


def _pair(
    expected: Detections, given: Detections, total: Agreement, *, box_px: float, score: float
) -> tuple[list[int], list[int]]:
    """Rows of both without a partner."""
    assert expected.scores is not None
    assert given.scores is not None
    names = np.array(given.class_map.names)[given.labels] if len(given) else np.array([], str)
    free = np.ones(len(given), bool)
    lonely = []
    for row in range(len(expected)):
        apart = np.abs(given.boxes_xyxy - expected.boxes_xyxy[row]).max(axis=1, initial=0)
        off = np.abs(given.scores - expected.scores[row])
        name = expected.class_map.names[expected.labels[row]]
        fits = np.flatnonzero(free & (names == name) & (apart <= box_px) & (off <= score))
        if not fits.size:
            lonely.append(row)
            continue
        best = fits[np.argmin(apart[fits] / box_px + off[fits] / score)]
        free[best] = False
        total.paired += 1
        total.largest_px = max(total.largest_px, float(apart[best]))
        total.largest_score = max(total.largest_score, float(off[best]))
    return lonely, np.flatnonzero(free).tolist()


def _explained(row: int, one: Detections, other: Detections, spec: PostprocessSpec, *, score: float) -> bool:
    assert one.scores is not None
    value = float(one.scores[row])
    if value <= spec.score_threshold + score:
        return True
    for part in (one, other):
        full = len(part) >= spec.max_detections and part.scores is not None
        if full and part.scores is not None and value <= float(part.scores.min()) + score:
            return True
    for part in (one, other):
        rows = np.arange(len(part))
        if part is one:
            rows = rows[rows != row]
        if not spec.class_agnostic:
            rows = rows[part.labels[rows] == one.labels[row]]
        overlaps = iou_matrix_np(one.boxes_xyxy[row][None], part.boxes_xyxy[rows])[0]
        if (np.abs(overlaps - spec.nms_iou) <= NEAR_TIE).any():
            return True
    return False


def _words(one: Detections, row: int) -> str:
    assert one.scores is not None
    box = ", ".join(f"{side:.1f}" for side in one.boxes_xyxy[row])
    return f"{one.class_map.names[one.labels[row]]!r} {one.scores[row]:.4f} at [{box}]"


def _near(one: Detections, row: int, other: Detections) -> str:
    """What lies nearest on the other side, as a hint."""
    if not len(other):
        return "; there is none at all"
    nearest = int(np.abs(other.boxes_xyxy - one.boxes_xyxy[row]).max(axis=1).argmin())
    return f"; nearest is {_words(other, nearest)}"


def found_again(expected: Sequence[Detections], given: Sequence[Detections]) -> float | None:
    """Part of the confident detections that have one of the same class over them on the other side; None of none."""
    total = again = 0
    for ours, theirs in zip(expected, given, strict=True):
        assert ours.scores is not None
        for row in np.flatnonzero(ours.scores >= CONFIDENT):
            same = theirs.boxes_xyxy[theirs.labels == ours.labels[row]]
            total += 1
            again += bool((iou_matrix_np(ours.boxes_xyxy[row][None], same) >= OVER).any())
    return again / total if total else None


def worst_classes(changes: Sequence[tuple[str, float]], count: int = 5) -> str:
    """The largest losses of (class, change in AP50) pairs in words: "cat −0.031, dog −0.020"."""
    worst = sorted(changes, key=lambda pair: pair[1])[:count]
    return ", ".join(f"{name} {change:+.3f}" for name, change in worst if change < 0)
