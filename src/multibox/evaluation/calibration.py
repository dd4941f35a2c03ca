"""Whether a score of 0.8 means right in 8 of 10 cases: calibration error and reliability data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError
from multibox.evaluation.matching import IGNORED, TRUE, Protocol, describe, match
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.tables import number, text_table

__all__ = ["Calibration", "CalibrationError", "ReliabilityBin", "calibration"]


@dataclass(frozen=True)
class ReliabilityBin:
    """Detections with a score above `low` and up to `high`; mean score and part that is right, None if there are none.

    The first bin also holds the scores equal to its lower end.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    precision: float | None


@dataclass(frozen=True)
class CalibrationError:
    """Expected (count-weighted) and greatest gap between score and precision; None without detections.

    `ece` uses bins of equal width, `ece_equal_mass` bins of about equal counts, where a full first bin of low scores
    hides nothing.
    """

    name: str
    count: int
    ece: float | None
    ece_equal_mass: float | None
    max_error: float | None


@dataclass(frozen=True)
class Calibration:
    """The calibration of all classes together, with both kinds of bins, and of each class if asked for."""

    overall: CalibrationError
    per_class: tuple[CalibrationError, ...]
    bins: tuple[ReliabilityBin, ...]
    bins_equal_mass: tuple[ReliabilityBin, ...]
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form; undefined numbers are null."""
        rows = {name: [asdict(row) for row in getattr(self, name)] for name in ("per_class", "bins", "bins_equal_mass")}
        return {"overall": asdict(self.overall), **rows, "protocol": self.protocol}

    def table(self, *, digits: int = 4) -> str:
        """A line for all classes and one for each class that was asked for and has detections."""
        rows = [
            [e.name, str(e.count), *(number(value, digits) for value in (e.ece, e.ece_equal_mass, e.max_error))]
            for e in (self.overall, *(row for row in self.per_class if row.count))
        ]
        header = ("class", "detections", "ECE", "ECE equal mass", "max error")
        return f"{text_table(header, rows)}\n{self.protocol}"


def calibration(
    data: EvaluationSet,
    *,
    protocol: Protocol = "coco",
    iou: float = 0.5,
    bins: int = 15,
    confidence: float = 0.0,
    per_class: bool = False,
) -> Calibration:
    """Compare scores with how often detections are right (Guo et al., 2017, with "right" as true positive at `iou`).

    Only detections with a score of at least `confidence` count: detectors give hundreds of near-zero scores, and how
    many of them are kept decides the plain error. Ignored detections are left out.

    Raises:
        OptionError, ContractError: an unknown protocol, an impossible threshold or number of bins.
    """
    if bins < 1 or not 0 <= confidence <= 1:
        raise ContractError(f"expected 1 bin or more and confidence in 0 … 1, got {bins} and {confidence}")
    matched = match(data, protocol, iou)
    kept = (matched.outcome[0] != IGNORED) & (matched.score >= np.float32(confidence))
    label, score, right = matched.label[kept], matched.score[kept], matched.outcome[0, kept] == TRUE
    rows = []
    for index, name in enumerate(data.class_map.names if per_class else ()):
        rows.append(_errors(name, score[label == index], right[label == index], bins))
    return Calibration(
        overall=_errors("all classes", score, right, bins),
        per_class=tuple(rows),
        bins=_binned(score, right, np.linspace(0, 1, bins + 1)),
        bins_equal_mass=_binned(score, right, _equal_mass_edges(score, bins)),
        protocol=f"{describe(protocol, iou)}, confidence {confidence:g} and above, {bins} bins",
    )


def _errors(name: str, score: NDArray[np.float64], right: NDArray[np.bool_], bins: int) -> CalibrationError:
    width, mass = (
        _binned(score, right, np.linspace(0, 1, bins + 1)),
        _binned(score, right, _equal_mass_edges(score, bins)),
    )
    gaps = [_gap(row) for row in width if row.count]
    return CalibrationError(name, len(score), _expected(width), _expected(mass), max(gaps, default=None))


def _gap(row: ReliabilityBin) -> float:
    return 0.0 if row.confidence is None or row.precision is None else abs(row.confidence - row.precision)


def _expected(rows: tuple[ReliabilityBin, ...]) -> float | None:
    total = sum(row.count for row in rows)
    return sum(row.count * _gap(row) for row in rows) / total if total else None


def _equal_mass_edges(score: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Quantiles of the scores. Equal scores stay together, so fewer bins may be left."""
    if not len(score):
        return np.array([0.0, 1.0])
    edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1), method="inverted_cdf"))
    return edges if len(edges) > 1 else np.repeat(edges, 2)


def _binned(
    score: NDArray[np.float64], right: NDArray[np.bool_], edges: NDArray[np.float64]
) -> tuple[ReliabilityBin, ...]:
    place = np.clip(np.searchsorted(edges, score, side="left") - 1, 0, len(edges) - 2)
    count = np.bincount(place, minlength=len(edges) - 1)
    confidence = np.bincount(place, score, minlength=len(edges) - 1) / np.maximum(count, 1)
    precision = np.bincount(place, right, minlength=len(edges) - 1) / np.maximum(count, 1)
    return tuple(
        ReliabilityBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(count[i]),
            confidence=float(confidence[i]) if count[i] else None,
            precision=float(precision[i]) if count[i] else None,
        )
        for i in range(len(count))
    )
