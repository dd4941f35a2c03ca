"""Which default boxes fit the objects of a data set: how well a model's own do, and shapes that do better.

Training starts from the default boxes that overlap an object by IoU 0.5. An object without one is given its single
best box, which is little to learn from.

Better shapes are found by coordinate descent. A set of shapes is worth the mean, over objects, of what the best of
them is worth there, each placed at the cell nearest to the object, because no other cell's can fit better. One box
after the other is tried at every shape that objects have, until no exchange is worth it. A box keeps its level, and
its scale stays between those of the neighbouring levels: a fine map would place large boxes best, but does not see
enough of the picture to fill them. Nothing is random, so equal input gives equal boxes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.findings import DataError
from multibox.data.records import Dataset
from multibox.data.sampling import evenly
from multibox.doctor.box_checks import owners_of
from multibox.errors import ContractError, MultiboxError
from multibox.files import atomic_write
from multibox.spec.anchors import AnchorSpec
from multibox.spec.postprocess import iou_matrix_np

__all__ = ["AnchorFit", "AnchorProposal", "Row", "load_anchor_spec", "propose_anchors", "save_anchor_spec"]

MATCH_IOU = 0.5
MOST_OBJECTS, MOST_SEARCHED = 50_000, 10_000  # of more, evenly spread ones are measured and searched with
LEAST_OBJECTS = 50
LEAST_RISE = 0.01  # of the score: heads trained with the present boxes start worse with others
LEAST_GAIN, LEAST_OBJECT_GAIN = 0.001, 0.5  # of one exchange: of the score, and in objects' scores in a small set
MOST_SHAPES, MOST_ROUNDS = 300, 10
_SHAPE_STEP = math.log(1.15)
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


@dataclass(frozen=True)
class AnchorProposal:
    """Default boxes for a data set, and how well the present and the proposed ones fit.

    Args:
        present, spec: the specifications; equal where none is clearly better.
        size_hw: input size in pixels.
        before, after: the fit of all objects (at most 50,000, evenly spread) to the present and the proposed boxes.
        held_out_before, held_out_after: the same for the pictures that the shapes were not fitted to.
        notes: sentences: why nothing is changed, what was left out, what to beware of.
    """

    present: AnchorSpec
    spec: AnchorSpec
    size_hw: SizeHw
    before: AnchorFit
    after: AnchorFit
    held_out_before: AnchorFit
    held_out_after: AnchorFit
    notes: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether other boxes are proposed than the present ones."""
        return self.spec != self.present

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        fits = {name: getattr(self, name) for name in ("before", "after", "held_out_before", "held_out_after")}
        told = {name: {**asdict(fit), "share": fit.share, "score": fit.score} for name, fit in fits.items()}
        head = {"changed": self.changed, "anchors": self.spec.to_dict(), "size_hw": list(self.size_hw)}
        return {**head, **told, "notes": list(self.notes)}

    def lines(self) -> Iterator[str]:
        """For people: the fit before and after, where objects lack a match, the boxes of each level, the notes."""
        yield f"  {'':<26}{'objects':>9}{'IoU ≥ 0.5':>12}{'mean best IoU':>16}{'boxes per object':>19}"
        rows = [("all, present boxes", self.before), ("held out, present boxes", self.held_out_before)]
        if self.changed:
            rows[1:1] = [("all, proposed boxes", self.after)]
            rows += [("held out, proposed boxes", self.held_out_after)]
        for name, fit in rows:
            share, boxes = 100 * fit.share, fit.boxes_per_object
            yield f"  {name:<26}{fit.objects:>9}{share:>10.1f} %{fit.mean_iou:>16.3f}{boxes:>19.1f}"
        yield f"  {'level of the best box':<26}{'objects':>9}{'no match':>10}  boxes at a cell (w × h in input px)"
        side = _reference(self.present, self.size_hw)
        for level, (name, count, missed) in enumerate(self.before.by_level):
            was, now = (spec.levels[level] for spec in (self.present, self.spec))
            yield f"    {name:<24}{count:>9}{missed:>10}  {_shown(was, side)}"
            if self.changed:
                _, count, missed = self.after.by_level[level]
                yield f"    {'':<24}{count:>9}{missed:>10}  {'kept' if now == was else '→ ' + _shown(now, side)}"
        yield from (f"  note: {sentence}" for sentence in self.notes)


def _shown(shapes: Sequence[tuple[float, float]], side: int) -> str:
    return "  ".join(f"{width * side:.0f}×{height * side:.0f}" for width, height in shapes)


def _reference(spec: AnchorSpec, size_hw: SizeHw) -> int:
    return min(size_hw) if spec.reference == "shorter_side" else size_hw[0]


def propose_anchors(
    dataset: Dataset,
    sizes_hw: NDArray[np.int32],
    spec: AnchorSpec,
    *,
    feature_sizes_hw: Sequence[SizeHw],
    size_hw: SizeHw,
) -> AnchorProposal:
    """Measure how the objects of a data set fit default boxes, and look for shapes that fit better.

    The number of boxes at each level's cells stays, so heads of the same network can be kept. Shapes are fitted to
    every second picture with objects. They are proposed only if the score rises by 0.01 on the other half and no
    fewer of its objects match, and if neither gets worse over all objects; else `spec` is the present one.

    Args:
        dataset: its boxes, cut at the edges of their pictures; crowd regions and boxes without area are left out.
        sizes_hw: [P, 2] (height, width) of the upright pictures; objects of pictures below 1 are left out.
        spec: the present default boxes.
        feature_sizes_hw: (height, width) of each level's feature map.
        size_hw: input size in pixels.

    Raises:
        ContractError: `sizes_hw` is not [P, 2], or the maps do not belong to the levels.
    """
    if np.shape(sizes_hw) != (len(dataset), 2):
        raise ContractError(f"sizes_hw must be [{len(dataset)}, 2] like the pictures, got {list(np.shape(sizes_hw))}")
    unit_xyxy, labels, pictures = unit_objects(dataset, np.asarray(sizes_hw))
    total, maps = len(labels), [(int(height), int(width)) for height, width in feature_sizes_hw]
    notes = [] if total == dataset.num_boxes else [
        f"{dataset.num_boxes - total} of {dataset.num_boxes} boxes are left out: crowd regions, boxes without area, "
        "and those of pictures whose size is unknown"
    ]  # fmt: skip
    if total > MOST_OBJECTS:
        notes.append(f"{MOST_OBJECTS} of {total} objects were taken, evenly spread")
        chosen = evenly(total, MOST_OBJECTS)
        unit_xyxy, labels, pictures = unit_xyxy[chosen], labels[chosen], pictures[chosen]
    held_out = np.unique(pictures, return_inverse=True)[1].reshape(-1) % 2 == 1

    def fits(candidate: AnchorSpec) -> tuple[AnchorFit, AnchorFit]:
        place = candidate, maps, size_hw, dataset.class_map.names
        return _fit(unit_xyxy, labels, *place), _fit(unit_xyxy[held_out], labels[held_out], *place)

    old, found, refusal = fits(spec), spec, ""
    new = old
    if len(labels) < LEAST_OBJECTS:
        refusal = f"{len(labels)} objects are too few to fit default boxes to (at least {LEAST_OBJECTS})"
    elif not held_out.any():
        refusal = "all objects are in one picture, which leaves none to test default boxes on"
    else:
        found = _search(unit_xyxy[~held_out], spec, maps, size_hw)
        new = fits(found)
        refusal = "no exchange of a box is worth it" if found == spec else _refusal(old, new)
    if refusal:
        notes.append(f"the present boxes are kept: {refusal}")
        found, new = spec, old
    notes += _warnings(old[0], new[0], unit_xyxy, maps[0], size_hw)
    return AnchorProposal(spec, found, size_hw, old[0], new[0], old[1], new[1], tuple(notes))


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


def _fit(
    unit_xyxy: Floats,
    labels: NDArray[np.int64],
    spec: AnchorSpec,
    maps: Sequence[SizeHw],
    size_hw: SizeHw,
    names: Sequence[str],
) -> AnchorFit:
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


def _refusal(old: tuple[AnchorFit, AnchorFit], new: tuple[AnchorFit, AnchorFit]) -> str:
    """Why the shapes found are not to be proposed; empty if they are."""
    for which, before, after in zip(("all", "the held-out"), old, new, strict=True):
        if after.matched < before.matched or after.score < before.score + LEAST_RISE:
            return (
                f"in {which} pictures others match {after.matched} instead of {before.matched} objects and score "
                f"{after.score:.3f} instead of {before.score:.3f}; a rise below {LEAST_RISE:g} is not worth it"
            )
    return ""


def _warnings(
    before: AnchorFit, after: AnchorFit, unit_xyxy: Floats, finest_hw: SizeHw, size_hw: SizeHw
) -> Iterator[str]:
    """Classes that lose matches, fewer boxes to learn from, and objects that the finest map cannot tell apart."""
    pairs = zip(before.by_class, after.by_class, strict=True)
    lost = [(name, count - was, count - now) for (name, count, was), (_, _, now) in pairs if now > was]
    if lost:
        shown = ", ".join(
            f"{name} {was} → {now}" for name, was, now in sorted(lost, key=lambda row: row[2] - row[1])[:5]
        )
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        yield f"{len(lost)} of {len(before.by_class)} classes have fewer objects with a match: {shown}{more}"
    was, now = before.boxes_per_object, after.boxes_per_object
    if now < 0.9 * was:
        yield f"an object matches {now:.1f} boxes instead of {was:.1f}: better fitting, but fewer to learn from"
    cell = max(size_hw[0] / finest_hw[0], size_hw[1] / finest_hw[1])
    sides = np.sqrt(((unit_xyxy[:, 2:] - unit_xyxy[:, :2]) * size_hw[::-1]).prod(axis=1))
    small = sides[sides < cell]
    if len(small) > LEAST_RISE * len(sides):
        yield (
            f"{len(small)} objects ({100 * len(small) / len(sides):.1f} %) are smaller than a cell of the finest map "
            f"({cell:.1f} px): no default box helps all of them; use an input about "
            f"{max(1.5, cell / float(np.median(small))):.1f} times as large, or cut the pictures into tiles"
        )


def _search(unit_xyxy: Floats, spec: AnchorSpec, maps: Sequence[SizeHw], size_hw: SizeHw) -> AnchorSpec:
    """The specification with shapes exchanged for those of the objects as long as it is worth it."""
    unit_xyxy = unit_xyxy[evenly(len(unit_xyxy), MOST_SEARCHED)]
    to_unit = _reference(spec, size_hw) / np.array(size_hw[::-1], np.float64)
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


def save_anchor_spec(path: str | os.PathLike[str], spec: AnchorSpec) -> None:
    """Write a specification as JSON, the file that `load_anchor_spec` reads; an existing one is replaced.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        atomic_write(Path(path), json.dumps(spec.to_dict(), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise DataError(path, f"cannot be written ({error.strerror})", "choose another place") from None


def load_anchor_spec(path: str | os.PathLike[str]) -> AnchorSpec:
    """Read a specification that `save_anchor_spec` or `multibox anchors save=FILE.json` wrote.

    Raises:
        DataError: no such file, not JSON, or not a specification; the message says what is wrong with it.
    """
    remedy = "write one with `multibox anchors DATA save=FILE.json`"
    known = AnchorSpec(levels=(((1.0, 1.0),),)).to_dict().keys()
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        wrong = sorted(known ^ (data.keys() if isinstance(data, dict) else set()))
        if wrong:
            raise ValueError(f"keys {', '.join(map(repr, wrong))[:80]} are missing or unknown")
        return AnchorSpec.from_dict(data)
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", f"check the path, or {remedy}") from None
    except (MultiboxError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(path, f"holds no default boxes, or damaged ones ({error})", remedy) from None
