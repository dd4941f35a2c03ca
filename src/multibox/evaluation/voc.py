"""PASCAL VOC average precision at IoU 0.5, both in the manner of 2007 and of 2010 and later."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox import __version__
from multibox.errors import counted
from multibox.evaluation.accumulate import Measure, class_values
from multibox.evaluation.matching import AREA_RANGES, MatchedDetections, match_voc
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.tables import defined, mean_defined, number, text_table

__all__ = ["VocClass", "VocResult", "evaluate_voc"]


@dataclass(frozen=True)
class VocClass:
    """One class: objects asked for, difficult ones, detections, and numbers in 0 … 1 or None without objects."""

    name: str
    truths: int
    difficult: int
    detections: int
    ap50: float | None
    ap50_11point: float | None
    ap50_small: float | None
    ap50_medium: float | None
    ap50_large: float | None
    recall: float | None


@dataclass(frozen=True)
class VocResult:
    """Means over the classes that have objects, in 0 … 1; None where there are none.

    `ap50` is the area under the monotone precision–recall curve (VOC 2010 and later), `ap50_11point` the mean
    precision at recall 0, 0.1 … 1 (VOC 2007). The sizes use the area measure and COCO's ranges; VOC has no such
    numbers.
    """

    ap50: float | None
    ap50_11point: float | None
    ap50_small: float | None
    ap50_medium: float | None
    ap50_large: float | None
    per_class: tuple[VocClass, ...]
    pictures: int
    protocol: str
    engine: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form; undefined numbers are null."""
        return {**asdict(self), "per_class": [asdict(row) for row in self.per_class]}

    def table(self, *, digits: int = 4) -> str:
        """The headline and one line per class with objects or detections."""
        header = ("class", "truths", "AP50", "11-point", "small", "medium", "large", "recall")
        every = (self.ap50, self.ap50_11point, self.ap50_small, self.ap50_medium, self.ap50_large, None)
        total = sum(row.truths for row in self.per_class)
        rows = [["all", str(total), *(number(value, digits) for value in every)]]
        for row in self.per_class:
            if row.truths or row.detections:
                values = (row.ap50, row.ap50_11point, row.ap50_small, row.ap50_medium, row.ap50_large, row.recall)
                rows.append([row.name, str(row.truths), *(number(value, digits) for value in values)])
        return (
            f"{text_table(header, rows)}\n{self.protocol}\nengine: {self.engine}, {counted(self.pictures, 'picture')}"
        )


def evaluate_voc(data: EvaluationSet, *, iou: float = 0.5) -> VocResult:
    """VOC's AP of every class and its mean.

    Args:
        data: truth and predictions; difficult objects are neither asked for nor counted when found. All detections
            count, however many a picture has.
        iou: the overlap that makes a hit; VOC's is 0.5 (at least), the only one the names of the results fit.
    """
    matched = {area: match_voc(data, iou=iou, area=area) for area in AREA_RANGES}
    by_area = {area: _by_class(matched[area], "area") for area in AREA_RANGES}
    eleven, recalls = _by_class(matched["all"], "11"), _by_class(matched["all"], "recall")
    columns = data.columns
    rows = []
    for label, name in enumerate(data.class_map.names):
        rows.append(
            VocClass(
                name=name,
                truths=int(matched["all"].positives[label].sum()),
                difficult=int(np.count_nonzero((columns.truth_label == label) & columns.truth_difficult)),
                detections=int(np.count_nonzero(columns.label == label)),
                ap50=defined(by_area["all"][label]),
                ap50_11point=defined(eleven[label]),
                ap50_small=defined(by_area["small"][label]),
                ap50_medium=defined(by_area["medium"][label]),
                ap50_large=defined(by_area["large"][label]),
                recall=defined(recalls[label]),
            )
        )
    return VocResult(
        ap50=defined(mean_defined(by_area["all"])),
        ap50_11point=defined(mean_defined(eleven)),
        ap50_small=defined(mean_defined(by_area["small"])),
        ap50_medium=defined(mean_defined(by_area["medium"])),
        ap50_large=defined(mean_defined(by_area["large"])),
        per_class=tuple(rows),
        pictures=len(data),
        protocol=f"PASCAL VOC bbox: AP at IoU {iou:g}, area under the curve (2010) and 11-point (2007), no difficult",
        engine=f"multibox {__version__} (numpy {np.__version__})",
    )


def _by_class(matched: MatchedDetections, measure: Measure) -> NDArray[np.float64]:
    """[C] the value of every class, NaN where it has no objects."""
    out = np.full(len(matched.positives), np.nan)
    for label, values in class_values(matched, [measure]):
        out[label] = values[measure][0, 0]
    return out
