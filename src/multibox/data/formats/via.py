"""VGG Image Annotator (VIA 1 and 2): one JSON file with the regions of all pictures. Read only.

{"a.jpg1234": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "rect", "x": …, "y": …, "width": …,
"height": …}, "region_attributes": {"class": "cup"}}]}}, or a whole project, which has the same under
"_via_img_metadata". The class is the attribute called class, label, name, type or category, or else the only one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multibox.data.entries import Entry, Evidence, Object
from multibox.data.formats import json_files
from multibox.data.formats.json_files import dict_in
from multibox.data.records import Dataset
from multibox.data.shapes import Box, around_circle, around_points, around_sides
from multibox.data.tree import Tree

__all__ = ["class_of", "entries", "evidence", "holds", "read", "shape_box"]

_CLASS_KEYS = ("class", "label", "name", "type", "category", "object")
_NO_BOX = frozenset({"point", "polyline"})


def holds(data: Any) -> bool:
    """Whether a JSON file is VIA's."""
    files = _files(data)
    return bool(files) and all("filename" in file and "regions" in file for file in files[:3])


def evidence(tree: Tree) -> Evidence | None:
    """The VIA files of a tree."""
    return json_files.find_evidence(tree, holds)


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read VIA files; see `json_files.read_files`."""
    return json_files.read_files(tree, images, what="VIA's regions", holds=holds, entries=entries)


def _files(data: Any) -> list[dict[str, Any]]:
    if isinstance(data, dict) and "_via_img_metadata" in data:
        data = data["_via_img_metadata"]
    files = list(data.values()) if isinstance(data, dict) else []
    return files if all(isinstance(file, dict) for file in files) else []


def entries(data: Any) -> Iterator[tuple[str, Entry]]:
    """The pictures of a file."""
    for number, file in enumerate(_files(data)):
        regions = file.get("regions")
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1 numbers them
        regions = regions if isinstance(regions, list) else []
        entry = Entry(str(file.get("filename") or ""), len(regions))
        for position, region in enumerate(regions):
            region = region if isinstance(region, dict) else {}
            _add_region(entry, f"picture {number}, region {position}", region)
        yield f"picture {number}", entry


def _add_region(entry: Entry, where: str, region: dict[str, Any]) -> None:
    shape = dict_in(region, "shape_attributes")
    kind = str(shape.get("name"))
    if kind in _NO_BOX:
        entry.others.append(("no_box", where, f"a {kind} is no box"))
        return
    if kind != "rect":
        entry.notes.append(("polygon_to_box", where, f"a {kind} was replaced by the box around it"))
    entry.objects.append(Object(where, class_of(region.get("region_attributes")), shape_box(shape), shape))


def class_of(attributes: Any) -> str | None:
    """The class in a region's attributes; None where none of them can be told to be it."""
    if not isinstance(attributes, dict):
        return None
    usual = [key for key in attributes if key.strip().casefold() in _CLASS_KEYS]
    usual.sort(key=lambda key: _CLASS_KEYS.index(key.strip().casefold()))
    for key in usual or (list(attributes) if len(attributes) == 1 else []):
        value = attributes[key]
        if isinstance(value, dict):  # boxes to tick: {"cup": true}
            value = next((name for name, ticked in value.items() if ticked), None)
        if isinstance(value, (str, int)) and str(value).strip():
            return str(value).strip()
    return None


def shape_box(shape: dict[str, Any]) -> Box | None:
    """The box around the shape that VIA's shape attributes describe."""
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if isinstance(xs, list) and isinstance(ys, list):
        return around_points([*zip(xs, ys, strict=False)]) if len(xs) == len(ys) else None
    if "cx" in shape:
        across, along = shape.get("rx", shape.get("r")), shape.get("ry")
        return around_circle(shape["cx"], shape.get("cy"), across, along)
    return around_sides(shape.get(key) for key in ("x", "y", "width", "height"))
