"""Precision and recall against each other and F1 against confidence, with the threshold that serves F1 best."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.accumulate import INTERPOLATION, class_values
from multibox.evaluation.matching import IGNORED, TRUE, MatchedDetections, Protocol, describe, match
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.tables import defined, mean_defined, number, text_table

__all__ = ["Curve", "Curves", "OperatingPoint", "precision_recall"]

_LEVELS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class OperatingPoint:
    """What keeping detections with a score of at least `confidence` gives."""

    confidence: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Curve:
    """One class (or all pooled) at every distinct score, best first: [S] float64 arrays, read-only.

    Without objects recall is undefined: the arrays are empty and `best` is None. `average_precision` is the
    protocol's AP of the class, for the pooled curve their mean.
    """

    name: str
    truths: int
    confidence: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    average_precision: float | None

    @property
    def best(self) -> OperatingPoint | None:
        """The point of the highest F1; of equal ones the one with the highest confidence."""
        if not len(self.f1) or self.f1.max() == 0:
            return None
        i = int(self.f1.argmax())
        return OperatingPoint(*(float(v[i]) for v in (self.confidence, self.precision, self.recall, self.f1)))

    def f1_at(self, confidences: NDArray[np.float64]) -> NDArray[np.float64]:
        """[K] F1 when detections with a score of at least each of [K] confidences are kept; 0 where none is."""
        kept = np.searchsorted(-self.confidence, -confidences, side="right")
        return np.append(0.0, self.f1)[kept]

    def precision_at(self, recalls: NDArray[np.float64]) -> NDArray[np.float64]:
        """[K] the best precision at a recall of at least each of [K] values; 0 where it is never reached."""
        best = np.maximum.accumulate(self.precision[::-1])[::-1]
        return np.append(best, 0.0)[np.searchsorted(self.recall, recalls, side="left")]

    def to_dict(self) -> dict[str, Any]:
        """JSON form: both curves at 101 places (precision at recall 0 … 1, F1 at confidence 0 … 1)."""
        best, known = self.best, self.truths > 0
        return {
            "name": self.name,
            "truths": self.truths,
            "average_precision": self.average_precision,
            "best": None if best is None else asdict(best),
            "precision_at_recall": self.precision_at(_LEVELS).tolist() if known else None,
            "f1_at_confidence": self.f1_at(_LEVELS).tolist() if known else None,
        }


@dataclass(frozen=True, eq=False)
class Curves:
    """The curves of every class and `pooled`, where the detections of all classes are counted together."""

    pooled: Curve
    per_class: tuple[Curve, ...]
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "pooled": self.pooled.to_dict(),
            "per_class": [curve.to_dict() for curve in self.per_class],
            "protocol": self.protocol,
        }

    def table(self, *, digits: int = 3) -> str:
        """The best confidence threshold of every class with objects, and of all together."""
        rows = []
        for curve in (self.pooled, *(curve for curve in self.per_class if curve.truths)):
            best = curve.best
            values = (None,) * 4 if best is None else (best.confidence, best.precision, best.recall, best.f1)
            rows.append([curve.name, str(curve.truths), *(number(value, digits) for value in values)])
        header = ("class", "truths", "best confidence", "precision", "recall", "F1")
        return f"{text_table(header, rows)}\n{self.protocol}"


def precision_recall(data: EvaluationSet, *, protocol: Protocol = "coco", iou: float = 0.5) -> Curves:
    """The curves under a protocol's matching at one overlap threshold.

    Ignored detections (crowd, for VOC difficult objects) are left out. The pooled curve mixes classes, as one
    threshold for all of them does.

    Raises:
        OptionError, ContractError: an unknown protocol, an impossible threshold.
    """
    matched, measure = match(data, protocol, iou), INTERPOLATION[protocol]
    precision = {label: float(values[measure][0, 0]) for label, values in class_values(matched, [measure])}
    curves = []
    for label, name in enumerate(data.class_map.names):
        truths = int(matched.positives[label].sum())
        curves.append(_curve(matched, matched.of_class(label), name, truths, precision.get(label)))
    scored = [curve.average_precision for curve in curves if curve.average_precision is not None]
    mean = defined(mean_defined(np.array(scored, np.float64)))
    pooled = _curve(matched, slice(None), "all classes", int(matched.positives.sum()), mean)
    return Curves(pooled, tuple(curves), describe(protocol, iou))


def _curve(matched: MatchedDetections, part: slice, name: str, truths: int, precision: float | None) -> Curve:
    outcome, score = matched.outcome[0, part], matched.score[part]
    kept = outcome != IGNORED
    outcome, score = outcome[kept], score[kept]
    order = np.argsort(-score, kind="stable")
    outcome, score = outcome[order], score[order]
    last_of_equal = np.flatnonzero(np.r_[np.diff(score) != 0, True][: len(score)]) if truths else np.zeros(0, np.int64)
    found, kept_count = np.cumsum(outcome == TRUE)[last_of_equal], last_of_equal + 1
    columns = (score[last_of_equal], found / kept_count, found / max(truths, 1), 2 * found / (kept_count + truths))
    for values in columns:
        values.flags.writeable = False
    return Curve(name, truths, *columns, average_precision=precision)
