"""How sure a number is: intervals from resampled pictures, and whether one model beats another on the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox import __version__
from multibox.errors import ContractError, OptionError, did_you_mean
from multibox.evaluation.accumulate import Measure, class_values
from multibox.evaluation.matching import IOU_THRESHOLDS, MatchedDetections, match_coco, match_voc
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.tables import defined, number, text_table

__all__ = ["DEFAULT_METRICS", "Bootstrap", "Comparison", "Difference", "Interval", "bootstrap", "compare"]

DEFAULT_METRICS = ("ap", "ap50", "ap75", "voc_ap50", "voc_ap50_11point")


@dataclass(frozen=True)
class Metric:
    """What a number is counted from: a matching (COCO's with a size range, or VOC's) at some thresholds.

    `max_rank` keeps only the best detections of each picture and class.
    """

    area: str | None
    thresholds: tuple[int, ...]
    measure: Measure
    max_rank: int | None = None


_EVERY, _IOU50, _IOU75 = tuple(range(len(IOU_THRESHOLDS))), (0,), (5,)

METRICS: dict[str, Metric] = {
    "ap": Metric("all", _EVERY, "101"),
    "ap50": Metric("all", _IOU50, "101"),
    "ap75": Metric("all", _IOU75, "101"),
    "ap_small": Metric("small", _EVERY, "101"),
    "ap_medium": Metric("medium", _EVERY, "101"),
    "ap_large": Metric("large", _EVERY, "101"),
    "ar1": Metric("all", _EVERY, "recall", 1),
    "ar10": Metric("all", _EVERY, "recall", 10),
    "ar100": Metric("all", _EVERY, "recall"),
    "ar_small": Metric("small", _EVERY, "recall"),
    "ar_medium": Metric("medium", _EVERY, "recall"),
    "ar_large": Metric("large", _EVERY, "recall"),
    "voc_ap50": Metric(None, _IOU50, "area"),
    "voc_ap50_11point": Metric(None, _IOU50, "11"),
}
"""The numbers that can be resampled; the first twelve are the fields of `CocoResult`, the others VOC's."""


@dataclass(frozen=True)
class Interval:
    """A number and the interval that holds the middle `level` of its values over resampled pictures.

    `value` is the number on the pictures themselves. `undefined` counts resamples in which nothing was asked for;
    they are left out. None where there is nothing to say.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    undefined: int


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of several numbers."""

    intervals: tuple[Interval, ...]
    level: float
    resamples: int
    pictures: int
    seed: int
    protocol: str
    engine: str

    def __getitem__(self, metric: str) -> Interval:
        """The interval of a metric that was asked for."""
        return next(interval for interval in self.intervals if interval.metric == metric)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; undefined numbers are null."""
        return {**asdict(self), "intervals": [asdict(row) for row in self.intervals]}

    def table(self, *, digits: int = 4) -> str:
        """A line per number."""
        rows = [[i.metric, *(number(v, digits) for v in (i.value, i.low, i.high))] for i in self.intervals]
        return f"{text_table(('metric', 'value', 'low', 'high'), rows)}\n{self.protocol}"


@dataclass(frozen=True)
class Difference:
    """B minus A for one number, with its interval over resampled pictures.

    `not_better` is the part of the resamples in which B is not above A, ties counted half: small means that B is
    better for reasons that do not hang on a few pictures. It is no p-value of a named test, but is read like a
    one-sided one. 0.5 where both are the same.
    """

    metric: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    not_better: float | None
    undefined: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same pictures."""

    differences: tuple[Difference, ...]
    level: float
    resamples: int
    pictures: int
    seed: int
    protocol: str
    engine: str
    name_a: str = "A"
    name_b: str = "B"

    def __getitem__(self, metric: str) -> Difference:
        """The difference in a metric that was asked for."""
        return next(row for row in self.differences if row.metric == metric)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; undefined numbers are null."""
        return {**asdict(self), "differences": [asdict(row) for row in self.differences]}

    def table(self, *, digits: int = 4) -> str:
        """A line per number."""
        header = ("metric", self.name_a, self.name_b, "difference", "low", "high", "not better")
        rows = [
            [d.metric, *(number(v, digits) for v in (d.a, d.b, d.difference, d.low, d.high, d.not_better))]
            for d in self.differences
        ]
        return f"{text_table(header, rows)}\n{self.protocol}"


def bootstrap(
    data: EvaluationSet,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Percentile intervals over pictures drawn with replacement (Efron and Tibshirani, 1993, chapter 13).

    Pictures are matched once; each resample only counts them again, exactly: the unresampled value is that of
    `evaluate_coco` and `evaluate_voc`. A picture drawn twice counts as two equal pictures side by side, each detection
    followed by its copy.

    AP leans upwards in small samples, so an interval of few pictures may not lie evenly around the value.

    Raises:
        OptionError: an unknown metric.
        ContractError: fewer than one resample, or a level outside (0, 1).
    """
    _check(metrics, resamples, level)
    weights = _draws(len(data), resamples, seed)
    rows = []
    for metric, (value, *resampled) in measure(data, metrics, weights).items():
        values = np.array(resampled)
        low, high = _limits(values, level)
        undefined = int(np.isnan(values).sum())
        rows.append(Interval(metric, defined(value), low, high, undefined))
    return Bootstrap(tuple(rows), level, resamples, len(data), seed, _protocol(level, resamples), _engine())


def compare(
    a: EvaluationSet,
    b: EvaluationSet,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Whether model B is better than model A on the pictures both were run on (paired bootstrap).

    Every resample draws the same pictures for both, so what makes a picture hard for both cancels out.

    Raises:
        ContractError: the truth of `a` and `b` is not the same; or as in `bootstrap`.
    """
    _check(metrics, resamples, level)
    _require_same_truth(a, b)
    weights = _draws(len(a), resamples, seed)
    measured_a, measured_b = measure(a, metrics, weights), measure(b, metrics, weights)
    rows = []
    for metric in measured_a:
        difference = measured_b[metric] - measured_a[metric]
        change = difference[1:]
        known = change[~np.isnan(change)]
        not_better = ((known < 0) + (known == 0) / 2).mean() if known.size else np.nan
        rows.append(
            Difference(
                metric,
                defined(measured_a[metric][0]),
                defined(measured_b[metric][0]),
                defined(difference[0]),
                *_limits(change, level),
                defined(not_better),
                len(change) - known.size,
            )
        )
    return Comparison(
        tuple(rows),
        level,
        resamples,
        len(a),
        seed,
        _protocol(level, resamples) + ", paired",
        _engine(),
        a.name or "A",
        b.name or "B",
    )


def measure(
    data: EvaluationSet, metrics: Sequence[str], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """[B] float64 for each metric: its value where picture n counts `weights[n, b]` times, NaN where undefined.

    `weights` is [N, B] whole numbers. Pictures are matched once, and metrics of one matching share the work.
    """
    wanted = {name: METRICS[name] for name in metrics}
    areas = sorted({metric.area for metric in wanted.values() if metric.area is not None})
    matched: dict[str | None, MatchedDetections] = dict(
        zip(areas, match_coco(data, thresholds=IOU_THRESHOLDS, areas=areas), strict=True) if areas else ()
    )
    if None in {metric.area for metric in wanted.values()}:
        matched[None] = match_voc(data)
    results: dict[str, NDArray[np.float64]] = {}
    for area, max_rank in {(metric.area, metric.max_rank) for metric in wanted.values()}:
        group = {name: metric for name, metric in wanted.items() if (metric.area, metric.max_rank) == (area, max_rank)}
        results |= _mean_over_classes(matched[area], group, weights, max_rank)
    return {name: results[name] for name in metrics}


def _mean_over_classes(
    matched: MatchedDetections, metrics: dict[str, Metric], weights: NDArray[np.float64], max_rank: int | None
) -> dict[str, NDArray[np.float64]]:
    """Means over classes and thresholds; a class counts in the resamples that ask for it."""
    thresholds = sorted({t for metric in metrics.values() for t in metric.thresholds})
    measures = {metric.measure for metric in metrics.values()}
    sums, classes = {name: np.zeros(weights.shape[1]) for name in metrics}, np.zeros(weights.shape[1])
    for label, values in class_values(matched, measures, weights, max_rank=max_rank, thresholds=thresholds):
        asked = matched.positives[label] @ weights > 0
        classes += asked
        for name, metric in metrics.items():
            chosen = values[metric.measure][[thresholds.index(t) for t in metric.thresholds]]
            sums[name] += np.where(asked, chosen.mean(axis=0), 0.0)
    undefined = classes == 0
    return {name: np.where(undefined, np.nan, total / np.where(undefined, 1, classes)) for name, total in sums.items()}


def _check(metrics: Sequence[str], resamples: int, level: float) -> None:
    for metric in metrics:
        if metric not in METRICS:
            raise OptionError(f"unknown metric {metric!r}; {did_you_mean(metric, METRICS)}")
    if resamples < 1 or not 0 < level < 1:
        raise ContractError(f"expected resamples of 1 or more and a level inside 0 … 1, got {resamples} and {level}")


def _require_same_truth(a: EvaluationSet, b: EvaluationSet) -> None:
    a.class_map.require_same(b.class_map, mine=a.name or "A", theirs=b.name or "B")
    if len(a) != len(b):
        raise ContractError(f"A has {len(a)} pictures and B has {len(b)}; compare on the same ones")
    for i, (mine, theirs) in enumerate(zip(a.truths, b.truths, strict=True)):
        same = mine is theirs or (
            mine.image_id == theirs.image_id
            and mine.detections == theirs.detections
            and np.array_equal(mine.crowd, theirs.crowd)
            and np.array_equal(mine.difficult, theirs.difficult)
            and np.array_equal(mine.area, theirs.area, equal_nan=True)
        )
        if not same:
            raise ContractError(f"the truth of picture {i} differs between A and B; compare on the same data")


def _draws(pictures: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """[N, 1 + B] how often each picture counts: once in the first column, drawn with replacement in the others."""
    weights = np.ones((pictures, 1 + resamples))
    if pictures:
        drawn = np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
        weights[:, 1:] = drawn.T
    return weights


def _limits(values: NDArray[np.float64], level: float) -> tuple[float | None, float | None]:
    known = values[~np.isnan(values)]
    if not known.size:
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _protocol(level: float, resamples: int) -> str:
    return f"{level:.0%} percentile intervals of {resamples} resamples of the pictures"


def _engine() -> str:
    return f"multibox {__version__} (numpy {np.__version__})"
