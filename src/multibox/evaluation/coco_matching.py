"""COCO's matching in NumPy: greedy by score, crowd regions and objects outside the size range set aside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.judged import FALSE, IGNORED, TRUE, Judged, positives, ranked
from multibox.evaluation.pairs import Pairs, find_pairs
from multibox.evaluation.records import Columns, EvaluationSet

__all__ = ["AREA_RANGES", "IOU_THRESHOLDS", "MAX_DETECTIONS", "match_coco"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Square pixels; both ends belong to a range, so an object of exactly 32² is small and medium. From COCO's tools."""

MAX_DETECTIONS = 100
"""Best detections of a picture that count, for each class."""

_BELOW_ONE = 1 - 1e-10  # a threshold of 1 means "equal but for rounding"


def match_coco(
    data: EvaluationSet, *, thresholds: Sequence[float] | NDArray[np.float64], areas: Sequence[str]
) -> tuple[Judged, ...]:
    """One `Judged` for each name of `AREA_RANGES` in `areas`, with the given overlap thresholds.

    Detections are taken best first. Each goes to the free object it overlaps most, among those that are asked for
    and then among the ignored (crowd, outside the size range); of equal overlaps the later object wins. A crowd
    region is never used up. A detection is ignored if its object is, or if it has none and is itself outside the
    size range. `difficult` means nothing to COCO.
    """
    columns = data.columns
    limits = np.minimum(np.asarray(thresholds, np.float64), _BELOW_ONE)
    ranges = np.array([AREA_RANGES[name] for name in areas]).reshape(-1, 2, 1)
    rows, rank = ranked(columns, best=MAX_DETECTIONS)
    ignored = columns.truth_crowd | (columns.truth_area < ranges[:, 0]) | (columns.truth_area > ranges[:, 1])
    pairs = find_pairs(columns, at_least=float(limits.min(initial=1)), same_class=True, crowd_regions=True)
    matched = _greedy(columns, pairs, rows, limits=limits, ignored=ignored)

    own_area = columns.xywh[rows, 2] * columns.xywh[rows, 3]
    outside = (own_area < ranges[:, 0]) | (own_area > ranges[:, 1])
    results = []
    for a in range(len(areas)):
        truth = matched[a][:, rows]
        aside = np.where(truth >= 0, _at(ignored[a], truth), outside[a])
        outcome = np.where(aside, IGNORED, np.where(truth >= 0, TRUE, FALSE)).astype(np.int8)
        results.append(
            Judged(
                row=rows,
                picture=columns.picture[rows],
                label=columns.label[rows],
                score=columns.score[rows],
                rank=rank,
                outcome=outcome,
                truth=truth,
                positives=positives(data, ~ignored[a]),
            )
        )
    return tuple(results)


def _greedy(
    columns: Columns,
    pairs: Pairs,
    rows: NDArray[np.int64],
    *,
    limits: NDArray[np.float64],
    ignored: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """[A, T, D] the object of every detection, or −1. Only detections that overlap something are visited."""
    areas = len(ignored)
    matched = np.full((areas, len(limits), len(columns.label)), -1, np.int32)
    taken = np.zeros((areas, len(limits), len(columns.truth_label)), bool)
    starts = np.searchsorted(pairs.detection, rows, side="left")
    stops = np.searchsorted(pairs.detection, rows, side="right")
    visited = np.flatnonzero(stops > starts)
    for row, start, stop in zip(rows[visited].tolist(), starts[visited].tolist(), stops[visited].tolist(), strict=True):
        truth, iou = pairs.truth[start:stop], pairs.iou[start:stop]
        crowd = columns.truth_crowd[truth]
        free = (~taken[:, :, truth] | crowd) & (iou >= limits[:, None])
        asked = free & ~ignored[:, None, truth]
        overlap = np.where(np.where(asked.any(axis=2, keepdims=True), asked, free), iou, -1.0)
        last_best = overlap.shape[2] - 1 - overlap[:, :, ::-1].argmax(axis=2)
        a, t = np.nonzero(free.any(axis=2))
        chosen = truth[last_best[a, t]]
        matched[a, t, row] = chosen
        taken[a, t, chosen] = True
    return matched


def _at(flags: NDArray[np.bool_], index: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The flags at these places; False where the place is −1, also if there are no flags at all."""
    return np.append(flags, False)[index]
