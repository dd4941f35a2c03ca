"""Hugging Face rows: {"image": …, "objects": {"bbox": [[x, y, width, height], …], "category": […]}}; metadata.jsonl.

`from_rows` takes such rows in memory (a list, or a `datasets.Dataset`); `read` and `write` handle the folder form: a
metadata.jsonl beside the pictures, one folder for each split, and `classes.json` at the top for the class list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.class_lists import CLASS_FILE, find_class_list, whole_number, write_class_file
from multibox.data.columns import FLAGS, flag_bits
from multibox.data.contents import decoded
from multibox.data.entries import Evidence, Object
from multibox.data.findings import DataError
from multibox.data.picture_files import CopyMode, named_flat, place_pictures, stored_path
from multibox.data.reading import Reading
from multibox.data.records import Dataset, ImageRecord, box_area
from multibox.data.shapes import numbers
from multibox.data.tree import Tree, folder_of
from multibox.data.write_report import WriteReport, shortest, start_folder
from multibox.files import atomic_path, atomic_write
from multibox.spec.classes import ClassMap

__all__ = ["evidence", "from_rows", "read", "write"]

SUFFIX = ".jsonl"
METADATA = "metadata.jsonl"
# Keys of `objects` that name one thing; the first one present counts.
_CATEGORY_KEYS = ("category", "categories", "label", "labels", "category_id")
_FLAG_KEYS = (("crowd", "iscrowd", "is_crowd"), ("difficult",), ("truncated",), ("occluded",))


def evidence(tree: Tree) -> Evidence | None:
    """A metadata.jsonl of a tree."""
    files = _files(tree)
    if not files:
        return None
    return Evidence("a .jsonl file" if tree.is_file else f"found {files[0]}")


def _files(tree: Tree) -> list[str]:
    files = tree.annotations(SUFFIX)
    return files if tree.is_file else [file for file in files if file.rpartition("/")[2].lower() == METADATA]


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a metadata.jsonl, or a folder with one or with one in each split's folder.

    A line that is no JSON object is named and lost.

    Raises:
        DataError: there is none.
    """
    files = _files(tree)
    if not files:
        raise DataError(tree.place, f"holds no {METADATA}", "give the folder that contains it")
    reading = Reading(tree.place, tree, find_class_list(tree), pictures=None if images is None else Tree(images))
    reader = _Reader(reading)
    reading.meet(files=len(files))
    for file in files:
        lines = reading.read(file, lambda content: decoded(content).split("\n")) or []
        folder = folder_of(file)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                reader.add_line(line, file, f"line {number}", folder)
    reading.note_unlisted()
    return reader.finish()


def from_rows(
    rows: Iterable[Mapping[str, Any]],
    class_map: ClassMap | None = None,
    *,
    root: str | os.PathLike[str] = ".",
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
) -> Dataset:
    """A data set from rows in memory.

    Args:
        rows: mappings with "image" (a path, a dictionary with "path", or a Pillow picture), or "file_name", and
            "objects". Category numbers are labels of the class map.
        class_map: the classes; left out, the names in the rows' own `features` (of the `datasets` package) are used,
            and else the categories in use.
        root: where relative paths start.
        images: a folder to write pictures to that exist in memory only.
        split: the split of rows that name none.

    Raises:
        DataError: a picture exists in memory only and no folder was given.
    """
    reading = Reading("the rows", Tree(Path(root)), class_map or _names_in_features(rows))
    reader = _Reader(reading)
    for number, row in enumerate(rows):
        path = _picture_path(row, number, Path(images) if images is not None else None)
        reader.add(row, path, shown="row", where=str(number), split=split)
    return reader.finish()


def _names_in_features(rows: Any) -> ClassMap | None:
    """The class names that a `datasets.Dataset` declares, wherever its nesting keeps them."""
    features: Any = getattr(rows, "features", None)
    objects = features.get("objects") if isinstance(features, Mapping) else None
    inner = getattr(objects, "feature", objects)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    for key in _CATEGORY_KEYS:
        found = inner.get(key) if isinstance(inner, Mapping) else None
        found = found[0] if isinstance(found, list) and found else found
        names = getattr(getattr(found, "feature", found), "names", None)
        if names:
            return ClassMap(tuple(names))
    return None


def _picture_path(row: Mapping[str, Any], number: int, folder: Path | None) -> str:
    image = row.get("image", row.get("file_name"))
    path = image.get("path") if isinstance(image, Mapping) else getattr(image, "filename", image)
    if isinstance(path, (str, os.PathLike)) and os.fspath(path):
        return os.fspath(path)
    if folder is None:
        raise DataError(
            f"row {number}", "its picture is in memory only", "give images=FOLDER to write such pictures to"
        )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{number:08d}.png"
    if isinstance(image, Mapping) and image.get("bytes"):
        target = target.with_suffix(".jpg" if image["bytes"][:2] == b"\xff\xd8" else ".png")
        atomic_write(target, image["bytes"], durable=False)
    elif hasattr(image, "save"):
        with atomic_path(target, durable=False) as partial:
            image.save(partial)
    else:
        raise DataError(
            f"row {number}", f"its image is {type(image).__name__}", "give a path, a Pillow picture or bytes"
        )
    return str(target.absolute())


class _Reader:
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def add_line(self, line: str, file: str, where: str, folder: str) -> None:
        """Take a line of a metadata.jsonl."""
        reading = self._reading
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object")
        except (ValueError, RecursionError) as error:
            reading.lose_part(file, where, f"cannot be read ({error})")
            return
        written = row.get("file_name")
        if not isinstance(written, str) or not written:
            raise DataError(reading.tree.root / file, f"{where} has no file_name", "complete or remove the line")
        found = reading.find(written, (folder, "") if reading.pictures is reading.tree else ("", folder))
        self.add(row, found, shown=file, where=where, split=folder.rpartition("/")[2] or None)

    def add(self, row: Mapping[str, Any], path: str, *, shown: str, where: str, split: str | None) -> None:
        """Take a row, whose picture is at `path`."""
        own_split, image_id = row.get("split"), row.get("image_id")
        objects = list(_objects(row))
        self._reading.meet(pictures=1, boxes=len(objects))
        picture = self._reading.add_picture(
            path,
            shown=shown,
            where=where,
            image_id=image_id if isinstance(image_id, (int, str)) else None,
            size_hw=(row.get("height"), row.get("width")),
            split=own_split if isinstance(own_split, str) and own_split else split,
        )
        for number, found in enumerate(objects):
            self._reading.add_box(picture, shown, _object(found, f"{where}, object {number}"))

    def finish(self) -> Dataset:
        """The data set."""
        return self._reading.finish(f"add a {CLASS_FILE} with the class names")


def _object(found: Mapping[str, Any], where: str) -> Object:
    category = next((found[key] for key in _CATEGORY_KEYS if found.get(key) is not None), None)
    sides = numbers(found["bbox"], 4) if "bbox" in found else None
    box = None if sides is None else (sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3])
    bits = flag_bits(*(next((found[key] for key in keys if key in found), None) for keys in _FLAG_KEYS))
    return Object(
        where,
        category if isinstance(category, str) else None,
        box,
        f"bbox = {found.get('bbox')!r}",
        class_id=None if isinstance(category, str) else whole_number(category),
        flags=bits,
        area=found.get("area"),
    )


def _objects(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The objects of a row, each as a mapping, from a dictionary of lists or a list of dictionaries."""
    objects = row.get("objects")
    if isinstance(objects, Mapping):
        lists = {key: list(values) for key, values in objects.items() if isinstance(values, (list, tuple, np.ndarray))}
        for i in range(max((len(values) for values in lists.values()), default=0)):
            yield {key: values[i] for key, values in lists.items() if i < len(values)}
    elif objects is not None:
        for found in objects:
            yield found if isinstance(found, Mapping) else {}


# ------------------------------------------------------------------------------------------------ writing


def write(dataset: Dataset, path: Path, *, copy: CopyMode = "link", exist_ok: bool = False) -> WriteReport:
    """Write a picture folder; boxes without an area get that of the box, which training scripts expect."""
    report = WriteReport(start_folder(path, exist_ok=exist_ok))
    names = named_flat(dataset, report)
    split_names, codes = dataset.columns.split_names, dataset.columns.split_codes.tolist()
    folders = [path if code < 0 else path / split_names[code] for code in codes]
    place_pictures(dataset, [folder / name for folder, name in zip(folders, names, strict=True)], copy, report)
    write_class_file(path / CLASS_FILE, dataset.class_map)
    for folder in dict.fromkeys(folders or [path]):
        folder.mkdir(exist_ok=True)
        with atomic_path(folder / METADATA) as partial, partial.open("w", encoding="utf-8") as stream:
            for i, placed in enumerate(folders):
                if placed == folder:
                    name = names[i] if copy != "false" else stored_path(dataset, i, folder)
                    stream.write(json.dumps(_row(dataset[i], name)) + "\n")
    if copy == "false":
        report.note("file_name entries are absolute paths, which the datasets package refuses; copy=link avoids that")
    return report


def _row(record: ImageRecord, name: str) -> dict[str, Any]:
    boxes = shortest(record.boxes_xyxy)
    sides = boxes[:, 2:] - boxes[:, :2]
    row: dict[str, Any] = {"file_name": name, "image_id": record.image_id}
    if record.size_hw is not None:
        row["height"], row["width"] = record.size_hw
    areas = np.where(np.isnan(record.area), box_area(record.boxes_xyxy), record.area)
    row["objects"] = {
        "bbox": [
            [x, y, *(float(f"{side:.12g}") for side in pair)]
            for (x, y), pair in zip(boxes[:, :2].tolist(), sides.tolist(), strict=True)
        ],
        "category": record.labels.tolist(),
        "area": areas.tolist(),
        **{flag: getattr(record, flag).astype(int).tolist() for flag in FLAGS},
    }
    return row
