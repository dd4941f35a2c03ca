"""The search for default boxes that fit objects better.

Better shapes are found by coordinate descent. A set of shapes is worth the mean, over objects, of what the best of
them is worth there, each placed at the cell nearest to the object, because no other cell's can fit better. One box
after the other is tried at every shape that objects have, until no exchange is worth it. A box keeps its level, and
its scale stays between those of the neighbouring levels: a fine map would place large boxes best, but does not see
enough of the picture to fill them. Nothing is random, so equal input gives equal boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from multibox.data.sampling import evenly
from multibox.doctor.anchor_fit import MATCH_IOU, Floats, SizeHw
from multibox.spec.anchors import AnchorSpec

__all__ = ["better_shapes", "reference_side"]

MOST_SEARCHED = 10_000  # objects; of more, evenly spread ones
LEAST_GAIN, LEAST_OBJECT_GAIN = 0.001, 0.5  # of one exchange: of the score, and in objects' scores in a small set
MOST_SHAPES, MOST_ROUNDS = 300, 10
_SHAPE_STEP = math.log(1.15)


def better_shapes(unit_xyxy: Floats, spec: AnchorSpec, maps: Sequence[SizeHw], size_hw: SizeHw) -> AnchorSpec:
    """The specification with shapes exchanged for those of the objects as long as it is worth it."""
    unit_xyxy = unit_xyxy[evenly(len(unit_xyxy), MOST_SEARCHED)]
    to_unit = reference_side(spec, size_hw) / np.array(size_hw[::-1], np.float64)
    logs = np.log((unit_xyxy[:, 2:] - unit_xyxy[:, :2]) / to_unit)
    bins, counts = np.unique(np.floor(logs / _SHAPE_STEP), axis=0, return_counts=True)
    known = np.exp((bins[np.argsort(-counts, kind="stable")] + 0.5) * _SHAPE_STEP)
    scales = np.sqrt(known.prod(axis=1))
    centres = _nearest_centres(unit_xyxy, maps)
    options = [known[(scales >= low) & (scales <= high)][:MOST_SHAPES] for low, high in _bands(spec)]
    offered = [_worth(unit_xyxy, at, shapes * to_unit) for at, shapes in zip(centres, options, strict=True)]
    out = [list(shapes) for shapes in spec.levels]
    worth = np.concatenate(
        [_worth(unit_xyxy, at, np.array(own) * to_unit) for at, own in zip(centres, out, strict=True)]
    )
    least = max(LEAST_GAIN, LEAST_OBJECT_GAIN / len(unit_xyxy))
    for _ in range(MOST_ROUNDS):
        exchanged = False
        for row, (level, index) in enumerate((level, i) for level, own in enumerate(out) for i in range(len(own))):
            rest = np.delete(worth, row, axis=0).max(axis=0, initial=0)
            totals = np.maximum(offered[level], rest).mean(axis=1, dtype=np.float64)
            top = int(totals.argmax()) if len(totals) else -1
            if top >= 0 and totals[top] >= np.maximum(worth[row], rest).mean(dtype=np.float64) + least:
                width, height = (float(f"{side:.4g}") for side in options[level][top])
                out[level][index], worth[row], exchanged = (width, height), offered[level][top], True
        if not exchanged:
            break
    return replace(spec, levels=tuple(tuple(shapes) for shapes in out))


def _worth(unit_xyxy: Floats, centres: Floats, shapes_wh: Floats) -> NDArray[np.float32]:
    """[M, N] what M shapes at these centres are worth to N objects: their part of the score, clipping left aside."""
    rows = [np.zeros((0, len(unit_xyxy)), np.float32)]
    for half in shapes_wh / 2:
        overlap_wh = np.minimum(unit_xyxy[:, 2:], centres + half) - np.maximum(unit_xyxy[:, :2], centres - half)
        overlap = np.maximum(overlap_wh, 0).prod(axis=1)
        area = (unit_xyxy[:, 2:] - unit_xyxy[:, :2]).prod(axis=1) + 4 * half.prod()
        iou = overlap / (area - overlap)
        rows.append(((iou + (iou >= MATCH_IOU)) / 2).astype(np.float32)[None])
    return np.concatenate(rows)


def _bands(spec: AnchorSpec) -> list[tuple[float, float]]:
    """For each level the scales, roots of areas, between the least of the level before and the most of the next."""
    scales = [[math.sqrt(width * height) for width, height in shapes] for shapes in spec.levels]
    return list(zip([0.0, *map(min, scales[:-1])], [*map(max, scales[1:]), math.inf], strict=True))


def _nearest_centres(unit_xyxy: Floats, maps: Sequence[SizeHw]) -> list[Floats]:
    """For each level, [N, 2] the centre (x, y) of the cell nearest to each object, as if cells divided the input."""
    cells = [np.array([width, height], np.float64) for height, width in maps]
    middle = (unit_xyxy[:, :2] + unit_xyxy[:, 2:]) / 2
    return [(np.clip(np.floor(middle * count), 0, count - 1) + 0.5) / count for count in cells]


def reference_side(spec: AnchorSpec, size_hw: SizeHw) -> int:
    """The side of the input, in pixels, that the shapes of a specification are parts of."""
    return min(size_hw) if spec.reference == "shorter_side" else size_hw[0]
