"""Headline numbers of many resamples at once: every picture is matched once, and then only counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.accumulate import Interpolation, average_precision, climbs, ladder, recall
from multibox.evaluation.coco_matching import IOU_THRESHOLDS, match_coco
from multibox.evaluation.judged import Judged
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.voc_matching import match_voc

__all__ = ["METRICS", "measure"]

_BLOCK = 1 << 20
"""Numbers per intermediate array, so that a handful of them fits into a processor's cache or nearly."""


@dataclass(frozen=True)
class Metric:
    """What a number is counted from: a matching (COCO's with a size range, or VOC's) at some thresholds.

    `interpolation` None means recall; `max_rank` keeps only the best detections of each picture and class.
    """

    area: str | None
    thresholds: tuple[int, ...]
    interpolation: Interpolation | None
    max_rank: int | None = None


_EVERY, _IOU50, _IOU75 = tuple(range(len(IOU_THRESHOLDS))), (0,), (5,)

METRICS: dict[str, Metric] = {
    "ap": Metric("all", _EVERY, "101"),
    "ap50": Metric("all", _IOU50, "101"),
    "ap75": Metric("all", _IOU75, "101"),
    "ap_small": Metric("small", _EVERY, "101"),
    "ap_medium": Metric("medium", _EVERY, "101"),
    "ap_large": Metric("large", _EVERY, "101"),
    "ar1": Metric("all", _EVERY, None, 1),
    "ar10": Metric("all", _EVERY, None, 10),
    "ar100": Metric("all", _EVERY, None),
    "ar_small": Metric("small", _EVERY, None),
    "ar_medium": Metric("medium", _EVERY, None),
    "ar_large": Metric("large", _EVERY, None),
    "voc_ap50": Metric(None, _IOU50, "area"),
    "voc_ap50_11point": Metric(None, _IOU50, "11"),
}
"""The numbers that can be resampled; the first twelve are the fields of `CocoResult`, the others VOC's."""


def measure(
    data: EvaluationSet, metrics: Sequence[str], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """[B] float64 for each metric: its value where picture n counts `weights[n, b]` times, NaN where undefined.

    `weights` is [N, B] whole numbers. Metrics of one matching share the work.
    """
    wanted = {name: METRICS[name] for name in metrics}
    areas = sorted({metric.area for metric in wanted.values() if metric.area is not None})
    judged: dict[str | None, Judged] = dict(
        zip(areas, match_coco(data, thresholds=IOU_THRESHOLDS, areas=areas), strict=True) if areas else ()
    )
    if None in {metric.area for metric in wanted.values()}:
        judged[None] = match_voc(data)
    results: dict[str, NDArray[np.float64]] = {}
    for source in {(metric.area, metric.max_rank) for metric in wanted.values()}:
        group = {name: metric for name, metric in wanted.items() if (metric.area, metric.max_rank) == source}
        results |= _measure_group(judged[source[0]], group, weights)
    return {name: results[name] for name in metrics}


def _measure_group(
    judged: Judged, metrics: dict[str, Metric], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Means over classes and thresholds; a class counts in the resamples that ask for it."""
    thresholds = sorted({t for metric in metrics.values() for t in metric.thresholds})
    max_rank = next(iter(metrics.values())).max_rank
    sums = {name: np.zeros(weights.shape[1]) for name in metrics}
    defined = np.zeros(weights.shape[1])
    for label in np.flatnonzero(judged.positives.any(axis=1)):
        rungs = ladder(judged, int(label), max_rank=max_rank, thresholds=thresholds)
        for block in _blocks(weights.shape[1], len(rungs.picture)):
            part = np.ascontiguousarray(weights[:, block])
            asked = rungs.positives @ part > 0
            defined[block] += asked
            for t, counts in zip(thresholds, climbs(rungs, part), strict=True):
                for name, metric in metrics.items():
                    if t in metric.thresholds:
                        how = metric.interpolation
                        values = recall(counts) if how is None else average_precision(counts, how)
                        sums[name][block] += np.where(asked, values, 0.0)
    undefined = defined == 0
    return {
        name: np.where(undefined, np.nan, total / np.where(undefined, 1, defined) / len(metrics[name].thresholds))
        for name, total in sums.items()
    }


def _blocks(resamples: int, rungs: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, rungs))
    return (slice(start, start + step) for start in range(0, resamples, step))
