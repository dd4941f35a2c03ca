"""What an exported file costs on annotated pictures: AP against the network it came from, with a paired interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from multibox.data import Dataset
from multibox.evaluation import EvaluationSet, compare, evaluate_coco, validate
from multibox.export.verify.artefact import Checked
from multibox.export.verify.compare import worst_classes

__all__ = ["Cost", "cost", "predictions"]

RESAMPLES = 1000
GATED = ("ap", "ap50")


def predictions(checked: Checked, dataset: Dataset, *, name: str) -> EvaluationSet:
    """Truth and predictions of every picture of a data set, in the classes that both know.

    Raises:
        ClassMapError: no class in common.
    """
    spec = checked.card.postprocess
    return validate(
        checked,
        dataset,
        conf=spec.score_threshold,
        iou=spec.nms_iou,
        max_det=spec.max_detections,
        agnostic_nms=spec.class_agnostic,
        name=name,
    ).data


@dataclass(frozen=True)
class Cost:
    """AP before and after, each class's AP50 before and after, and the paired interval of the differences."""

    before: dict[str, float]
    after: dict[str, float]
    per_class: dict[str, tuple[float, float]]
    details: dict[str, Any]

    def drop(self, metric: str) -> float:
        """How much is lost."""
        return self.before[metric] - self.after[metric]

    def worst(self) -> str:
        """The classes that lose most, in words."""
        return worst_classes([(name, after - before) for name, (before, after) in self.per_class.items()])

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "before": self.before,
            "after": self.after,
            "drop": {metric: self.drop(metric) for metric in self.before},
            "per_class_ap50": {name: list(pair) for name, pair in self.per_class.items()},
            **self.details,
        }


def cost(before: EvaluationSet, after: EvaluationSet, *, resamples: int = RESAMPLES) -> Cost:
    """Compare two predictions of the same pictures; classes that one side lost count as not found.

    Raises:
        ContractError: nothing in the data set counts.
    """
    first, second = evaluate_coco(before), evaluate_coco(after)
    names = {row.name: row for row in second.per_class}
    per_class = {
        row.name: (row.ap50, (names[row.name].ap50 or 0.0) if row.name in names else 0.0)
        for row in first.per_class
        if row.ap50 is not None
    }
    details: dict[str, Any] = {"protocol": first.protocol, "engine": first.engine, "pictures": first.pictures}
    if before.class_map == after.class_map:
        details["paired_interval"] = compare(before, after, metrics=GATED, resamples=resamples).to_dict()
    else:
        details["paired_interval"] = None
    return Cost(
        {name: float(getattr(first, name) or 0.0) for name in GATED},
        {name: float(getattr(second, name) or 0.0) for name in GATED},
        per_class,
        details,
    )
