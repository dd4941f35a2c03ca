"""Tables with a row for each box, as CSV and Parquet hold them; a picture without objects is a row without a box."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.class_lists import whole_number
from multibox.data.columns import FLAGS, decode_id, flag_bits
from multibox.data.entries import Object
from multibox.data.picture_files import CopyMode, named_flat, place_pictures, stored_path
from multibox.data.reading import Reading
from multibox.data.records import Dataset
from multibox.data.shapes import Box
from multibox.data.write_report import WriteReport, shortest

__all__ = ["COLUMNS", "CORNERS", "Row", "RowReader", "picture_column", "rows_of"]

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("path", "width", "height", "name", "class_id", *CORNERS, *FLAGS, "area", "split", "image_id")
"""class_id is the label, 0 … C−1; the corners are pixels of the upright picture."""

Row = tuple[Any, ...]
_UNDECODED = re.compile("[\ud800-\udfff]")


class RowReader:
    """Takes rows, whose values are in the order of COLUMNS and may be text or numbers; None and "" are empty.

    The rows of a picture need not be together.

    Args:
        reading: the data set.
        file: the table, relative to the root of the tree.
        folders: where the pictures may lie, relative to their root.
        unit: corners are parts of the picture's sides instead of pixels.
        split: that of rows which name none.
    """

    def __init__(
        self, reading: Reading, file: str, folders: list[str], *, unit: bool = False, split: str | None = None
    ) -> None:
        self._reading, self._file, self._folders, self._unit, self._split = reading, file, folders, unit, split
        self._pictures: dict[tuple[str, str | None], int] = {}
        self._by_path: dict[tuple[str, str | None], int] = {}
        self._declared: dict[int, tuple[int, int] | None] = {}
        self._actual: dict[int, tuple[int, int] | None] = {}

    def add(self, where: str, row: Row) -> None:
        """Take a row."""
        reading = self._reading
        path, width, height, name, class_id, x1, y1, x2, y2, *flags, area, split, image_id = row
        lone = all(_empty(value) for value in (name, class_id, x1, y1, x2, y2))
        reading.meet(boxes=not lone)
        if _empty(path):
            message = "the row names no picture; its box is lost"
            reading.findings.add("unknown_picture", self._file, where, message, lost=not lone)
            return
        size = (None, None) if _empty(width) and _empty(height) else (height, width)
        picture = self.picture(where, str(path), size, self._split if _empty(split) else str(split), image_id)
        if lone:
            return
        number = None if _empty(class_id) else whole_number(class_id)
        if number is None and not _empty(class_id):
            message = f"class_id is {class_id!r}, no whole number; the box is lost"
            reading.findings.add("unknown_class", self._file, where, message, lost=1)
            return
        if isinstance(name, str) and not name.isprintable() and _UNDECODED.search(name):
            message = f"the class {name!r} is no UTF-8; save the file as UTF-8; the box is lost"
            reading.findings.add("unknown_class", self._file, where, message, lost=1)
            return
        box = _floats(x1, y1, x2, y2)
        if self._unit and box is not None:
            box = self._in_pixels(picture, box, where)
            if box is None:
                return
        found = Object(
            where,
            None if _empty(name) else str(name),
            box,
            f"x1, y1, x2, y2 = {(x1, y1, x2, y2)}",
            class_id=number,
            flags=flag_bits(*flags),
            area=None if _empty(area) else area,
        )
        reading.add_box(picture, self._file, found)

    def picture(self, where: str, written: str, size: tuple[Any, Any], split: str | None, image_id: Any) -> int:
        """The index of a picture, which is added when it is met first."""
        reading, key = self._reading, (written, split)
        picture = self._pictures.get(key)
        if picture is None:
            path = reading.find(written, self._folders, again=True)
            picture = self._by_path.get((path, split))
        if picture is None:
            reading.meet(pictures=1)
            own_id = written if _empty(image_id) else decode_id(str(image_id))
            picture = reading.add_picture(
                path, shown=self._file, where=where, image_id=own_id, size_hw=size, split=split
            )
            self._by_path[path, split] = picture
            self._declared[picture] = reading.size_hw(size, self._file, where) if size != (None, None) else None
        elif size != (None, None) and reading.size_hw(size, self._file, where) != self._declared[picture]:
            reading.findings.add("conflicting_size", written, where)
        self._pictures[key] = picture
        return picture

    def _in_pixels(self, picture: int, box: Box, where: str) -> Box | None:
        if picture not in self._actual:
            path = self._reading.builder.path(picture)
            self._actual[picture] = self._reading.actual_size_hw(path) or self._declared[picture]
        size_hw = self._actual[picture]
        if size_hw is None:
            self._reading.findings.add("size_unknown", self._file, where, lost=1)
            return None
        return box[0] * size_hw[1], box[1] * size_hw[0], box[2] * size_hw[1], box[3] * size_hw[0]


def _floats(*values: Any) -> Box | None:
    try:
        return float(values[0]), float(values[1]), float(values[2]), float(values[3])
    except (TypeError, ValueError):
        return None


def _empty(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN is what pandas leaves in empty cells


def rows_of(dataset: Dataset, paths: Iterable[str]) -> Iterator[Row]:
    """Rows in the order of COLUMNS, with None in empty cells; `paths` are the pictures' new names."""
    columns, names = dataset.columns, dataset.class_map.names
    for i, path in enumerate(paths):
        size_hw = dataset.declared_size_hw(i)
        head = (path, *((None, None) if size_hw is None else (size_hw[1], size_hw[0])))
        code = columns.split_codes[i]
        tail = (None if code < 0 else columns.split_names[code], columns.image_ids[i])
        part = slice(int(columns.offsets[i]), int(columns.offsets[i + 1]))
        if part.start == part.stop:
            yield (*head, *[None] * (len(COLUMNS) - len(head) - len(tail)), *tail)
        boxes = shortest(columns.boxes_xyxy[part]).tolist()
        details = zip(
            boxes, columns.labels[part].tolist(), columns.flags[part].tolist(), columns.area[part].tolist(), strict=True
        )
        for box, label, bits, area in details:
            flags = (bits >> bit & 1 for bit in range(len(FLAGS)))
            yield (*head, names[label], label, *box, *flags, None if np.isnan(area) else area, *tail)


def picture_column(dataset: Dataset, folder: Path, copy: CopyMode, report: WriteReport) -> list[str]:
    """The path column of a table in `folder`; pictures to be copied or linked go into images/ beside it."""
    if copy == "false":
        place_pictures(dataset, [], copy, report)
        return [stored_path(dataset, i, folder) for i in range(len(dataset))]
    names = named_flat(dataset, report)
    place_pictures(dataset, [folder / "images" / name for name in names], copy, report)
    return [f"images/{name}" for name in names]
