"""COCO's twelve numbers, by COCO's own tools or by an equal implementation in NumPy."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from multibox.errors import OptionError, counted, did_you_mean
from multibox.evaluation import coco_engines
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.tables import defined, mean_defined, number, text_table

__all__ = ["COCO_PROTOCOL", "ENGINES", "CocoClass", "CocoResult", "evaluate_coco"]

COCO_PROTOCOL = "COCO bbox: AP at IoU 0.50:0.05:0.95, 101 recall levels, best 100 detections per picture and class"

Engine = Literal["auto", "pycocotools", "numpy"]
ENGINES: tuple[Engine, ...] = ("auto", "pycocotools", "numpy")

_IOU50, _IOU75 = 0, 5


@dataclass(frozen=True)
class CocoClass:
    """One class: truths, and AP values in 0 … 1 or None where the class has no object that counts."""

    name: str
    truths: int
    detections: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float | None


@dataclass(frozen=True)
class CocoResult:
    """The twelve numbers in 0 … 1, unrounded; None where nothing counts (COCO's tools print −1).

    `ap` is the mean over IoU 0.50:0.05:0.95, `ap_small` … over objects of up to 32², up to 96² and more square pixels,
    `ar1` … the recall with the best 1, 10 and 100 detections of a picture and class. Classes without objects are left
    out of means.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: tuple[CocoClass, ...]
    pictures: int
    protocol: str
    engine: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form; undefined numbers are null."""
        return {**asdict(self), "per_class": [asdict(row) for row in self.per_class]}

    def table(self, *, digits: int = 4) -> str:
        """The headline and one line per class with objects or detections."""
        header = ("class", "truths", "AP", "AP50", "AP75", "small", "medium", "large", "AR100")
        every = (self.ap, self.ap50, self.ap75, self.ap_small, self.ap_medium, self.ap_large, self.ar100)
        total = sum(row.truths for row in self.per_class)
        rows = [["all", str(total), *(number(value, digits) for value in every)]]
        for row in self.per_class:
            if row.truths or row.detections:
                values = (row.ap, row.ap50, row.ap75, row.ap_small, row.ap_medium, row.ap_large, row.ar100)
                rows.append([row.name, str(row.truths), *(number(value, digits) for value in values)])
        return (
            f"{text_table(header, rows)}\n{self.protocol}\nengine: {self.engine}, {counted(self.pictures, 'picture')}"
        )


def evaluate_coco(data: EvaluationSet, *, engine: Engine = "auto") -> CocoResult:
    """COCO's numbers for boxes.

    Args:
        data: truth and predictions. Crowd regions and the objects' own areas are honoured; `difficult` means nothing
            to COCO, and the protocol says so where such objects are present.
        engine: "pycocotools", COCO's own tools; "numpy", which needs no other package; "auto" takes pycocotools if it
            is installed and else numpy. Both give the same numbers.

    Raises:
        MissingDependencyError: the engine is not installed.
        OptionError: no such engine.
    """
    if engine not in ENGINES:
        raise OptionError(f"unknown engine {engine!r}; {did_you_mean(str(engine), ENGINES)}")
    if engine == "auto":
        engine = "pycocotools" if importlib.util.find_spec("pycocotools") else "numpy"
    scores = (coco_engines.by_numpy if engine == "numpy" else coco_engines.by_pycocotools)(data)
    precision, recall = scores.precision, scores.recall
    return CocoResult(
        ap=_mean(precision["all"]),
        ap50=_mean(precision["all"][_IOU50]),
        ap75=_mean(precision["all"][_IOU75]),
        ap_small=_mean(precision["small"]),
        ap_medium=_mean(precision["medium"]),
        ap_large=_mean(precision["large"]),
        ar1=_mean(recall["1"]),
        ar10=_mean(recall["10"]),
        ar100=_mean(recall["100"]),
        ar_small=_mean(recall["small"]),
        ar_medium=_mean(recall["medium"]),
        ar_large=_mean(recall["large"]),
        per_class=tuple(_class_row(data, scores, label) for label in range(len(data.class_map))),
        pictures=len(data),
        protocol=_protocol(data),
        engine=scores.engine,
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    return defined(mean_defined(values))


def _class_row(data: EvaluationSet, scores: coco_engines.Scores, label: int) -> CocoClass:
    columns, ap = data.columns, scores.precision["all"][:, label]
    return CocoClass(
        name=data.class_map.names[label],
        truths=int(np.count_nonzero((columns.truth_label == label) & ~columns.truth_crowd)),
        detections=int(np.count_nonzero(columns.label == label)),
        ap=_mean(ap),
        ap50=defined(ap[_IOU50]),
        ap75=defined(ap[_IOU75]),
        ap_small=_mean(scores.precision["small"][:, label]),
        ap_medium=_mean(scores.precision["medium"][:, label]),
        ap_large=_mean(scores.precision["large"][:, label]),
        ar100=_mean(scores.recall["100"][:, label]),
    )


def _protocol(data: EvaluationSet) -> str:
    difficult = int(np.count_nonzero(data.columns.truth_difficult))
    return COCO_PROTOCOL + (f"; {difficult} difficult objects count as any other" if difficult else "")
