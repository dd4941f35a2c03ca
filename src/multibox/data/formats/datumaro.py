"""Datumaro JSON: annotations/<split>.json, and the pictures in images/ or images/<split>/. Read only.

{"categories": {"label": {"labels": [{"name": "cup"}, …]}}, "items": [{"id": "a", "image": {"path": "a.jpg", "size":
[height, width]}, "annotations": [{"type": "bbox", "label_id": 0, "bbox": [x, y, width, height]}]}]}, in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multibox.data.class_lists import class_map_of, whole_number
from multibox.data.columns import flag_bits
from multibox.data.contents import json_of
from multibox.data.entries import Entry, Evidence, Object
from multibox.data.findings import DataError
from multibox.data.formats import json_files
from multibox.data.formats.json_files import dict_in, objects_in
from multibox.data.records import Dataset
from multibox.data.shapes import Box, around_mask, around_points, around_sides, numbers
from multibox.data.tree import Tree
from multibox.spec.classes import ClassMap

__all__ = ["entries", "evidence", "holds", "read"]

_NO_BOX = frozenset({"label", "caption", "points", "polyline"})


def holds(data: Any) -> bool:
    """Whether a JSON file is Datumaro's."""
    return isinstance(data, dict) and isinstance(data.get("items"), list) and isinstance(data.get("categories"), dict)


def evidence(tree: Tree) -> Evidence | None:
    """The Datumaro files of a tree."""
    return json_files.find_evidence(tree, holds)


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read Datumaro files, which must agree about their classes; see `json_files.read_files`.

    Raises:
        DataError: a file lists other classes than the first.
    """
    found: dict[str, ClassMap] = {}
    for file in json_files.files_that_hold(tree, holds):
        try:
            data = json_of((tree.root / file).read_bytes())
        except ValueError:
            continue  # the reader names it
        labels = data["categories"].get("label") if holds(data) else None
        names = [str(label.get("name")) for label in objects_in(labels, "labels")]
        if names:
            found[file] = class_map_of(tree.root / file, names)
    for file, class_map in found.items():
        first = next(iter(found))
        if class_map != found[first]:
            raise DataError(tree.root / file, f"lists other classes than {first}", "make them agree")
    return json_files.read_files(
        tree,
        images,
        what="Datumaro's items",
        holds=holds,
        entries=entries,
        class_map=next(iter(found.values()), None),
    )


def entries(data: Any) -> Iterator[tuple[str, Entry]]:
    """The pictures of a file."""
    for number, item in enumerate(objects_in(data, "items")):
        where = f"item {number}"
        media = dict_in(item, "image") or dict_in(item, "media")
        size = numbers(media.get("size") or (), 2) or (None, None)
        found = objects_in(item, "annotations")
        entry = Entry(str(media.get("path") or item.get("id") or ""), len(found), size_hw=(size[0], size[1]))
        for position, annotation in enumerate(found):
            _add(entry, f"{where}, annotation {position}", annotation)
        yield where, entry


def _add(entry: Entry, where: str, found: dict[str, Any]) -> None:
    kind = str(found.get("type"))
    if kind in _NO_BOX:
        entry.others.append(("no_box", where, f"a {kind} is no box"))
        return
    if kind != "bbox":
        entry.notes.append(("polygon_to_box", where, f"a {kind} was replaced by the box around it"))
    attributes = dict_in(found, "attributes")
    bits = flag_bits(*(attributes.get(name) for name in ("is_crowd", "difficult", "truncated", "occluded")))
    written = next((found[key] for key in ("bbox", "points", "rle") if key in found), None)
    entry.objects.append(
        Object(where, None, _box(found), written, class_id=whole_number(found.get("label_id")), flags=bits)
    )


def _box(found: dict[str, Any]) -> Box | None:
    mask = found.get("rle")
    if "bbox" in found:
        return around_sides(found["bbox"])
    if isinstance(mask, dict):
        return around_mask(mask.get("counts"), mask.get("size"))
    return around_points(found.get("points"))
