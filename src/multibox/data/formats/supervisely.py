"""Supervisely: meta.json, and for each picture <set>/img/a.jpg a file <set>/ann/a.jpg.json. Read only.

{"size": {"height": …, "width": …}, "objects": [{"classTitle": "cup", "geometryType": "rectangle", "points":
{"exterior": [[x, y], [x, y]], "interior": []}}]}. The classes are those of meta.json, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multibox.data.class_lists import class_map_of
from multibox.data.contents import json_of
from multibox.data.entries import Entry, Evidence, Object
from multibox.data.formats import json_files
from multibox.data.formats.json_files import dict_in, objects_in
from multibox.data.records import Dataset
from multibox.data.shapes import Box, around_png, around_points
from multibox.data.tree import Tree
from multibox.spec.classes import ClassMap

__all__ = ["entries", "evidence", "holds", "read"]

META = "meta.json"
_NO_BOX = frozenset({"point", "line", "polyline", "graph"})


def holds(data: Any) -> bool:
    """Whether a JSON file is an annotation of Supervisely's."""
    if not isinstance(data, dict) or not isinstance(data.get("objects"), list) or "size" not in data:
        return False
    first = next((item for item in data["objects"] if isinstance(item, dict)), None)
    return first is None or "classTitle" in first or "geometryType" in first


def _is_meta(data: Any) -> bool:
    return isinstance(data, dict) and all("title" in item for item in objects_in(data, "classes")) and "classes" in data


def evidence(tree: Tree) -> Evidence | None:
    """The annotation files of a tree."""
    return json_files.find_evidence(tree, holds, sure=tree.spelt(META) is not None)


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a Supervisely project; see `json_files.read_files`."""
    return json_files.read_files(
        tree,
        images,
        what="Supervisely's objects",
        holds=holds,
        entries=entries,
        class_map=_classes(tree),
        own_file=True,
        aside=[META],
    )


def _classes(tree: Tree) -> ClassMap | None:
    meta = None if tree.is_file else tree.spelt(META)
    if meta is None:
        return None
    try:
        data = json_of((tree.root / meta).read_bytes())
    except ValueError:
        return None  # the reader names it
    names = [str(item["title"]) for item in objects_in(data, "classes")] if _is_meta(data) else []
    return class_map_of(tree.root / meta, names) if names else None


def entries(data: Any) -> Iterator[tuple[str, Entry]]:
    """The one picture of a file."""
    size = dict_in(data, "size")
    entry = Entry("", len(data["objects"]), size_hw=(size.get("height"), size.get("width")))
    for number, item in enumerate(objects_in(data, "objects")):
        kind, where = str(item.get("geometryType") or "rectangle"), f"object {number}"
        if kind in _NO_BOX:
            entry.others.append(("no_box", where, f"a {kind} is no box"))
            continue
        if kind != "rectangle":
            entry.notes.append(("polygon_to_box", where, f"a {kind} was replaced by the box around it"))
        title, place = item.get("classTitle"), item.get("bitmap") or item.get("points")
        entry.objects.append(Object(where, None if title is None else str(title), _box(place), place))
    yield "", entry


def _box(place: Any) -> Box | None:
    if not isinstance(place, dict):
        return None
    return around_png(place["data"], place.get("origin")) if "data" in place else around_points(place.get("exterior"))
