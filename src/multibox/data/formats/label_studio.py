"""Label Studio's JSON and JSON-MIN exports. Read only.

[{"data": {"image": "/data/upload/3/0c1d-a.jpg"}, "annotations": [{"result": [{"type": "rectanglelabels",
"original_width": 160, "original_height": 120, "value": {"x": …, "y": …, "width": …, "height": …, "rotation": 0,
"rectanglelabels": ["cup"]}}]}]}], and in JSON-MIN [{"image": …, "label": [the values]}]: all in percent of the sides of
the picture. Of several annotations of a picture, the one marked as ground truth is read, or the first not cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multibox.data.entries import Entry, Evidence, Object
from multibox.data.formats import json_files
from multibox.data.formats.json_files import dict_in, objects_in
from multibox.data.records import Dataset
from multibox.data.shapes import Box, around_circle, around_points, around_sides, numbers
from multibox.data.tree import Tree, suffix_of
from multibox.pictures.read import PICTURE_SUFFIXES

__all__ = ["entries", "evidence", "holds", "read"]

_LISTS = ("annotations", "completions")
_NO_BOX = ("brushlabels", "keypointlabels", "keypoint", "brush")


def holds(data: Any) -> bool:
    """Whether a JSON file is an export of Label Studio's."""
    return any(_is_task(task) or _min_lists(task) for task in objects_in(data))  # in JSON-MIN some show nothing


def _is_task(task: dict[str, Any]) -> bool:
    return isinstance(task.get("data"), dict) and any(isinstance(task.get(key), list) for key in _LISTS)


def _min_lists(task: dict[str, Any]) -> list[list[Any]]:
    """The lists of a JSON-MIN task that hold regions."""
    return [
        values
        for values in task.values()
        if isinstance(values, list) and any(isinstance(v, dict) and "original_width" in v for v in values)
    ]


def evidence(tree: Tree) -> Evidence | None:
    """The exports in a tree."""
    return json_files.find_evidence(tree, holds)


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read Label Studio's JSON; see `json_files.read_files`."""
    return json_files.read_files(tree, images, what="Label Studio's tasks", holds=holds, entries=entries)


def entries(data: Any) -> Iterator[tuple[str, Entry]]:
    """The pictures of a file."""
    for number, task in enumerate(objects_in(data)):
        where = f"task {number}"
        if not isinstance(task.get("data"), dict):
            regions = [{"value": value, **value} for found in _min_lists(task) for value in objects_in(found)]
            entry = Entry(_picture(task), len(regions))
        else:
            entry, regions = _of_task(task, where)
        for position, region in enumerate(regions):
            _add(entry, f"{where}, region {position}", region, regions)
        yield where, entry


def _picture(values: dict[str, Any]) -> str:
    """The value that names the picture: the one with the suffix of one, or else the one called image."""
    texts = [value for value in values.values() if isinstance(value, str)]
    named = [text for text in texts if suffix_of(text.partition("?")[0]) in PICTURE_SUFFIXES or "?d=" in text]
    return str((named or [values.get("image") or values.get("img") or ""])[0])


def _of_task(task: dict[str, Any], where: str) -> tuple[Entry, list[dict[str, Any]]]:
    """The picture of a task and the regions of the annotation to use."""
    annotations = [item for key in _LISTS for item in objects_in(task, key)]
    usable = [item for item in annotations if not item.get("was_cancelled") and not item.get("skipped")]
    usable.sort(key=lambda item: not item.get("ground_truth"))
    lists = [objects_in(item, "result") for item in usable]
    entry = Entry(_picture(task["data"]) or str(task.get("file_upload") or ""), sum(len(found) for found in lists))
    for found in lists[1:]:
        message = f"the picture has {len(lists)} annotations; one of them was read"
        entry.others += [("repeated_annotation", where, message)] * len(found)
    return entry, lists[0] if lists else []


def _add(entry: Entry, where: str, region: dict[str, Any], regions: list[dict[str, Any]]) -> None:
    value = dict_in(region, "value")
    kind = str(region.get("type") or next((key for key in value if key.endswith("labels")), "rectangle"))
    place = {"rectangle": "x", "ellipse": "radiusX", "polygon": "points"}
    shape = next((name for name, key in place.items() if key in value and name != "rectangle"), "rectangle")
    # A region of the separate tags <Rectangle> and <Labels> is there twice: with its place, and with place and labels.
    twin = (
        any(other is not region and other.get("id") == region.get("id") and _labels(other) for other in regions)
        and region.get("id") is not None
    )
    if kind in _NO_BOX or not any(key in value for key in place.values()):
        entry.others.append(("no_box", where, f"a result of the type {kind} is no box"))
    elif not _labels(region) and twin:
        entry.others.append(("no_box", where, "its labels are in another result"))
    else:
        labels: list[str | None] = [*_labels(region)] or [None]
        entry.met += len(labels) - 1
        if shape != "rectangle" or value.get("rotation"):
            entry.notes.append(("polygon_to_box", where, f"a {shape} was replaced by the box around it"))
        width, height = region.get("original_width"), region.get("original_height")
        entry.size_hw = (height, width) if entry.size_hw == (None, None) else entry.size_hw
        entry.objects += [Object(where, label, _box(shape, value, width, height), value) for label in labels]


def _labels(region: dict[str, Any]) -> list[str]:
    found = next((v for k, v in dict_in(region, "value").items() if k.endswith("labels")), None)
    return [str(label) for label in found] if isinstance(found, list) else []


def _box(shape: str, value: dict[str, Any], width: Any, height: Any) -> Box | None:
    """The box in pixels; shapes turn in pixels, not in percent."""
    sides = numbers((width, height))
    if sides is None:
        return None
    unit_x, unit_y = sides[0] / 100, sides[1] / 100

    def pixels(key: str, unit: float) -> float | None:
        found = numbers((value.get(key),))
        return found[0] * unit if found else None

    if shape == "polygon":
        points = value.get("points")
        unit = around_points(points)
        return unit and (unit[0] * unit_x, unit[1] * unit_y, unit[2] * unit_x, unit[3] * unit_y)
    turn = value.get("rotation")
    corner = pixels("x", unit_x), pixels("y", unit_y)
    if shape == "ellipse":
        return around_circle(*corner, pixels("radiusX", unit_x), pixels("radiusY", unit_y), turn)
    return around_sides((*corner, pixels("width", unit_x), pixels("height", unit_y)), degrees=turn)
