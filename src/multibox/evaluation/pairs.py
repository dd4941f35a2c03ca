"""Overlaps of detections and truth, only where they matter: a sparse list over all pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.records import EvaluationColumns

__all__ = ["Pairs", "find_pairs"]

_CHUNK = 1 << 20
"""Pairs looked at together: about 100 MB of intermediate arrays."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Detections and true objects of one picture that overlap, by ascending detection and then true object.

    `detection` and `truth` are [P] indexes into the columns; `iou` is [P] float64, for crowd regions (if asked for)
    the part of the detection that lies inside.
    """

    detection: NDArray[np.int64]
    truth: NDArray[np.int64]
    iou: NDArray[np.float64]


def find_pairs(columns: EvaluationColumns, *, at_least: float, same_class: bool, crowd_regions: bool) -> Pairs:
    """All pairs that overlap by `at_least` (> 0), of one class or of any.

    With `crowd_regions` the union for a crowd region is the detection alone, as COCO defines it. The arithmetic is
    COCO's, operation by operation, so overlaps that lie on a threshold fall on the same side.
    """
    truth_key, key = columns.truth_picture, columns.picture
    if same_class:
        classes = 1 + max(columns.truth_label.max(initial=-1), columns.label.max(initial=-1))
        truth_key = truth_key * classes + columns.truth_label
        key = key * classes + columns.label
    parts = [
        _overlapping(columns, detection, truth, at_least=at_least, crowd_regions=crowd_regions)
        for detection, truth in _joined_on(key, truth_key)
    ]
    empty = np.zeros(0, np.int64)
    detection = np.concatenate([empty, *(part[0] for part in parts)])
    truth = np.concatenate([empty, *(part[1] for part in parts)])
    iou = np.concatenate([np.zeros(0), *(part[2] for part in parts)])
    order = np.lexsort((truth, detection))
    return Pairs(detection[order], truth[order], iou[order])


def _joined_on(
    key: NDArray[np.int64], truth_key: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indexes of detections and true objects with equal keys, some groups at a time."""
    by_key = np.argsort(truth_key, kind="stable")
    first = np.searchsorted(truth_key[by_key], key, side="left")
    count = np.searchsorted(truth_key[by_key], key, side="right") - first
    with_truth = np.flatnonzero(count)
    ends = np.cumsum(count[with_truth])
    start = 0
    while start < len(with_truth):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
        rows = with_truth[start:stop]
        counts = count[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield np.repeat(rows, counts), by_key[np.repeat(first[rows], counts) + within]
        start = stop


def _overlapping(
    columns: EvaluationColumns,
    detection: NDArray[np.int64],
    truth: NDArray[np.int64],
    *,
    at_least: float,
    crowd_regions: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    mine, true = columns.xywh[detection], columns.truth_xywh[truth]
    reach = np.minimum(mine[:, 2:] + mine[:, :2], true[:, 2:] + true[:, :2]) - np.maximum(mine[:, :2], true[:, :2])
    touching = np.flatnonzero((reach > 0).all(axis=1))
    detection, truth, reach = detection[touching], truth[touching], reach[touching]
    mine, true = mine[touching], true[touching]
    shared, own = reach[:, 0] * reach[:, 1], mine[:, 2] * mine[:, 3]
    union = own + true[:, 2] * true[:, 3] - shared
    if crowd_regions:
        union = np.where(columns.truth_crowd[truth], own, union)
    iou = shared / union
    keep = iou >= at_least
    return detection[keep], truth[keep], iou[keep]
