"""How well the objects of a data set fit default boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multibox.data.records import Dataset
from multibox.doctor.box_checks import owners_of
from multibox.spec.anchors import AnchorSpec
from multibox.spec.suppression import iou_matrix_np

__all__ = ["MATCH_IOU", "AnchorFit", "Floats", "Row", "SizeHw", "best_anchors", "fit_of", "unit_objects"]

MATCH_IOU = 0.5
_BLOCK, _CROWD = 256, 1

SizeHw = tuple[int, int]
Floats = NDArray[np.float64]
Row = tuple[str, int, int]
"""Name, objects, of these without a match."""


@dataclass(frozen=True)
class AnchorFit:
    """How N objects fit default boxes, in the stretched unit frame of the model's input.

    Args:
        objects: N.
        matched: objects whose best IoU is 0.5 or more.
        mean_iou: mean best IoU; 0 without objects.
        boxes_per_object: mean number of default boxes with IoU 0.5 or more.
        by_level, by_class: a row for each level, of the objects whose best box is there, and for each class.
    """

    objects: int
    matched: int
    mean_iou: float
    boxes_per_object: float
    by_level: tuple[Row, ...]
    by_class: tuple[Row, ...]

    @property
    def share(self) -> float:
        """Share of objects with a match; 0 without objects."""
        return self.matched / max(1, self.objects)

    @property
    def score(self) -> float:
        """The mean of `share` and `mean_iou`, in [0, 1]: what a proposal raises."""
        return (self.share + self.mean_iou) / 2


def unit_objects(dataset: Dataset, sizes_hw: NDArray[np.int32]) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Objects [N, 4] in parts of their picture's sides, cut at its edges, their labels [N] and pictures [N].

    Crowd regions, boxes without area and those of pictures with a size below 1 are left out.
    """
    owners = owners_of(dataset)
    scale = sizes_hw[owners][:, ::-1].astype(np.float64)
    usable = (scale > 0).all(axis=1) & (dataset.columns.flags & _CROWD == 0)
    boxes = np.clip(dataset.columns.boxes_xyxy[usable] / np.tile(scale[usable], 2), 0, 1)
    real = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[real], dataset.columns.labels[usable][real].astype(np.int64), owners[usable][real]


def best_anchors(
    unit_xyxy: Floats, anchors_cxcywh: NDArray[np.float32]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """For each of N objects the best IoU, the default box it is reached with, and how many reach 0.5."""
    half = anchors_cxcywh[:, 2:].astype(np.float64) / 2
    anchors_xyxy = np.concatenate([anchors_cxcywh[:, :2] - half, anchors_cxcywh[:, :2] + half], axis=1)
    best, which, matches = np.zeros(len(unit_xyxy)), *np.zeros((2, len(unit_xyxy)), np.int64)
    for start in range(0, len(unit_xyxy), _BLOCK):
        part = slice(start, start + _BLOCK)
        iou = iou_matrix_np(unit_xyxy[part], anchors_xyxy)
        best[part], which[part], matches[part] = iou.max(axis=1), iou.argmax(axis=1), (iou >= MATCH_IOU).sum(axis=1)
    return best, which, matches


def fit_of(
    unit_xyxy: Floats,
    labels: NDArray[np.int64],
    spec: AnchorSpec,
    maps: Sequence[SizeHw],
    size_hw: SizeHw,
    names: Sequence[str],
) -> AnchorFit:
    """The fit of objects [N, 4] in the unit frame with labels [N] of these names to default boxes on these maps."""
    best, which, matches = best_anchors(unit_xyxy, spec.generate(maps, size_hw))
    missed = best < MATCH_IOU
    ends = np.cumsum([h * w * count for (h, w), count in zip(maps, spec.boxes_per_cell, strict=True)])

    def rows(row_names: Sequence[str], groups: NDArray[np.int64]) -> tuple[Row, ...]:
        counts = (np.bincount(part, minlength=len(row_names)).tolist() for part in (groups, groups[missed]))
        return tuple(zip(row_names, *counts, strict=True))

    return AnchorFit(
        objects=len(best),
        matched=int((~missed).sum()),
        mean_iou=float(best.mean()) if len(best) else 0.0,
        boxes_per_object=float(matches.mean()) if len(best) else 0.0,
        by_level=rows(
            [f"{i}: {h} × {w} cells" for i, (h, w) in enumerate(maps, 1)], np.searchsorted(ends, which, side="right")
        ),
        by_class=rows(names, labels),
    )
