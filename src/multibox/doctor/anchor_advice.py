"""What to change so that more objects match a default box: each sentence is measured on the objects themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from multibox.spec.card import ModelCard

__all__ = ["advice"]

MATCH_IOU = 0.5
ENOUGH = 0.02
"""Below this share of objects without a match there is nothing worth changing."""

MOST_SHAPES = 3
LEAST_GAIN = 0.01
"""Of all objects; a shape that helps fewer is not worth its outputs."""

COARSE = 0.5
"""Cells further apart than this part of a box's shorter side leave objects between two of them below IoU 0.5."""

_SIDES = np.geomspace(0.01, 1.0, 24)
_RATIOS = (1.0, 2.0, 0.5, 3.0, 1 / 3, 5.0, 0.2)
Measure = Callable[[NDArray[np.float64], NDArray[np.float32]], NDArray[np.float64]]


def advice(
    unit_xyxy: NDArray[np.float64], best: NDArray[np.float64], model: ModelCard, measure: Measure
) -> Iterator[str]:
    """Sentences for N objects in the unit frame whose best IoU with the model's default boxes is `best`.

    `measure` gives the best IoU of objects with other default boxes.
    """
    missed = best < MATCH_IOU
    if not len(best):
        return
    share = float(missed.mean())
    if share <= ENOUGH:
        yield f"the default boxes fit: {100 * (1 - share):.1f} % of the objects match; nothing needs to change"
        return
    height, width = model.preprocess.size_hw
    sides = (unit_xyxy[missed, 2:] - unit_xyxy[missed, :2]) * (width, height)
    yield _why(sides, model)
    shapes = _missing_shapes(unit_xyxy[missed], len(best), model)
    if shapes:
        yield _measured(shapes, unit_xyxy, share, model=model, measure=measure)
        yield "`multibox anchors` proposes other shapes for the boxes there are, with which the network stays as it is"
    yield from _too_small(sides, len(best), model)


def _why(sides: NDArray[np.float64], model: ModelCard) -> str:
    """Whether shapes or places are at fault."""
    fits = _shape_iou(sides, _shapes_px(model)).max(axis=1) >= MATCH_IOU
    places, count = int(fits.sum()), len(sides)
    middle = np.median(sides, axis=0)
    return (
        f"of the {count} objects without a match, {count - places} have a size or ratio that no default box has, and "
        f"{places} have one but lie between the cells; their median is {middle[0]:.0f} × {middle[1]:.0f} input pixels"
    )


def _missing_shapes(missed_xyxy: NDArray[np.float64], objects: int, model: ModelCard) -> list[tuple[float, float]]:
    """Greedily, the (width, height) in input pixels that match the most objects without a match, where they lie."""
    roots = np.sqrt(np.array(_RATIOS))
    sides = _SIDES[:, None, None] * min(model.preprocess.size_hw)
    shapes = (sides * np.stack([roots, 1 / roots], axis=1)[None]).reshape(-1, 2)
    fits = np.stack([_matched(missed_xyxy, shape, model) for shape in shapes], axis=1)
    chosen: list[tuple[float, float]] = []
    while len(chosen) < MOST_SHAPES:
        gains = fits.sum(axis=0)
        top = int(gains.argmax())
        if gains[top] < max(1, LEAST_GAIN * objects):
            break
        chosen.append((float(shapes[top, 0]), float(shapes[top, 1])))
        fits[fits[:, top]] = False
    return chosen


def _matched(unit_xyxy: NDArray[np.float64], shape_wh: NDArray[np.float64], model: ModelCard) -> NDArray[np.bool_]:
    """[N] whether a box of this shape at the nearest cell of its level matches; no other cell's could fit better."""
    size_wh = np.array(model.preprocess.size_hw[::-1], np.float64)
    cells_wh = np.array(model.feature_sizes_hw[_level_for(float(shape_wh.min()), model)][::-1], np.float64)
    centres = (unit_xyxy[:, :2] + unit_xyxy[:, 2:]) / 2
    nearest = (np.clip(np.floor(centres * cells_wh), 0, cells_wh - 1) + 0.5) / cells_wh
    half = shape_wh / size_wh / 2
    overlap_wh = np.minimum(unit_xyxy[:, 2:], nearest + half) - np.maximum(unit_xyxy[:, :2], nearest - half)
    overlap = np.maximum(overlap_wh, 0).prod(axis=1)
    area = (unit_xyxy[:, 2:] - unit_xyxy[:, :2]).prod(axis=1)
    return np.asarray(overlap >= MATCH_IOU * (area + (2 * half).prod() - overlap))


def _measured(
    shapes: list[tuple[float, float]],
    unit_xyxy: NDArray[np.float64],
    share: float,
    *,
    model: ModelCard,
    measure: Measure,
) -> str:
    """The effect of adding shapes to the levels whose cells are close enough."""
    levels = [list(level) for level in model.anchors.levels]
    reference = (
        min(model.preprocess.size_hw) if model.anchors.reference == "shorter_side" else model.preprocess.size_hw[0]
    )
    places = []
    for wide, high in shapes:
        level = _level_for(min(wide, high), model)
        levels[level].append((wide / reference, high / reference))
        places.append(f"{wide:.0f} × {high:.0f} px on level {level + 1}")
    spec = replace(model.anchors, levels=tuple(tuple(level) for level in levels))
    anchors = spec.generate(model.feature_sizes_hw, model.preprocess.size_hw)
    after = float((measure(unit_xyxy, anchors) < MATCH_IOU).mean())
    more = len(anchors) - sum(
        h * w * len(n) for (h, w), n in zip(model.feature_sizes_hw, model.anchors.levels, strict=True)
    )
    return (
        f"adding default boxes of {', '.join(places)} ({more} more boxes) brings objects without a match from "
        f"{100 * share:.1f} % to {100 * after:.1f} %"
    )


def _too_small(sides: NDArray[np.float64], objects: int, model: ModelCard) -> Iterator[str]:
    """Objects that the finest map cannot tell apart, whatever its boxes."""
    cell = _cell_px(model, 0)
    small = np.sqrt(sides.prod(axis=1)) < cell
    count = int(small.sum())
    if count < max(1, LEAST_GAIN * objects):
        return
    factor = float(cell / np.median(np.sqrt(sides[small].prod(axis=1))))
    yield (
        f"{count} objects ({100 * count / objects:.1f} %) are smaller than a cell of the finest map ({cell:.1f} px): "
        f"no default box helps all of them; use an input about {max(1.5, factor):.1f} times as large, or cut the "
        "pictures into tiles"
    )


def _level_for(side: float, model: ModelCard) -> int:
    """The coarsest level whose cells are close enough for boxes with this shorter side; else the finest."""
    fine = [level for level in range(len(model.feature_sizes_hw)) if _cell_px(model, level) <= COARSE * side]
    return max(fine, default=0)


def _cell_px(model: ModelCard, level: int) -> float:
    height, width = model.preprocess.size_hw
    rows, columns = model.feature_sizes_hw[level]
    return max(height / rows, width / columns)


def _shapes_px(model: ModelCard) -> NDArray[np.float64]:
    """Distinct (width, height) of the default boxes in input pixels."""
    height, width = model.preprocess.size_hw
    side = min(height, width) if model.anchors.reference == "shorter_side" else height
    return np.unique(np.array([shape for level in model.anchors.levels for shape in level]) * side, axis=0)


def _shape_iou(a_wh: NDArray[np.float64], b_wh: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, M] IoU of boxes with the same centre, given by their sides."""
    overlap = np.minimum(a_wh[:, None], b_wh[None]).prod(axis=2)
    return np.asarray(overlap / (a_wh.prod(axis=1)[:, None] + b_wh.prod(axis=1)[None] - overlap))
