"""What an exported file costs on annotated pictures: AP against the network it came from, with a paired interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from multibox.data import Dataset
from multibox.evaluation import EvaluationSet, compare, evaluate_coco, validate
from multibox.export.verify.artefact import Seen, to_detections
from multibox.export.verify.compare import worst_classes
from multibox.inference import Detector
from multibox.spec.card import ModelCard
from multibox.spec.detections import Detections

__all__ = ["Cost", "See", "cost", "predictions"]

RESAMPLES = 1000
GATED = ("ap", "ap50")

See = Callable[[Iterable[NDArray[np.uint8]]], Iterator[Seen]]


@dataclass(frozen=True)
class _Engine:
    name: str
    device: str = "cpu"


class _Predictor:
    """As much of a `Detector` as a validation reads, with thresholds as they are inside the file."""

    def __init__(self, see: See, card: ModelCard, engine: str) -> None:
        self.card, self.engine = card, _Engine(engine)
        self._see = see

    def __call__(self, picture: NDArray[np.uint8], *, classes: Iterable[int] | None = None, **_: Any) -> Detections:
        """Detections of the wanted classes."""
        rgb = np.asarray(picture)
        found = to_detections(next(iter(self._see([rgb]))).found, self.card, rgb)
        if classes is None:
            return found
        keep = np.isin(found.labels, list(classes))
        assert found.scores is not None
        return Detections(
            found.boxes_xyxy[keep],
            found.labels[keep],
            found.scores[keep],
            found.class_map,
            found.picture_size_hw,
        )


def predictions(see: See, card: ModelCard, dataset: Dataset, *, engine: str, name: str) -> EvaluationSet:
    """Truth and predictions of every picture of a data set, in the classes that both know.

    Raises:
        ClassMapError: no class in common.
    """
    spec = card.postprocess
    detector = cast(Detector, _Predictor(see, card, engine))
    return validate(
        detector, dataset, conf=spec.score_threshold, iou=spec.nms_iou, max_det=spec.max_detections, name=name
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
