"""From verdicts to average precision and recall, for pictures that count once or, when resampled, several times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.judged import FALSE, IGNORED, TRUE, Judged

__all__ = ["Climb", "Interpolation", "Ladder", "average_precision", "climbs", "ladder", "recall"]

Interpolation = Literal["101", "11", "area"]
"""COCO's 101 recall levels, VOC 2007's 11, or the area under the monotone curve (VOC 2010 and later)."""

_LEVELS = {"101": np.linspace(0, 1, 101), "11": np.arange(11) / 10}
_SPACING = float(np.spacing(1))  # keeps 0 / 0 out; COCO's tools add the same


@dataclass(frozen=True, eq=False)
class Ladder:
    """The detections of one class, shortened to the rungs that can carry a true positive.

    Between two rungs every detection is false at all thresholds, so only their number matters, for each picture.

    Args:
        picture: [S] picture of each rung.
        outcome: [T, S] its verdicts.
        between_picture: [E] pictures of the false detections, ascending rung.
        between_rung: [E] the rung that comes next, ascending, at most S.
        positives: [N] objects asked for, by picture.
    """

    picture: NDArray[np.int64]
    outcome: NDArray[np.int8]
    between_picture: NDArray[np.int64]
    between_rung: NDArray[np.int64]
    positives: NDArray[np.int64]


def ladder(
    judged: Judged, label: int, *, max_rank: int | None = None, thresholds: Sequence[int] | slice = slice(None)
) -> Ladder:
    """The rungs of a class at some thresholds, with only the first `max_rank` detections of each picture if given."""
    part = judged.of_class(label)
    outcome, picture = judged.outcome[thresholds, part], judged.picture[part]
    keep = ~(outcome == IGNORED).all(axis=0)
    if max_rank is not None:
        keep &= judged.rank[part] < max_rank
    outcome, picture = outcome[:, keep], picture[keep]
    is_rung = (outcome != FALSE).any(axis=0)
    rung_of = np.cumsum(is_rung)
    return Ladder(
        picture=picture[is_rung],
        outcome=outcome[:, is_rung],
        between_picture=picture[~is_rung],
        between_rung=rung_of[~is_rung],
        positives=judged.positives[label],
    )


@dataclass(frozen=True, eq=False)
class Climb:
    """True and false positives up to each rung and the objects asked for: [S, B], [S, B], [B] float64."""

    true: NDArray[np.float64]
    false: NDArray[np.float64]
    positives: NDArray[np.float64]


def climbs(rungs: Ladder, weights: NDArray[np.float64]) -> Iterator[Climb]:
    """Counts at each threshold, where picture n counts `weights[n, b]` times in resample b ([N, B] whole numbers)."""
    counts, before, positives = weights[rungs.picture], _false_before(rungs, weights), rungs.positives @ weights
    for outcome in rungs.outcome[:, :, None]:
        false = np.cumsum(before + counts * (outcome == FALSE), axis=0)
        yield Climb(np.cumsum(counts * (outcome == TRUE), axis=0), false, positives)


def _false_before(rungs: Ladder, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S, B] false detections between each rung and the one before."""
    before = np.zeros((len(rungs.picture), weights.shape[1]))
    within = int(np.searchsorted(rungs.between_rung, len(rungs.picture)))  # those after the last rung change nothing
    rung = rungs.between_rung[:within]
    if within:
        starts = np.flatnonzero(np.r_[True, np.diff(rung) > 0])
        before[rung[starts]] = np.add.reduceat(weights[rungs.between_picture[:within]], starts, axis=0)
    return before


def average_precision(counts: Climb, interpolation: Interpolation) -> NDArray[np.float64]:
    """[B] average precision; NaN where nothing is asked for.

    The precision at a recall is the best at this recall or beyond. It can only rise at true positives, so it is
    enough to look there: rung s brings all recall levels that it is the first to reach.
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


def recall(counts: Climb) -> NDArray[np.float64]:
    """[B] part of the objects asked for that is found at all; NaN where nothing is asked for."""
    undefined = counts.positives == 0
    found = counts.true[-1] if len(counts.true) else np.zeros(counts.positives.shape)
    return np.where(undefined, np.nan, found / np.where(undefined, 1, counts.positives))
