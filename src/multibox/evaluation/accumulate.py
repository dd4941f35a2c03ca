"""From matched detections to average precision and recall, for pictures that count once or, when resampled, more often.

Detections of a class are counted by descending score. Only those that can be true positives change the result one by
one; false ones between two of them are counted together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.matching import FALSE, IGNORED, TRUE, MatchedDetections, Protocol

__all__ = ["INTERPOLATION", "Interpolation", "Measure", "class_values"]

Interpolation = Literal["101", "11", "area"]
"""COCO's 101 recall levels, VOC 2007's 11, or the area under the monotone curve (VOC 2010 and later)."""

INTERPOLATION: dict[Protocol, Interpolation] = {"coco": "101", "voc": "area"}

Measure = Interpolation | Literal["recall"]
"""Average precision by an interpolation, or the part of the objects that is found at all."""

_LEVELS = {"101": np.linspace(0, 1, 101), "11": np.arange(11) / 10}
_SPACING = float(np.spacing(1))  # keeps 0 / 0 out; COCO's tools add the same
_BLOCK = 1 << 20
"""Numbers in an intermediate array, so that a handful of them fits into a processor's cache or nearly."""


def class_values(
    matched: MatchedDetections,
    measures: Collection[Measure],
    weights: NDArray[np.float64] | None = None,
    *,
    max_rank: int | None = None,
    thresholds: Sequence[int] | slice = slice(None),
) -> Iterator[tuple[int, dict[Measure, NDArray[np.float64]]]]:
    """(class, {measure: [T, B] values}) for each class with objects; NaN where none of them counts.

    Args:
        matched: the detections.
        measures: what to compute.
        weights: [N, B] whole numbers: picture n counts `weights[n, b]` times in resample b; once (B = 1) if left out.
        max_rank: only so many of the best detections of each picture and class.
        thresholds: rows of `matched.outcome`; all T when left out.
    """
    weights = np.ones((matched.positives.shape[1], 1)) if weights is None else weights
    for label in np.flatnonzero(matched.positives.any(axis=1)).tolist():
        candidates = _candidates(matched, label, max_rank, thresholds)
        shape = len(candidates.outcome), weights.shape[1]
        values = {measure: np.empty(shape) for measure in measures}
        step = max(1, _BLOCK // max(1, len(candidates.picture)))
        for start in range(0, weights.shape[1], step):
            part = slice(start, start + step)
            for t, counts in enumerate(_counts(candidates, np.ascontiguousarray(weights[:, part]))):
                for measure in measures:
                    values[measure][t, part] = _recall(counts) if measure == "recall" else _precision(counts, measure)
        yield label, values


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The S detections of one class that are not false at every threshold, by descending score.

    Args:
        picture: [S] picture of each.
        outcome: [T, S] its outcomes.
        false_picture: [E] pictures of the detections that are false at every threshold.
        false_before: [E] the candidate that comes next, ascending, at most S.
        positives: [N] objects asked for, by picture.
    """

    picture: NDArray[np.int64]
    outcome: NDArray[np.int8]
    false_picture: NDArray[np.int64]
    false_before: NDArray[np.int64]
    positives: NDArray[np.int64]


def _candidates(
    matched: MatchedDetections, label: int, max_rank: int | None, thresholds: Sequence[int] | slice
) -> _Candidates:
    part = matched.of_class(label)
    outcome, picture = matched.outcome[thresholds, part], matched.picture[part]
    keep = ~(outcome == IGNORED).all(axis=0)
    if max_rank is not None:
        keep &= matched.rank[part] < max_rank
    outcome, picture = outcome[:, keep], picture[keep]
    chosen = (outcome != FALSE).any(axis=0)
    return _Candidates(
        picture=picture[chosen],
        outcome=outcome[:, chosen],
        false_picture=picture[~chosen],
        false_before=np.cumsum(chosen)[~chosen],
        positives=matched.positives[label],
    )


@dataclass(frozen=True, eq=False)
class _Counts:
    """True and false positives up to each candidate and the objects asked for: [S, B], [S, B], [B] float64."""

    true: NDArray[np.float64]
    false: NDArray[np.float64]
    positives: NDArray[np.float64]


def _counts(candidates: _Candidates, weights: NDArray[np.float64]) -> Iterator[_Counts]:
    """Counts at each threshold."""
    counts, positives = weights[candidates.picture], candidates.positives @ weights
    before = _false_before(candidates, weights)
    for outcome in candidates.outcome[:, :, None]:
        false = np.cumsum(before + counts * (outcome == FALSE), axis=0)
        yield _Counts(np.cumsum(counts * (outcome == TRUE), axis=0), false, positives)


def _false_before(candidates: _Candidates, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S, B] false detections between each candidate and the one before; those after the last change nothing."""
    before = np.zeros((len(candidates.picture), weights.shape[1]))
    within = int(np.searchsorted(candidates.false_before, len(candidates.picture)))
    following = candidates.false_before[:within]
    if within:
        starts = np.flatnonzero(np.r_[True, np.diff(following) > 0])
        before[following[starts]] = np.add.reduceat(weights[candidates.false_picture[:within]], starts, axis=0)
    return before


def _precision(counts: _Counts, interpolation: Interpolation) -> NDArray[np.float64]:
    """[B] average precision; NaN where nothing is asked for.

    The precision at a recall is the best at this recall or beyond. It can only rise at true positives, so it is
    enough to look there: a candidate brings all recall levels that it is the first to reach.
    """
    size = counts.positives.shape
    undefined = counts.positives == 0
    if not len(counts.true):
        return np.where(undefined, np.nan, np.zeros(size))
    reached = counts.true / np.where(undefined, 1, counts.positives)
    precision = counts.true / (counts.true + counts.false + _SPACING)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    if interpolation == "area":
        share = np.diff(reached, axis=0, prepend=0.0)
    else:
        levels = _LEVELS[interpolation]
        share = np.diff(np.searchsorted(levels, reached, side="right"), axis=0, prepend=0) / len(levels)
    return np.where(undefined, np.nan, (best * share).sum(axis=0))


def _recall(counts: _Counts) -> NDArray[np.float64]:
    """[B] part of the objects asked for that is found at all; NaN where nothing is asked for."""
    undefined = counts.positives == 0
    found = counts.true[-1] if len(counts.true) else np.zeros(counts.positives.shape)
    return np.where(undefined, np.nan, found / np.where(undefined, 1, counts.positives))
