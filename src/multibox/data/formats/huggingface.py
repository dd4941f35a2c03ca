"""Hugging Face rows: {"image": …, "objects": {"bbox": [[x, y, width, height], …], "category": […]}}; metadata.jsonl.

`from_rows` takes such rows in memory (a list, or a `datasets.Dataset`); `read` and `write` handle the folder form: a
metadata.jsonl beside the pictures, one folder for each split, and `classes.json` at the top for the class list.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.class_lists import (
    CLASS_FILE,
    LabelCoder,
    read_class_file,
    usable_area,
    whole_number,
    write_class_file,
)
from multibox.data.columns import FLAGS, LARGEST_PX, Builder, flag_bits
from multibox.data.findings import DataError, Findings
from multibox.data.picture_files import CopyMode, flat_names, place_pictures, stored_path
from multibox.data.records import Dataset, ImageRecord, box_area
from multibox.data.write_report import WriteReport, shortest, start_folder
from multibox.errors import ContractError
from multibox.spec.classes import ClassMap

__all__ = ["evidence", "from_rows", "read", "write"]

METADATA = "metadata.jsonl"
# Keys of `objects` that name one thing; the first one present counts.
_CATEGORY_KEYS = ("category", "categories", "label", "labels", "category_id")
_FLAG_KEYS = (("crowd", "iscrowd", "is_crowd"), ("difficult",), ("truncated",), ("occluded",))


def evidence(path: Path) -> str | None:
    """What makes a file or folder look like a Hugging Face picture folder, or None."""
    if path.is_file():
        return "a .jsonl file" if path.suffix.lower() == ".jsonl" else None
    files = _files(path)
    return f"found {files[0].relative_to(path).as_posix()}" if files else None


def _files(folder: Path) -> list[Path]:
    return [*sorted(folder.glob(METADATA)), *sorted(folder.glob(f"*/{METADATA}"))]


def read(path: Path, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a metadata.jsonl, or a folder with one or with one in each split's folder.

    Raises:
        DataError: there is none, or a line is no JSON object.
    """
    files = [path] if path.is_file() else _files(path)
    if not files:
        raise DataError(path, f"holds no {METADATA}", "give the folder that contains it")
    root = path if path.is_dir() else path.parent
    reader = _Reader(path, read_class_file(root / CLASS_FILE))
    for file in files:
        folder = file.parent.relative_to(root).as_posix()
        for number, row in enumerate(_lines(file), start=1):
            where = f"line {number}"
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise DataError(file, f"line {number} has no file_name", "complete or remove the line")
            stored = name if folder == "." or Path(name).is_absolute() else f"{folder}/{name}"
            reader.add(row, stored, shown=f"{folder}/{file.name}", where=where, split=None if folder == "." else folder)
    return reader.finish(images or root)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig") as stream:
        number = 0
        try:
            for line in stream:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("no JSON object")
                    yield row
        except (ValueError, RecursionError) as error:
            raise DataError(file, f"is damaged in line {number} ({error})", "write it again or copy it again") from None


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
    reader = _Reader("the rows", class_map or _names_in_features(rows))
    for number, row in enumerate(rows):
        path = _picture_path(row, number, Path(images) if images is not None else None)
        reader.add(row, path, shown="row", where=str(number), split=split)
    return reader.finish(Path(root))


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
        target.write_bytes(image["bytes"])
    elif hasattr(image, "save"):
        image.save(target)
    else:
        raise DataError(
            f"row {number}", f"its image is {type(image).__name__}", "give a path, a Pillow picture or bytes"
        )
    return str(target.absolute())


class _Reader:
    def __init__(self, source: object, class_map: ClassMap | None) -> None:
        self._source = source
        self.findings, self._builder, self._coder = Findings(), Builder(), LabelCoder(class_map)

    def add(self, row: Mapping[str, Any], path: str, *, shown: str, where: str, split: str | None) -> None:
        own_split = row.get("split")
        try:
            picture = self._builder.add_picture(
                path,
                image_id=row["image_id"] if isinstance(row.get("image_id"), (int, str)) else None,
                size_hw=self._size_hw(row, path),
                split=own_split if isinstance(own_split, str) and own_split else split,
            )
        except ContractError as error:
            raise DataError(f"{shown} {where}", str(error), "correct it") from None
        for number, found in enumerate(_objects(row)):
            self._add_object(picture, found, shown, f"{where}, object {number}")

    def _size_hw(self, row: Mapping[str, Any], path: str) -> tuple[int, int] | None:
        height, width = whole_number(row.get("height")), whole_number(row.get("width"))
        if height is not None and width is not None and 0 < height < LARGEST_PX and 0 < width < LARGEST_PX:
            return height, width
        if row.get("height") is not None or row.get("width") is not None:
            self.findings.add("size_unusable", path)
        return None

    def _add_object(self, picture: int, found: Mapping[str, Any], shown: str, where: str) -> None:
        category = next((found[key] for key in _CATEGORY_KEYS if found.get(key) is not None), None)
        if isinstance(category, str):
            code = self._coder.code(category, None)
        else:
            number = whole_number(category)
            code = None if number is None else self._coder.code(None, number)
        if code is None:
            self.findings.add(
                "unknown_class",
                shown,
                where,
                f"category {category!r} is not in the class list; the box is lost",
                lost=1,
            )
            return
        try:
            x, y, width, height = (float(value) for value in found["bbox"])
        except (KeyError, TypeError, ValueError):
            x = y = width = height = math.nan
        bits = flag_bits(*(next((found[key] for key in keys if key in found), None) for keys in _FLAG_KEYS))
        area = usable_area(found.get("area"), self.findings, shown, where)
        box_xyxy = (x, y, x + width, y + height)
        if not self._builder.add_box(picture, code, box_xyxy, flags=bits, area=area):
            self.findings.add("unparsable_box", shown, where, f"bbox is {found.get('bbox')!r}; the box is lost", lost=1)

    def finish(self, root: Path) -> Dataset:
        class_map, relabel = self._coder.finish(self._source, self.findings, f"add a {CLASS_FILE} with the class names")
        return Dataset(self._builder.finish(relabel), class_map, root, findings=self.findings)


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
    names, renamed = flat_names(list(dataset.paths))
    if renamed:
        report.note(f"{renamed} pictures renamed because of equal or unusable names")
    split_names, codes = dataset.columns.split_names, dataset.columns.split_codes.tolist()
    folders = [path if code < 0 else path / split_names[code] for code in codes]
    place_pictures(dataset, [folder / name for folder, name in zip(folders, names, strict=True)], copy, report)
    write_class_file(path / CLASS_FILE, dataset.class_map)
    for folder in dict.fromkeys(folders or [path]):
        folder.mkdir(exist_ok=True)
        with (folder / METADATA).open("w", encoding="utf-8") as stream:
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
