"""CreateML JSON, as Apple's tool reads it and Roboflow writes it. Read only.

[{"image": "a.jpg", "annotations": [{"label": "cup", "coordinates": {"x": …, "y": …, "width": …, "height": …}}]}]: x
and y are the centre of the box, in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multibox.data.entries import Entry, Evidence, Object
from multibox.data.formats import json_files
from multibox.data.formats.json_files import dict_in, objects_in
from multibox.data.records import Dataset
from multibox.data.shapes import around_sides
from multibox.data.tree import Tree

__all__ = ["entries", "evidence", "holds", "read"]

_PICTURE_KEYS = ("image", "imagefilename", "imageFilename", "image_filename")
_LIST_KEYS = ("annotations", "annotation")


def holds(data: Any) -> bool:
    """Whether a JSON file is CreateML's."""
    pictures = objects_in(data)
    lists = [picture[key] for picture in pictures for key in _LIST_KEYS if isinstance(picture.get(key), list)]
    named = all(any(key in picture for key in _PICTURE_KEYS) for picture in pictures[:3])
    first = next((item for found in lists for item in found if isinstance(item, dict)), None)
    return bool(lists) and named and (first is None or "coordinates" in first)


def evidence(tree: Tree) -> Evidence | None:
    """The CreateML files of a tree."""
    return json_files.find_evidence(tree, holds)


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read CreateML files; see `json_files.read_files`."""
    return json_files.read_files(tree, images, what="CreateML's annotations", holds=holds, entries=entries)


def entries(data: Any) -> Iterator[tuple[str, Entry]]:
    """The pictures of a file."""
    for number, picture in enumerate(objects_in(data)):
        where = f"picture {number}"
        found = next((objects_in(picture, key) for key in _LIST_KEYS if key in picture), [])
        entry = Entry(next((str(picture[key]) for key in _PICTURE_KEYS if picture.get(key)), ""), len(found))
        for position, item in enumerate(found):
            place = dict_in(item, "coordinates")
            sides = [place.get(key) for key in ("x", "y", "width", "height")]
            label = item.get("label")
            entry.objects.append(
                Object(
                    f"{where}, annotation {position}",
                    None if label is None else str(label),
                    around_sides(sides, pivot=(0.5, 0.5)),
                    item.get("coordinates"),
                )
            )
        yield where, entry
