"""Default boxes for a data set: the same number at each cell, with shapes that more of its objects match.

The method is facility location by coordinate descent. The value of a set of default boxes is the mean, over objects,
of what the best of them is worth there (`Coverage.score`), each box standing at the cell nearest to the object, as no
other cell's could fit better. Starting from the present boxes, the least useful box is tried at every shape that
objects have (geometric means of the cells of a logarithmic grid), then the next, until no exchange is worth it; what
was exchanged is then refined in small steps. Nothing is random, and equal input gives equal boxes.

A box keeps its level, and its scale stays between those of the level's neighbours: a fine map would place large boxes
best of all, but does not see enough of the picture to fill them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multibox.data.findings import DataError
from multibox.data.records import Dataset
from multibox.doctor.anchor_fit import LARGEST_SAMPLE, MATCH_IOU, best_anchors, unit_objects
from multibox.errors import ContractError, MultiboxError, did_you_mean
from multibox.spec.anchors import AnchorSpec

__all__ = ["AnchorProposal", "Coverage", "LevelChange", "load_anchor_spec", "propose_anchors", "save_anchor_spec"]

LEAST_OBJECTS = 50
LEAST_RISE = 0.01
"""Of the score. Heads that were trained with the present boxes start worse with others; less is not worth that."""

LEAST_GAIN = 0.001
LEAST_WORTH = 0.5
"""What exchanging one box must bring: so much of the score, and in sum the worth of half an object. In small sets the
second keeps single objects from getting boxes of their own, which do not help others."""

SEARCH_SAMPLE = 10_000
MOST_SHAPES = 300
MOST_ROUNDS = 10
SHOWN_CLASSES = 5
RECALL_IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_BIN = math.log(1.25)
_STEPS = (1.1, 1.05, 1.02)
_MOVES = tuple(move for move in itertools.product((-1, 0, 1), repeat=2) if any(move))

SizeHw: TypeAlias = tuple[int, int]
Floats: TypeAlias = NDArray[np.float64]
Values: TypeAlias = NDArray[np.float32]
Shapes: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Coverage:
    """How N objects fit default boxes.

    Args:
        objects: N.
        matched: objects whose best IoU is 0.5 or more.
        mean_iou: mean best IoU.
        mean_recall: mean share of objects whose best IoU reaches t, for t = 0.5, 0.55 … 0.95.
        boxes_per_object: mean number of default boxes with IoU 0.5 or more.
    """

    objects: int
    matched: int
    mean_iou: float
    mean_recall: float
    boxes_per_object: float

    @property
    def share(self) -> float:
        """Share of objects with a match; 0 without objects."""
        return self.matched / self.objects if self.objects else 0.0

    @property
    def score(self) -> float:
        """The mean of `share`, `mean_iou` and `mean_recall`, in [0, 1]: what a proposal raises."""
        return (self.share + self.mean_iou + self.mean_recall) / 3

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the share and the score."""
        return {
            "objects": self.objects,
            "matched": self.matched,
            "share": round(self.share, 6),
            "mean_iou": round(self.mean_iou, 6),
            "mean_recall": round(self.mean_recall, 6),
            "boxes_per_object": round(self.boxes_per_object, 4),
            "score": round(self.score, 6),
        }


@dataclass(frozen=True)
class LevelChange:
    """The boxes at a cell of one level.

    Args:
        cells_hw: (height, width) of the feature map.
        old_px, new_px: (width, height) of each box in pixels of the input, by index.
        objects_before, objects_after: objects whose best box is on this level.
    """

    cells_hw: SizeHw
    old_px: Shapes
    new_px: Shapes
    objects_before: int
    objects_after: int


@dataclass(frozen=True)
class AnchorProposal:
    """Default boxes that fit a data set, and how well.

    Args:
        spec: the proposed specification; the present one where none is clearly better.
        changed: whether it differs from the present one.
        before, after: coverage of all objects (at most 50,000, evenly spread), by the present and the proposed boxes.
        held_out_before, held_out_after: the same of the pictures that the boxes were not fitted to: every second one
            with objects.
        levels: finest first.
        notes: sentences: why nothing is changed, what was left out, what to beware of.
    """

    spec: AnchorSpec
    changed: bool
    before: Coverage
    after: Coverage
    held_out_before: Coverage
    held_out_after: Coverage
    levels: tuple[LevelChange, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        coverages = ("before", "after", "held_out_before", "held_out_after")
        return {
            "changed": self.changed,
            "anchors": self.spec.to_dict(),
            **{name: getattr(self, name).to_dict() for name in coverages},
            "levels": [
                {
                    "level": number,
                    "cells_hw": list(row.cells_hw),
                    "old_wh_px": [list(shape) for shape in row.old_px],
                    "new_wh_px": [list(shape) for shape in row.new_px],
                    "objects_before": row.objects_before,
                    "objects_after": row.objects_after,
                }
                for number, row in enumerate(self.levels, start=1)
            ],
            "notes": list(self.notes),
        }


def propose_anchors(
    dataset: Dataset,
    sizes_hw: NDArray[np.int32],
    spec: AnchorSpec,
    *,
    feature_sizes_hw: Sequence[SizeHw],
    size_hw: SizeHw,
) -> AnchorProposal:
    """Fit the shapes of the default boxes to the objects of a data set.

    The number of boxes at each level's cells stays, so heads of the same network can be kept; a new shape stands at
    the index whose old shape is most like it. Boxes are fitted to every second picture with objects. They are
    proposed only if the score rises by 0.01 on the other half and no fewer of its objects match, and if neither
    gets worse over all objects; otherwise the present specification is returned, and `notes` say why.

    Args:
        dataset: its boxes, cut at the edges of their pictures; crowd regions and boxes without area are left out.
        sizes_hw: [P, 2] (height, width) of the upright pictures; objects of pictures below 1 are left out.
        spec: the present default boxes.
        feature_sizes_hw: (height, width) of each level's feature map.
        size_hw: input size in pixels.

    Raises:
        ContractError: `sizes_hw` is not [P, 2], or the maps do not belong to the levels.
    """
    sizes = np.asarray(sizes_hw)
    if sizes.shape != (len(dataset), 2):
        raise ContractError(f"sizes_hw must be [{len(dataset)}, 2] like the pictures, got {list(sizes.shape)}")
    maps = [(int(height), int(width)) for height, width in feature_sizes_hw]
    unit_xyxy, labels, pictures = unit_objects(dataset, sizes)
    total = len(unit_xyxy)
    notes = []
    if total < dataset.num_boxes:
        notes.append(
            f"{dataset.num_boxes - total} of {dataset.num_boxes} boxes are left out: crowd regions, boxes without "
            "area, and those of pictures whose size is unknown"
        )
    if total > LARGEST_SAMPLE:
        chosen = _evenly(total, LARGEST_SAMPLE)
        unit_xyxy, labels, pictures = unit_xyxy[chosen], labels[chosen], pictures[chosen]
        notes.append(f"{LARGEST_SAMPLE} of {total} objects were taken, evenly spread")

    old = _Measured.of(unit_xyxy, spec, maps, size_hw)
    _, rank = np.unique(pictures, return_inverse=True)
    held_out = rank.reshape(-1) % 2 == 1
    new, new_spec = old, spec
    if len(unit_xyxy) < LEAST_OBJECTS:
        notes.append(f"{len(unit_xyxy)} objects are too few to fit default boxes to (at least {LEAST_OBJECTS}); kept")
    elif not held_out.any():
        notes.append("all objects are in one picture, which leaves none to test default boxes on; kept")
    else:
        fitted = _Search(unit_xyxy[~held_out], spec, maps, size_hw).result()
        tried = _Measured.of(unit_xyxy, fitted, maps, size_hw)
        reason = _refusal(old, tried, held_out) if fitted != spec else "no exchange of a box is worth it"
        if reason:
            notes.append(f"the present boxes are kept: {reason}")
        else:
            new, new_spec = tried, fitted
    notes += _fewer_matches(old, new, labels, dataset.class_map.names)
    before, after = old.coverage(), new.coverage()
    if after.boxes_per_object < 0.9 * before.boxes_per_object:
        notes.append(
            f"an object matches {after.boxes_per_object:.1f} boxes instead of {before.boxes_per_object:.1f}: better "
            "fitting, but fewer to learn from"
        )
    return AnchorProposal(
        spec=new_spec,
        changed=new_spec != spec,
        before=before,
        after=after,
        held_out_before=old.coverage(held_out),
        held_out_after=new.coverage(held_out),
        levels=tuple(_level_rows(spec, new_spec, maps, size_hw, (old, new))),
        notes=tuple(notes),
    )


def save_anchor_spec(path: str | os.PathLike[str], spec: AnchorSpec) -> None:
    """Write a specification as JSON, the file that `load_anchor_spec` reads; an existing one is replaced.

    Raises:
        DataError: the file cannot be written.
    """
    target = Path(path)
    try:
        target.write_text(json.dumps(spec.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(target, f"cannot be written ({error.strerror})", "choose another place") from None


def load_anchor_spec(path: str | os.PathLike[str]) -> AnchorSpec:
    """Read a specification that `save_anchor_spec` or `multibox anchors save=FILE.json` wrote.

    Raises:
        DataError: no such file, not JSON, or not a specification; the message says what is wrong with it.
    """
    source, remedy = Path(path), "write one with `multibox anchors DATA save=FILE.json`"
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(source, "there is no such file", f"check the path, or {remedy}") from None
    except OSError as error:
        raise DataError(source, f"cannot be read ({error.strerror})", "check the path and its permissions") from None
    except (ValueError, RecursionError):
        raise DataError(source, "is not a JSON file", remedy) from None
    known = AnchorSpec(levels=(((1.0, 1.0),),)).to_dict()
    if not isinstance(data, dict):
        raise DataError(source, f"holds a JSON {type(data).__name__}, not default boxes", remedy)
    for key in known:
        if key not in data:
            raise DataError(source, f"is no specification of default boxes: it lacks {key!r}", remedy)
    for key in data:
        if key not in known:
            raise DataError(source, f"has an unknown key {key!r:.60}", did_you_mean(key, known))
    try:
        return AnchorSpec.from_dict(data)
    except (MultiboxError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(source, f"its default boxes are damaged ({error})", remedy) from None


@dataclass(frozen=True)
class _Measured:
    """For each of N objects the best IoU, how many boxes reach 0.5, and the level of the best one."""

    best: Floats
    matches: NDArray[np.int64]
    levels: NDArray[np.int64]

    @classmethod
    def of(cls, unit_xyxy: Floats, spec: AnchorSpec, maps: Sequence[SizeHw], size_hw: SizeHw) -> _Measured:
        best, which, matches = best_anchors(unit_xyxy, spec.generate(maps, size_hw))
        ends = np.cumsum([h * w * n for (h, w), n in zip(maps, spec.boxes_per_cell, strict=True)])
        return cls(best, matches, np.searchsorted(ends, which, side="right"))

    def coverage(self, chosen: NDArray[np.bool_] | None = None) -> Coverage:
        best = self.best if chosen is None else self.best[chosen]
        matches = self.matches if chosen is None else self.matches[chosen]
        if not len(best):
            return Coverage(0, 0, 0.0, 0.0, 0.0)
        recalls = [float((best >= iou).mean()) for iou in RECALL_IOUS]
        return Coverage(
            objects=len(best),
            matched=int((best >= MATCH_IOU).sum()),
            mean_iou=float(best.mean()),
            mean_recall=sum(recalls) / len(recalls),
            boxes_per_object=float(matches.mean()),
        )


def _refusal(old: _Measured, new: _Measured, held_out: NDArray[np.bool_]) -> str:
    """Why the new boxes are not to be proposed; empty if they are."""
    before, after = old.coverage(held_out), new.coverage(held_out)
    if after.matched < before.matched:
        return f"fitted ones match {after.matched} instead of {before.matched} objects of the held-out pictures"
    if after.score < before.score + LEAST_RISE:
        return (
            f"on the held-out pictures fitted ones score {after.score:.3f} instead of {before.score:.3f}, "
            f"and a rise below {LEAST_RISE:g} is not worth other boxes"
        )
    whole_before, whole_after = old.coverage(), new.coverage()
    if whole_after.matched < whole_before.matched or whole_after.score < whole_before.score:
        return "over all objects fitted ones do not fit better"
    return ""


def _fewer_matches(old: _Measured, new: _Measured, labels: NDArray[np.int64], names: Sequence[str]) -> Iterator[str]:
    """A sentence on the classes that lose matches, the greatest loss first."""
    before, after = (np.bincount(labels[each.best >= MATCH_IOU], minlength=len(names)).tolist() for each in (old, new))
    losers = sorted((after[i] - before[i], i) for i in range(len(names)) if after[i] < before[i])
    if losers:
        shown = ", ".join(f"{names[i]} {before[i]} → {after[i]}" for _, i in losers[:SHOWN_CLASSES])
        more = f" and {len(losers) - SHOWN_CLASSES} more" if len(losers) > SHOWN_CLASSES else ""
        yield f"{len(losers)} of {len(names)} classes have fewer objects with a match: {shown}{more}"


def _level_rows(
    old: AnchorSpec, new: AnchorSpec, maps: Sequence[SizeHw], size_hw: SizeHw, measured: tuple[_Measured, _Measured]
) -> Iterator[LevelChange]:
    side = _reference(old, size_hw)
    counts = [np.bincount(each.levels, minlength=len(maps)) for each in measured]

    def pixels(shapes: Shapes) -> Shapes:
        return tuple((wide * side, high * side) for wide, high in shapes)

    for number, cells in enumerate(maps):
        before, after = (int(count[number]) for count in counts)
        yield LevelChange(cells, pixels(old.levels[number]), pixels(new.levels[number]), before, after)


class _Search:
    """Coordinate descent over the shapes, [S, 2] (width, height) in parts of the reference side, of S boxes."""

    def __init__(self, unit_xyxy: Floats, spec: AnchorSpec, maps: Sequence[SizeHw], size_hw: SizeHw) -> None:
        self._spec, self._unit_xyxy = spec, unit_xyxy[_evenly(len(unit_xyxy), SEARCH_SAMPLE)]
        self._to_unit = _reference(spec, size_hw) / np.array(size_hw[::-1], np.float64)
        self._nearest = list(_nearest_centres(self._unit_xyxy, spec, maps, size_hw))
        self._bands = _bands(spec)
        self._owner = [level for level, shapes in enumerate(spec.levels) for _ in shapes]
        self._start = np.array([shape for shapes in spec.levels for shape in shapes], np.float64)
        self._least = max(LEAST_GAIN, LEAST_WORTH / len(self._unit_xyxy))

    def result(self) -> AnchorSpec:
        """The specification with the shapes that were found."""
        shapes = self._start.copy()
        values = np.stack([self._values(level, shapes[slot, None])[0] for slot, level in enumerate(self._owner)])
        moved: set[int] = set()
        library = self._library()
        for _ in range(MOST_ROUNDS):
            if not self._sweep(shapes, values, moved, lambda slot: library[self._owner[slot]], self._least):
                break
        for step in _STEPS:
            for _ in range(MOST_ROUNDS):
                if not self._sweep(
                    shapes, values, moved, self._neighbours(shapes, step), 0.1 * self._least, only=moved
                ):
                    break
        self._undo(shapes, values, moved)
        return self._specification(shapes, moved)

    def _sweep(
        self,
        shapes: Floats,
        values: Values,
        moved: set[int],
        options: Callable[[int], tuple[Floats, Values]],
        least: float,
        only: set[int] | None = None,
    ) -> bool:
        """Offer each box, the least useful first, its options; whether any took one."""
        any_moved = False
        for slot in _by_use(values):
            if only is not None and slot not in only:
                continue
            offered, worth = options(slot)
            if not len(offered):
                continue
            rest = _best_of_others(values, slot)
            totals = np.maximum(worth, rest).mean(axis=1, dtype=np.float64)
            top = int(totals.argmax())
            if totals[top] >= np.maximum(values[slot], rest).mean(dtype=np.float64) + least:
                shapes[slot], values[slot] = offered[top], worth[top]
                moved.add(slot)
                any_moved = True
        return any_moved

    def _undo(self, shapes: Floats, values: Values, moved: set[int]) -> None:
        """Give back the old shape wherever that hardly costs anything."""
        for slot in [slot for slot in _by_use(values) if slot in moved]:
            rest = _best_of_others(values, slot)
            old = self._values(self._owner[slot], self._start[slot, None])[0]
            lost = np.maximum(values[slot], rest).mean(dtype=np.float64) - np.maximum(old, rest).mean(dtype=np.float64)
            if lost < self._least:
                shapes[slot], values[slot] = self._start[slot], old
                moved.discard(slot)

    def _specification(self, shapes: Floats, moved: set[int]) -> AnchorSpec:
        levels = []
        for level, old in enumerate(self._spec.levels):
            first = self._owner.index(level)
            places = [slot - first for slot in sorted(moved) if self._owner[slot] == level]
            out = list(old)
            found = shapes[[first + place for place in places]]
            for place, row in _most_alike(np.array([old[place] for place in places]), found):
                out[places[place]] = (float(f"{found[row, 0]:.4g}"), float(f"{found[row, 1]:.4g}"))
            levels.append(tuple(out))
        return replace(self._spec, levels=tuple(levels))

    def _library(self) -> list[tuple[Floats, Values]]:
        """For each level the shapes that objects have in its band, and their values."""
        logs = np.log((self._unit_xyxy[:, 2:] - self._unit_xyxy[:, :2]) / self._to_unit)
        bins, inverse, counts = np.unique(np.floor(logs / _BIN), axis=0, return_inverse=True, return_counts=True)
        sums = np.stack([np.bincount(inverse.reshape(-1), logs[:, i], minlength=len(bins)) for i in (0, 1)], axis=1)
        shapes = np.exp(sums / counts[:, None])[np.argsort(-counts, kind="stable")]
        out = []
        for level in range(len(self._bands)):
            inside = self._allowed(level, shapes)[:MOST_SHAPES]
            out.append((inside, self._values(level, inside)))
        return out

    def _neighbours(self, shapes: Floats, step: float) -> Callable[[int], tuple[Floats, Values]]:
        factors = np.exp(math.log(step) * np.array(_MOVES, np.float64))

        def options(slot: int) -> tuple[Floats, Values]:
            near = self._allowed(self._owner[slot], shapes[slot] * factors)
            return near, self._values(self._owner[slot], near)

        return options

    def _allowed(self, level: int, shapes: Floats) -> Floats:
        scales, (low, high) = np.sqrt(shapes.prod(axis=1)), self._bands[level]
        return np.asarray(shapes[(scales >= low) & (scales <= high)])

    def _values(self, level: int, shapes: Floats) -> Values:
        """[M, N] what M shapes at the cells nearest to N objects are worth there."""
        out = np.empty((len(shapes), len(self._unit_xyxy)), np.float32)
        area = (self._unit_xyxy[:, 2:] - self._unit_xyxy[:, :2]).prod(axis=1)
        for row, shape in enumerate(shapes):
            half = shape * self._to_unit / 2
            if self._spec.clip in {"wh", "cxcywh"}:
                half = np.minimum(half, 0.5)
            low, high = self._nearest[level] - half, self._nearest[level] + half
            if self._spec.clip == "xyxy":
                low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
            overlap_wh = np.minimum(self._unit_xyxy[:, 2:], high) - np.maximum(self._unit_xyxy[:, :2], low)
            overlap = np.maximum(overlap_wh, 0).prod(axis=1)
            out[row] = _worth(overlap / (area + (high - low).prod(axis=1) - overlap))
        return out


def _worth(iou: Floats) -> Floats:
    """An object's part of `Coverage.score`."""
    reached = np.searchsorted(RECALL_IOUS, iou, side="right")
    return np.asarray((iou + (iou >= MATCH_IOU) + reached / len(RECALL_IOUS)) / 3)


def _by_use(values: Values) -> list[int]:
    """Rows by how much would be lost without them, least first."""
    used = [float(np.maximum(values[slot] - _best_of_others(values, slot), 0).sum()) for slot in range(len(values))]
    return [int(slot) for slot in np.argsort(used, kind="stable")]


def _best_of_others(values: Values, slot: int) -> Values:
    if len(values) == 1:
        return np.zeros_like(values[0])
    others = [part.max(axis=0) for part in (values[:slot], values[slot + 1 :]) if len(part)]
    return np.asarray(others[0] if len(others) == 1 else np.maximum(*others))


def _most_alike(old: Floats, new: Floats) -> list[tuple[int, int]]:
    """Pairs (old, new) of as many shapes each, the pair with the greatest IoU of all first."""
    if not len(old):
        return []
    overlap = np.minimum(old[:, None], new[None]).prod(axis=2)
    iou = overlap / (old.prod(axis=1)[:, None] + new.prod(axis=1)[None] - overlap)
    pairs = []
    for _ in range(len(old)):
        row, column = (int(i) for i in np.unravel_index(iou.argmax(), iou.shape))
        pairs.append((row, column))
        iou[row], iou[:, column] = -1, -1
    return pairs


def _bands(spec: AnchorSpec) -> list[tuple[float, float]]:
    """For each level the scales, roots of areas, between the least of the level before and the most of the next."""
    scales = [[math.sqrt(wide * high) for wide, high in shapes] for shapes in spec.levels]
    last = len(scales) - 1
    return [
        (
            0.0 if level == 0 else min(itertools.chain(*scales[level - 1 :])),
            math.inf if level == last else max(itertools.chain(*scales[: level + 2])),
        )
        for level in range(len(scales))
    ]


def _nearest_centres(unit_xyxy: Floats, spec: AnchorSpec, maps: Sequence[SizeHw], size_hw: SizeHw) -> Iterator[Floats]:
    """For each level, [N, 2] the centre (x, y) of the cell nearest to each object."""
    middle = (unit_xyxy[:, :2] + unit_xyxy[:, 2:]) / 2
    single = replace(spec, levels=(((1.0, 1.0),),) * len(maps), clip="none")
    centres = single.generate(maps, size_hw)[:, :2].astype(np.float64)
    if spec.clip == "cxcywh":
        centres = np.clip(centres, 0, 1)
    start = 0
    for height, width in maps:
        grid = centres[start : start + height * width].reshape(height, width, 2)
        start += height * width
        yield np.stack([_nearest(grid[0, :, 0], middle[:, 0]), _nearest(grid[:, 0, 1], middle[:, 1])], axis=1)


def _nearest(rising: Floats, wanted: Floats) -> Floats:
    return np.asarray(rising[np.searchsorted((rising[1:] + rising[:-1]) / 2, wanted)])


def _reference(spec: AnchorSpec, size_hw: SizeHw) -> int:
    return min(size_hw) if spec.reference == "shorter_side" else size_hw[0]


def _evenly(count: int, limit: int) -> NDArray[np.int64]:
    """Indexes of at most `limit` of `count` things, evenly spread."""
    return np.linspace(0, count - 1, min(count, limit)).astype(np.int64)
