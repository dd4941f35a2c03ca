"""Which classes are taken for which, with a row and a column for background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError
from multibox.evaluation.pairs import find_pairs
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.tables import text_table
from multibox.spec.classes import ClassMap

__all__ = ["BACKGROUND", "ConfusionMatrix", "confusion_matrix"]

BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Counts of (true class, predicted class): [C + 1, C + 1] int64, read-only; the last of each is background.

    The last row holds detections of nothing, the last column objects that were not found.
    """

    counts: NDArray[np.int64]
    class_map: ClassMap
    confidence: float
    iou: float
    protocol: str

    @property
    def names(self) -> tuple[str, ...]:
        """Class names and then background."""
        return (*self.class_map.names, BACKGROUND)

    def most_confused(self, limit: int = 10) -> list[tuple[str, str, int]]:
        """(true class, predicted class, count) of the most frequent mistakes between classes, most frequent first."""
        between = self.counts[:-1, :-1] * (1 - np.eye(len(self.class_map), dtype=np.int64))
        order = np.argsort(-between, axis=None, kind="stable")[:limit]
        cells = [tuple(int(i) for i in np.unravel_index(cell, between.shape)) for cell in order]
        return [
            (self.names[true], self.names[found], int(between[true, found]))
            for true, found in cells
            if between[true, found]
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON form: rows are true classes, columns predicted ones."""
        return {
            "names": list(self.names),
            "counts": self.counts.tolist(),
            "confidence": self.confidence,
            "iou": self.iou,
            "protocol": self.protocol,
        }

    def table(self) -> str:
        """The counts, without classes that neither occur nor are predicted."""
        used = [i for i in range(len(self.names)) if self.counts[i].any() or self.counts[:, i].any()]
        rows = [[self.names[i], *(str(self.counts[i, j]) for j in used)] for i in used]
        header = ["true \\ predicted", *(self.names[j] for j in used)]
        return f"{text_table(header, rows)}\n{self.protocol}"


def confusion_matrix(data: EvaluationSet, *, confidence: float = 0.25, iou: float = 0.5) -> ConfusionMatrix:
    """Pair objects with detections of any class, one to one, and count the pairs.

    Only detections with a score of at least `confidence` take part. Pairs of one class come first and then the
    others, each by descending overlap of at least `iou`: a right detection is not hidden by a wrong one that happens
    to fit better. Crowd and difficult objects are not asked for, and a detection left over that lies on one is not
    counted (for crowd regions: with a part of at least `iou` of itself).

    Raises:
        ContractError: `confidence` outside [0, 1] or `iou` outside (0, 1].
    """
    if not (0 <= confidence <= 1 and 0 < iou <= 1):
        raise ContractError(f"expected confidence in 0 … 1 and iou above 0 and up to 1, got {confidence} and {iou}")
    columns, background = data.columns, len(data.class_map)
    aside = columns.truth_crowd | columns.truth_difficult
    pairs = find_pairs(columns, at_least=iou, same_class=False, crowd_regions=True)
    kept = columns.score >= np.float32(confidence)  # scores were float32; 0.3 must mean the same there
    usable = kept[pairs.detection]
    detection, truth, overlap = pairs.detection[usable], pairs.truth[usable], pairs.iou[usable]

    other_class = columns.label[detection] != columns.truth_label[truth]
    counted = ~aside[truth]
    order = np.lexsort((truth, detection, -overlap, other_class))
    order = order[counted[order]]
    true_of = np.full(len(columns.label), -1, np.int64)
    found = np.zeros(len(aside), bool)
    for d, g in zip(detection[order].tolist(), truth[order].tolist(), strict=True):
        if true_of[d] < 0 and not found[g]:
            true_of[d], found[g] = g, True
    on_aside = np.zeros(len(columns.label), bool)
    on_aside[detection[~counted]] = True

    paired = np.flatnonzero(true_of >= 0)
    stray, lost = kept & (true_of < 0) & ~on_aside, ~found & ~aside
    true = np.concatenate([columns.truth_label[true_of[paired]], _times(background, stray), columns.truth_label[lost]])
    predicted = np.concatenate([columns.label[paired], columns.label[stray], _times(background, lost)])
    side = background + 1
    counts = np.bincount(true * side + predicted, minlength=side * side).reshape(side, side).astype(np.int64)
    counts.flags.writeable = False
    protocol = f"pairs at IoU {iou:g}, confidence {confidence:g} and above, same class first"
    return ConfusionMatrix(counts, data.class_map, confidence, iou, protocol)


def _times(label: int, flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.full(np.count_nonzero(flags), label, np.int64)
