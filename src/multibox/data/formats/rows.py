"""Tables with a row for each box, as CSV and Parquet hold them; a picture without objects is a row without a box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.class_lists import CLASS_FILE, LabelCoder, usable_area, whole_number
from multibox.data.columns import FLAGS, LARGEST_PX, Builder, decode_id, flag_bits
from multibox.data.findings import DataError, Findings
from multibox.data.records import Dataset
from multibox.data.write_report import shortest
from multibox.errors import ContractError
from multibox.spec.classes import ClassMap

__all__ = ["COLUMNS", "CORNERS", "REQUIRED", "check_columns", "read_rows", "rows_of"]

CORNERS = ("x1", "y1", "x2", "y2")
REQUIRED = ("path", *CORNERS)
COLUMNS = ("path", "width", "height", "name", "class_id", *CORNERS, *FLAGS, "area", "split", "image_id")
"""class_id is the label, 0 … C−1; the corners are pixels of the upright picture."""

Row = tuple[Any, ...]


def check_columns(source: object, header: list[str]) -> None:
    """DataError unless a table has the columns that it must have."""
    lacking = [name for name in REQUIRED if name not in header]
    if lacking or not {"name", "class_id"} & set(header):
        lacking = lacking or ["name"]
        raise DataError(
            source,
            f"has no column {', '.join(lacking)}",
            f"name the columns {', '.join(COLUMNS[:9])} in its first line",
        )


def read_rows(
    source: Path, rows: Iterable[tuple[str, Row]], *, root: Path, class_map: ClassMap | None, has_score: bool = False
) -> Dataset:
    """A data set from (place, values in the order of COLUMNS); the rows of a picture need not be together.

    Values may be text or numbers; None and "" are empty.
    """
    reader = _Reader(source, class_map)
    for where, row in rows:
        reader.add(where, row)
    if has_score:
        reader.findings.add("score_ignored", source)
    remedy = f"add a {source.stem}.{CLASS_FILE} with the class names"
    class_map, relabel = reader.coder.finish(source, reader.findings, remedy)
    return Dataset(reader.builder.finish(relabel), class_map, root, findings=reader.findings)


class _Reader:
    def __init__(self, source: Path, class_map: ClassMap | None) -> None:
        self._shown = source.name
        self.findings, self.builder, self.coder = Findings(), Builder(), LabelCoder(class_map)
        self._pictures: dict[tuple[str, str | None], int] = {}
        self._sizes: dict[int, tuple[int, int] | None] = {}

    def add(self, where: str, row: Row) -> None:
        path, width, height, name, class_id, x1, y1, x2, y2, *flags, area, split, image_id = row
        if _empty(path):
            self.findings.add(
                "unknown_picture", self._shown, where, "the row names no picture; its box is lost", lost=1
            )
            return
        size = (None, None) if _empty(width) and _empty(height) else (height, width)
        picture = self._picture(where, str(path), size, None if _empty(split) else str(split), image_id)
        if all(_empty(value) for value in (name, class_id, x1, y1, x2, y2)):
            return
        number = None if _empty(class_id) else whole_number(class_id)
        code = (
            None
            if number is None and not _empty(class_id)
            else self.coder.code(None if _empty(name) else str(name), number)
        )
        if code is None:
            message = f"class {name!r} with class_id {class_id!r} is not in the class list; the box is lost"
            self.findings.add("unknown_class", self._shown, where, message, lost=1)
            return
        try:
            box_xyxy = (float(x1), float(y1), float(x2), float(y2))
        except (TypeError, ValueError):
            box_xyxy = (math.nan,) * 4
        usable = None if _empty(area) else usable_area(area, self.findings, self._shown, where)
        if not self.builder.add_box(picture, code, box_xyxy, flags=flag_bits(*flags), area=usable):
            message = f"x1, y1, x2, y2 are {(x1, y1, x2, y2)}; the box is lost"
            self.findings.add("unparsable_box", self._shown, where, message, lost=1)

    def _picture(self, where: str, path: str, size: tuple[Any, Any], split: str | None, image_id: Any) -> int:
        key = (path, split)
        picture = self._pictures.get(key)
        size_hw = self._size_hw(where, size)
        if picture is None:
            own_id = path if _empty(image_id) else decode_id(str(image_id))
            try:
                picture = self.builder.add_picture(path, image_id=own_id, size_hw=size_hw, split=split)
            except ContractError as error:
                raise DataError(self._shown, f"{where}: {error}", "correct the row") from None
            self._pictures[key], self._sizes[picture] = picture, size_hw
        elif size_hw != self._sizes[picture]:
            self.findings.add("conflicting_size", path, where)
        return picture

    def _size_hw(self, where: str, size: tuple[Any, Any]) -> tuple[int, int] | None:
        height, width = whole_number(size[0]), whole_number(size[1])
        if height is not None and width is not None and 0 < height < LARGEST_PX and 0 < width < LARGEST_PX:
            return height, width
        if size != (None, None):
            self.findings.add("size_unusable", self._shown, where)
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
