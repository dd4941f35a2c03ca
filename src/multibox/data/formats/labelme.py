"""LabelMe: a JSON file for each picture, with its shapes. Read only.

{"imagePath": "a.jpg", "imageHeight": 120, "imageWidth": 160, "shapes": [{"label": "cup", "shape_type": "rectangle",
"points": [[x, y], [x, y]]}]}, pixels from the corner of the picture. X-AnyLabeling writes the same with more keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multibox.data.columns import flag_bits
from multibox.data.entries import Entry, Evidence, Object
from multibox.data.formats import json_files
from multibox.data.formats.json_files import dict_in, objects_in
from multibox.data.records import Dataset
from multibox.data.shapes import Box, around_circle, around_points, numbers
from multibox.data.tree import Tree

__all__ = ["entries", "evidence", "holds", "read"]

_NO_BOX = frozenset({"point", "points", "line", "linestrip"})


def holds(data: Any) -> bool:
    """Whether a JSON file is LabelMe's."""
    return isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data


def evidence(tree: Tree) -> Evidence | None:
    """The LabelMe files of a tree."""
    return json_files.find_evidence(tree, holds)


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read LabelMe files; see `json_files.read_files`."""
    return json_files.read_files(tree, images, what="LabelMe's shapes", holds=holds, entries=entries, own_file=True)


def entries(data: Any) -> Iterator[tuple[str, Entry]]:
    """The one picture of a file."""
    shapes = objects_in(data, "shapes")
    entry = Entry(
        str(data.get("imagePath") or ""), len(data["shapes"]), size_hw=(data.get("imageHeight"), data.get("imageWidth"))
    )
    for number, shape in enumerate(shapes):
        kind, where = str(shape.get("shape_type") or "polygon"), f"shape {number}"
        if kind in _NO_BOX:
            entry.others.append(("no_box", where, f"a {kind} is no box"))
            continue
        if kind != "rectangle":
            entry.notes.append(("polygon_to_box", where, f"a {kind} was replaced by the box around it"))
        flags = dict_in(shape, "flags")
        bits = flag_bits(None, *(shape.get(name, flags.get(name)) for name in ("difficult", "truncated", "occluded")))
        label = shape.get("label")
        entry.objects.append(
            Object(where, None if label is None else str(label), _box(kind, shape), shape.get("points"), flags=bits)
        )
    yield "", entry


def _box(kind: str, shape: dict[str, Any]) -> Box | None:
    points = shape.get("points")
    if kind != "circle":
        return around_points(points)
    pairs = [numbers(point, 2) for point in points] if isinstance(points, list) else []
    if len(pairs) != 2 or pairs[0] is None or pairs[1] is None:
        return None
    return around_circle(pairs[0][0], pairs[0][1], math.dist(pairs[0], pairs[1]))
