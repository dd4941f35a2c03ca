"""Everything that is said of a validation: computed once, then told as text, as JSON values and as a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multibox.errors import MissingDependencyError
from multibox.evaluation.calibration import Calibration, calibration
from multibox.evaluation.coco import CocoResult, Engine, evaluate_coco
from multibox.evaluation.confusion import ConfusionMatrix, confusion_matrix
from multibox.evaluation.curves import Curves, OperatingPoint, precision_recall
from multibox.evaluation.errors import ErrorSplit, error_split
from multibox.evaluation.picture_costs import picture_costs
from multibox.evaluation.plots import (
    plot_calibration,
    plot_confusion,
    plot_errors,
    plot_f1,
    plot_precision_recall,
    save_png,
)
from multibox.evaluation.report import report_page
from multibox.evaluation.run_folder import save_evaluation
from multibox.evaluation.tables import number
from multibox.evaluation.uncertainty import Bootstrap, bootstrap
from multibox.evaluation.validate import Validation
from multibox.evaluation.voc import VocResult, evaluate_voc
from multibox.files import atomic_write

__all__ = ["Results", "measure", "write_results"]

# Our names of COCO's numbers in the JSON object, as COCO's papers write them.
HEADLINE = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP_small",
    "ap_medium": "AP_medium",
    "ap_large": "AP_large",
}
USUAL_CONFIDENCE = 0.25  # where there is no best F1, because nothing was found

Say = Callable[[str], None]


@dataclass(frozen=True)
class Results:
    """The numbers of a model on a data set.

    Attributes:
        validation: what they were computed from.
        coco: COCO's numbers.
        voc: VOC's.
        intervals: 95 % intervals of the main ones; None where none were asked for.
        curves: precision, recall and F1 over the scores.
        errors: what was lost by which kind of error.
        calibration: whether scores are probabilities.
        confusion: at the confidence of the best F1.
    """

    validation: Validation
    coco: CocoResult
    voc: VocResult
    intervals: Bootstrap | None
    curves: Curves
    errors: ErrorSplit
    calibration: Calibration
    confusion: ConfusionMatrix

    @property
    def best(self) -> OperatingPoint | None:
        """Where F1 is greatest, over all classes."""
        return self.curves.pooled.best

    @property
    def confidence(self) -> float:
        """The score of the best F1."""
        return self.best.confidence if self.best else USUAL_CONFIDENCE

    def summary(self) -> dict[str, Any]:
        """The main numbers as JSON values."""
        coco = self.coco
        return {
            "protocol": coco.protocol,
            "engine": coco.engine,
            "images": coco.pictures,
            **{name: getattr(coco, key) for key, name in HEADLINE.items()},
            "per_class": {
                row.name: {"truths": row.truths, "AP": row.ap, "AP50": row.ap50, "AP75": row.ap75}
                for row in coco.per_class
            },
            "VOC_AP50": self.voc.ap50,
            "VOC_AP50_11point": self.voc.ap50_11point,
            "unreadable": [str(error) for error in self.validation.problems],
            "notes": list(self.validation.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON values."""
        best = None if self.best is None else {**asdict(self.best), "confidence": _below(self.best.confidence)}
        return {
            "summary": self.summary(),
            "name": self.validation.data.name,
            "settings": {**self.validation.settings, "seconds": self.validation.seconds},
            "coco": self.coco.to_dict(),
            "voc": self.voc.to_dict(),
            "intervals": None if self.intervals is None else self.intervals.to_dict(),
            "errors": self.errors.to_dict(),
            "calibration": self.calibration.to_dict(),
            "best_f1": best,
        }

    def table(self) -> str:
        """Every number as text for a terminal."""
        texts = [self.coco.table(), self.voc.table(), self.errors.table()]
        texts += [self.intervals.table()] if self.intervals else []
        if self.best:
            texts.append(
                f"best F1 {self.best.f1:.4f} with conf={_below(self.best.confidence):.9g} "
                f"(precision {self.best.precision:.4f}, recall {self.best.recall:.4f})"
            )
        return "\n\n".join(texts)


def measure(validation: Validation, *, engine: Engine = "auto", resamples: int = 1000) -> Results:
    """Every number of a validation.

    Args:
        validation: predictions beside truth.
        engine: that computes COCO's numbers.
        resamples: of the bootstrap for the intervals; 0 for none.
    """
    data = validation.data
    curves = precision_recall(data)
    best = curves.pooled.best
    return Results(
        validation,
        evaluate_coco(data, engine=engine),
        evaluate_voc(data),
        bootstrap(data, resamples=resamples) if resamples else None,
        curves,
        error_split(data),
        calibration(data),
        confusion_matrix(data, confidence=best.confidence if best else USUAL_CONFIDENCE),
    )


def write_results(folder: Path, results: Results, *, origin: str, say: Say) -> None:
    """Fill a run folder: numbers, truth and predictions, plots, report.

    Args:
        folder: an existing one.
        results: what is written.
        origin: where the data came from, in words.
        say: told what cannot be made, and why.
    """
    data = results.validation.data
    save_evaluation(folder, data)
    plots = _plots(folder, results, say)
    metrics = {**results.to_dict(), "data": origin}
    metrics["summary"]["run"] = str(folder)
    atomic_write(folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False))
    coco, voc = results.coco, results.voc
    page = report_page(
        title=data.name,
        subtitle=origin,
        headline=[
            *((number(getattr(coco, key)) + _interval(results.intervals, key), name) for key, name in HEADLINE.items()),
            (number(voc.ap50) + _interval(results.intervals, "voc_ap50"), "VOC AP50"),
        ],
        costs=picture_costs(data, confidence=results.confidence),
        confidence=results.confidence,
        data=data,
        plots=plots,
        errors=[(error.kind, error.count, number(error.ap_gain), error.meaning) for error in results.errors.errors],
        classes=[
            (c.name, c.truths, number(c.ap), number(c.ap50), number(c.ap75), number(v.ap50))
            for c, v in zip(coco.per_class, voc.per_class, strict=True)
        ],
        notes=[
            *results.validation.notes,
            coco.protocol,
            f"engine: {coco.engine}",
            voc.protocol,
            results.calibration.protocol,
            *map(str, results.validation.problems),
        ],
    )
    atomic_write(folder / "report.html", page)


def _below(score: float) -> float:
    """The `conf` that just keeps a score: predictions keep scores above it, in float32."""
    return float(np.nextafter(np.float32(score), np.float32(0)))


def _interval(intervals: Bootstrap | None, metric: str) -> str:
    known = [] if intervals is None else [i for i in intervals.intervals if i.metric == metric and i.low is not None]
    return f" [{number(known[0].low)}, {number(known[0].high)}]" if known else ""


def _plots(folder: Path, results: Results, say: Say) -> list[tuple[str, bytes]]:
    """Write the plots; without matplotlib there are none, and that is said."""
    drawn = []
    plots: tuple[tuple[str, str, Callable[[Any], Any], Any], ...] = (
        ("precision_recall", "precision and recall", plot_precision_recall, results.curves),
        ("f1", "F1 against confidence", plot_f1, results.curves),
        ("confusion", "confusion at the confidence of the best F1", plot_confusion, results.confusion),
        ("calibration", "reliability of the scores", plot_calibration, results.calibration),
        ("errors", "what repairing each kind of error would add", plot_errors, results.errors),
    )
    try:
        for name, title, plot, values in plots:
            path = folder / f"{name}.png"
            save_png(plot(values), path)
            drawn.append((title, path.read_bytes()))
    except MissingDependencyError as error:
        say(f"no plots: {error}")
    return drawn
