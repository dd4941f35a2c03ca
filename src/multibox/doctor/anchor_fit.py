"""How the objects of a data set fit the default boxes of a model.

Training starts from the default boxes that overlap an object by IoU 0.5. An object without any is still given its
single best box, but has a hard time: it is one faint signal beside the many of others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.records import Dataset
from multibox.doctor.anchor_advice import advice
from multibox.doctor.box_checks import owners_of
from multibox.spec.card import ModelCard
from multibox.spec.postprocess import iou_matrix_np

__all__ = ["MATCH_IOU", "AnchorFit", "Row", "best_anchors", "fit_anchors", "unit_objects"]

MATCH_IOU = 0.5
LARGEST_SAMPLE = 50_000
"""Objects compared with every default box; of more, evenly spread ones are taken, and the report says so."""

SIZE_EDGES_PX = (16.0, 32.0, 64.0, 128.0, 256.0)
RATIO_EDGES = (1 / 3, 2 / 3, 3 / 2, 3.0)
RATIO_NAMES = ("below 1:3", "1:3 to 2:3", "2:3 to 3:2", "3:2 to 3:1", "above 3:1")
_BLOCK = 256
_CROWD = 1

Row = tuple[str, int, int]
"""Name, objects, of these without a match."""


@dataclass(frozen=True)
class AnchorFit:
    """The fit of N objects to A default boxes, in the stretched unit frame of the model's input.

    Args:
        model: its name.
        anchors: A.
        objects: N; crowd regions and boxes without area are left out.
        sampled_from: the number of objects these were sampled from; N where all were taken.
        unmatched: objects whose best IoU is below 0.5.
        by_size, by_ratio, by_class: rows for sides (root of the area, in input pixels), width : height and classes.
        by_level: for each level (cells of its map, objects whose best box is there, of these unmatched).
        histogram: [10] objects by best IoU, in steps of 0.1.
        boxes_per_object: mean number of default boxes with IoU 0.5 or more.
        advice: sentences.
    """

    model: str
    anchors: int
    objects: int
    sampled_from: int
    unmatched: int
    by_size: tuple[Row, ...]
    by_ratio: tuple[Row, ...]
    by_class: tuple[Row, ...]
    by_level: tuple[Row, ...]
    histogram: tuple[int, ...]
    boxes_per_object: float
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        tables = {
            name: [{"name": row[0], "objects": row[1], "unmatched": row[2]} for row in getattr(self, name)]
            for name in ("by_size", "by_ratio", "by_level", "by_class")
        }
        return {
            "model": self.model,
            "default_boxes": self.anchors,
            "objects": self.objects,
            "sampled_from": self.sampled_from,
            "match_iou": MATCH_IOU,
            "unmatched": self.unmatched,
            "boxes_per_object": round(self.boxes_per_object, 3),
            "best_iou_histogram": list(self.histogram),
            **tables,
            "advice": list(self.advice),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        share = 100 * self.unmatched / max(1, self.objects)
        sample = "" if self.objects == self.sampled_from else f" (a sample of {self.sampled_from})"
        yield f"default boxes of {self.model}: {self.anchors}, {self.objects} objects{sample}"
        yield f"  {self.unmatched} objects ({share:.1f} %) match no default box at IoU {MATCH_IOU:g}"
        yield f"  an object matches {self.boxes_per_object:.1f} default boxes on average"
        titles = (
            ("by_size", "side in input px"),
            ("by_ratio", "width : height"),
            ("by_level", "level of the best box"),
        )
        for name, title in titles:
            yield f"  {title:<24}{'objects':>9}{'no match':>10}"
            for row, count, missed in getattr(self, name):
                rate = f"{100 * missed / count:6.1f} %" if count else ""
                yield f"    {row:<22}{count:>9}{missed:>10} {rate}".rstrip()
        yield "  best IoU 0…1 in tenths: " + " ".join(str(count) for count in self.histogram)
        yield from (f"  advice: {sentence}" for sentence in self.advice)


def best_anchors(
    unit_xyxy: NDArray[np.float64], anchors_cxcywh: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """For each of N objects the best IoU, the default box it is reached with, and how many reach 0.5."""
    half = anchors_cxcywh[:, 2:].astype(np.float64) / 2
    anchors_xyxy = np.concatenate([anchors_cxcywh[:, :2] - half, anchors_cxcywh[:, :2] + half], axis=1)
    best, which = np.zeros(len(unit_xyxy)), np.zeros(len(unit_xyxy), np.int64)
    matches = np.zeros(len(unit_xyxy), np.int64)
    for start in range(0, len(unit_xyxy), _BLOCK):
        part = slice(start, start + _BLOCK)
        iou = iou_matrix_np(unit_xyxy[part], anchors_xyxy)
        which[part], matches[part] = iou.argmax(axis=1), (iou >= MATCH_IOU).sum(axis=1)
        best[part] = iou.max(axis=1)
    return best, which, matches


def fit_anchors(dataset: Dataset, sizes_hw: NDArray[np.int32], model: ModelCard) -> AnchorFit:
    """Compare the objects with the default boxes of a model.

    Args:
        dataset: its boxes, cut at the edges of their pictures.
        sizes_hw: [P, 2] (height, width) of the upright pictures; objects of pictures below 1 are left out.
        model: its default boxes.
    """
    unit_xyxy, labels, _ = unit_objects(dataset, sizes_hw)
    total = len(labels)
    if total > LARGEST_SAMPLE:
        chosen = np.linspace(0, total - 1, LARGEST_SAMPLE).astype(np.int64)
        unit_xyxy, labels = unit_xyxy[chosen], labels[chosen]
    anchors = model.anchors_cxcywh()
    best, which, matches = best_anchors(unit_xyxy, anchors)
    missed = best < MATCH_IOU
    height, width = model.preprocess.size_hw
    sides_wh = (unit_xyxy[:, 2:] - unit_xyxy[:, :2]) * (width, height)
    sizes = np.digitize(np.sqrt(sides_wh.prod(axis=1)), SIZE_EDGES_PX)
    ratios = np.digitize(sides_wh[:, 0] / sides_wh[:, 1], RATIO_EDGES)
    maps = model.feature_sizes_hw
    ends = np.cumsum([h * w * n for (h, w), n in zip(maps, model.anchors.boxes_per_cell, strict=True)])
    levels = np.searchsorted(ends, which, side="right")
    by_class = _rows(list(dataset.class_map.names), labels, missed)
    return AnchorFit(
        model=model.name,
        anchors=len(anchors),
        objects=len(labels),
        sampled_from=total,
        unmatched=int(missed.sum()),
        by_size=_rows(_size_names(), sizes, missed),
        by_ratio=_rows(list(RATIO_NAMES), ratios, missed),
        by_class=tuple(row for row in by_class if row[1]),
        by_level=_rows([f"{i + 1}: {h} × {w} cells" for i, (h, w) in enumerate(maps)], levels, missed),
        histogram=tuple(np.histogram(best, bins=10, range=(0, 1))[0].tolist()),
        boxes_per_object=float(matches.mean()) if len(matches) else 0.0,
        advice=tuple(advice(unit_xyxy, best, model, lambda boxes, anchors: best_anchors(boxes, anchors)[0])),
    )


def unit_objects(
    dataset: Dataset, sizes_hw: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Objects [N, 4] in parts of their picture's sides, cut at its edges, their labels [N] and pictures [N].

    Crowd regions, boxes without area and those of pictures with a size below 1 are left out.
    """
    owners = owners_of(dataset)
    scale = sizes_hw[owners][:, ::-1].astype(np.float64)
    usable = (scale > 0).all(axis=1) & (dataset.columns.flags & _CROWD == 0)
    boxes = np.clip(dataset.columns.boxes_xyxy[usable] / np.tile(scale[usable], 2), 0, 1)
    real = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[real], dataset.columns.labels[usable][real].astype(np.int64), owners[usable][real]


def _rows(names: list[str], groups: NDArray[np.int64], missed: NDArray[np.bool_]) -> tuple[Row, ...]:
    counts = np.bincount(groups, minlength=len(names))
    lost = np.bincount(groups[missed], minlength=len(names))
    return tuple((name, int(counts[i]), int(lost[i])) for i, name in enumerate(names))


def _size_names() -> list[str]:
    edges = [f"{edge:g}" for edge in SIZE_EDGES_PX]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]}", *between, f"{edges[-1]} and more"]
