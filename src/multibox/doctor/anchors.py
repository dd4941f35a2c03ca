"""Which default boxes fit the objects of a data set: how well a model's own do, and shapes that do better.

Training starts from the default boxes that overlap an object by IoU 0.5. An object without one is given its single
best box, which is little to learn from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.findings import DataError
from multibox.data.records import Dataset
from multibox.data.sampling import evenly
from multibox.doctor.anchor_fit import AnchorFit, Floats, SizeHw, fit_of, unit_objects
from multibox.doctor.anchor_search import better_shapes, reference_side
from multibox.errors import ContractError, MultiboxError
from multibox.files import atomic_write
from multibox.spec.anchors import AnchorSpec

__all__ = ["AnchorProposal", "load_anchor_spec", "propose_anchors", "save_anchor_spec"]

MOST_OBJECTS = 50_000  # of more, evenly spread ones are measured
LEAST_OBJECTS = 50
LEAST_RISE = 0.01  # of the score: heads trained with the present boxes start worse with others


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
        side = reference_side(self.present, self.size_hw)
        for level, (name, count, missed) in enumerate(self.before.by_level):
            was, now = (spec.levels[level] for spec in (self.present, self.spec))
            yield f"    {name:<24}{count:>9}{missed:>10}  {_shown(was, side)}"
            if self.changed:
                _, count, missed = self.after.by_level[level]
                yield f"    {'':<24}{count:>9}{missed:>10}  {'kept' if now == was else '→ ' + _shown(now, side)}"
        yield from (f"  note: {sentence}" for sentence in self.notes)


def _shown(shapes: Sequence[tuple[float, float]], side: int) -> str:
    return "  ".join(f"{width * side:.0f}×{height * side:.0f}" for width, height in shapes)


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
        return fit_of(unit_xyxy, labels, *place), fit_of(unit_xyxy[held_out], labels[held_out], *place)

    old, found, refusal = fits(spec), spec, ""
    new = old
    if len(labels) < LEAST_OBJECTS:
        refusal = f"{len(labels)} objects are too few to fit default boxes to (at least {LEAST_OBJECTS})"
    elif not held_out.any():
        refusal = "all objects are in one picture, which leaves none to test default boxes on"
    else:
        found = better_shapes(unit_xyxy[~held_out], spec, maps, size_hw)
        new = fits(found)
        refusal = "no exchange of a box is worth it" if found == spec else _refusal(old, new)
    if refusal:
        notes.append(f"the present boxes are kept: {refusal}")
        found, new = spec, old
    notes += _warnings(old[0], new[0], unit_xyxy, maps[0], size_hw)
    return AnchorProposal(spec, found, size_hw, old[0], new[0], old[1], new[1], tuple(notes))


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
