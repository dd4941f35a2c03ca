"""Findings about boxes and classes, from the annotations and the sizes of the pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from multibox.data.records import Dataset, box_area
from multibox.doctor.kinds import CheckFinding
from multibox.doctor.picture_checks import split_role
from multibox.spec.suppression import iou_matrix_np

__all__ = ["check_boxes", "check_classes", "class_counts", "owners_of"]

TOLERANCE_PX = 0.5
"""Reaching outside by less is rounding."""

TINY_PX = 3.0
EXTREME_RATIO = 20.0
LEAST_INSIDE = 0.25
SAME_PLACE_IOU = 0.95
IMBALANCE = 50
"""COCO's train2017, known to be hard in this respect, is at 1300 : 1, VOC 2012 at 30 : 1."""


def owners_of(dataset: Dataset) -> NDArray[np.int64]:
    """[N] the picture of each box."""
    offsets = dataset.columns.offsets
    return np.repeat(np.arange(len(dataset), dtype=np.int64), offsets[1:] - offsets[:-1])


def check_boxes(dataset: Dataset, sizes_hw: NDArray[np.int32]) -> Iterator[CheckFinding]:
    """What is wrong with single boxes, pairs of boxes, and pictures without any.

    Args:
        dataset: the annotations.
        sizes_hw: [P, 2] (height, width) of the upright pictures; −1 where unknown, and nothing is outside there.
    """
    boxes, owners = dataset.columns.boxes_xyxy.astype(np.float64), owners_of(dataset)
    sides = boxes[:, 2:] - boxes[:, :2]
    degenerate = np.asarray((sides <= 0).any(axis=1))
    limits = sizes_hw[owners][:, ::-1].astype(np.float64)
    limits[limits[:, 0] < 0] = np.inf
    inside = np.concatenate([np.clip(boxes[:, :2], 0, limits), np.clip(boxes[:, 2:], 0, limits)], axis=1)
    beyond = np.abs(boxes - inside).max(axis=1, initial=0)
    outside = ~degenerate & (beyond > TOLERANCE_PX)
    area = box_area(boxes)
    far = outside & (box_area(inside) < LEAST_INSIDE * area)
    sound = ~degenerate & ~far
    small, large = sides.min(axis=1, initial=np.inf), sides.max(axis=1, initial=0)
    tiny = sound & (small < TINY_PX)
    extreme = sound & ~tiny & (large > EXTREME_RATIO * small)

    def told(kind: str, chosen: NDArray[np.bool_], text: str) -> Iterator[CheckFinding]:
        for position in np.flatnonzero(chosen).tolist():
            picture = int(owners[position])
            number = position - int(dataset.columns.offsets[picture])
            corners = ", ".join(f"{value:.6g}" for value in boxes[position].tolist())
            width, height = sides[position].tolist()
            limit = "" if sizes_hw[picture, 0] < 0 else f"{sizes_hw[picture, 1]} × {sizes_hw[picture, 0]}"
            message = text.format(corners=corners, beyond=beyond[position], width=width, height=height, limit=limit)
            yield CheckFinding(kind, dataset.paths[picture], f"box {number}", message, (picture,), (number,))

    yield from told("degenerate_box", degenerate, "(x1, y1, x2, y2) = ({corners}) has no area or swapped corners")
    yield from told("boxes_far_outside", far, "({corners}) lies outside the {limit} picture")
    yield from told("boxes_outside", outside & ~far, "({corners}) reaches {beyond:.4g} px beyond the {limit} picture")
    yield from told("boxes_tiny", tiny, "{width:.4g} × {height:.4g} px")
    yield from told("boxes_extreme_ratio", extreme, "{width:.4g} × {height:.4g} px")
    yield from _same_place(dataset)
    for picture in np.flatnonzero(np.diff(dataset.columns.offsets) == 0).tolist():
        yield CheckFinding("empty", dataset.paths[picture], "", "no objects", (picture,))


def _same_place(dataset: Dataset) -> Iterator[CheckFinding]:
    columns, names = dataset.columns, dataset.class_map.names
    for picture in np.flatnonzero(np.diff(columns.offsets) > 1).tolist():
        part = slice(int(columns.offsets[picture]), int(columns.offsets[picture + 1]))
        labels, crowd = columns.labels[part], columns.flags[part] & 1
        same = np.triu(iou_matrix_np(columns.boxes_xyxy[part], columns.boxes_xyxy[part]) >= SAME_PLACE_IOU, 1)
        gone: set[int] = set()
        for a, b in zip(*(axis.tolist() for axis in np.nonzero(same)), strict=True):
            if crowd[a] != crowd[b] or a in gone or b in gone:
                continue
            if labels[a] == labels[b]:
                gone.add(b)
                message = f"the same {names[labels[a]]} as box {a}"
                yield CheckFinding("boxes_duplicated", dataset.paths[picture], f"box {b}", message, (picture,), (b, a))
            else:
                message = f"{names[labels[b]]}, where box {a} says {names[labels[a]]}"
                yield CheckFinding("boxes_two_classes", dataset.paths[picture], f"box {b}", message, (picture,), (b, a))


def class_counts(dataset: Dataset) -> dict[str | None, NDArray[np.int64]]:
    """Boxes of each class, [C] for each split by its usual name; only splits with pictures."""
    columns, out = dataset.columns, {}
    roles = [split_role(name) for name in columns.split_names]
    codes = columns.split_codes[owners_of(dataset)]
    for role in dict.fromkeys([*(roles[code] for code in sorted(set(columns.split_codes.tolist()) - {-1})), None]):
        wanted = [code for code, name in enumerate(roles) if name == role] if role is not None else [-1]
        if np.isin(columns.split_codes, wanted).any():
            labels = columns.labels[np.isin(codes, wanted)]
            out[role] = np.bincount(labels, minlength=len(dataset.class_map)).astype(np.int64)
    return out


def check_classes(dataset: Dataset) -> Iterator[CheckFinding]:
    """Unused, misspelt and unevenly spread classes."""
    names, counts = dataset.class_map.names, class_counts(dataset)
    total = np.bincount(dataset.columns.labels, minlength=len(names))
    for label in np.flatnonzero(total == 0).tolist():
        yield CheckFinding("class_unused", "", names[label], "no box in any picture")
    train = counts.get("train")
    for role, mine in counts.items():
        if train is None or role is None or role == "train":
            continue
        for label in np.flatnonzero((mine > 0) & (train == 0)).tolist():
            yield CheckFinding("class_not_in_train", "", names[label], f"{mine[label]} boxes in {role}, none in train")
    if train is not None and "val" in counts:
        for label in np.flatnonzero((train > 0) & (counts["val"] == 0)).tolist():
            yield CheckFinding(
                "class_not_in_validation", "", names[label], f"{train[label]} boxes in train, none in val"
            )
    yield from _alike(names)
    yield from _imbalance(names, total if train is None else train)


def _alike(names: tuple[str, ...]) -> Iterator[CheckFinding]:
    seen: dict[str, str] = {}
    for name in names:
        key = re.sub(r"[\W_]+", "", name.casefold()) or name
        if key in seen:
            yield CheckFinding("class_names_alike", "", name, f"is there as {seen[key]!r} too")
        seen.setdefault(key, name)


def _imbalance(names: tuple[str, ...], counts: NDArray[np.int64]) -> Iterator[CheckFinding]:
    top = int(counts.argmax())
    rare = [
        label for label in np.argsort(counts, kind="stable").tolist() if 0 < counts[label] * IMBALANCE < counts[top]
    ]
    if rare:
        shown = ", ".join(f"{names[label]} {counts[label]}" for label in rare[:8])
        more = f" and {len(rare) - 8} more" if len(rare) > 8 else ""
        message = f"{counts[top]} boxes of {names[top]}, but {shown}{more}"
        yield CheckFinding("imbalance", "", f"{len(rare)} classes", message)
