"""CSV: a row for each box, a row with empty cells for each picture without objects.

Columns: path, width, height, name, class_id, x1, y1, x2, y2 and, optionally, crowd, difficult, truncated, occluded,
area, split, image_id, in any order. `<name>.classes.json` beside the file keeps the class list. Read as well are the
column names of others: the TensorFlow tutorials' (filename, class, xmin …), Open Images' (ImageID, LabelName, XMin …,
where corners are parts of the picture's sides), and six columns without a header (path, x1, y1, x2, y2, class).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from multibox.data.class_lists import CLASS_FILE, read_class_file, write_class_file
from multibox.data.entries import Evidence
from multibox.data.findings import DataError
from multibox.data.formats.rows import COLUMNS, CORNERS, RowReader, picture_column, rows_of
from multibox.data.names import split_in_file_name
from multibox.data.picture_files import CopyMode
from multibox.data.reading import Reading
from multibox.data.records import Dataset
from multibox.data.shapes import numbers
from multibox.data.tree import Tree, folder_of, stem_of
from multibox.data.write_report import WriteReport, start_file
from multibox.files import atomic_path

__all__ = ["Header", "evidence", "read", "table_folders", "write"]

SUFFIXES = (".csv", ".tsv")
DELIMITERS = ",;\t"
_ALIASES = {
    "path": ("path", "filename", "file", "filepath", "image", "imagepath", "imagename", "imagefile", "imageid"),
    "name": ("name", "class", "label", "labelname", "classname", "category", "categoryname"),
    "class_id": ("classid", "labelid", "categoryid"),
    "x1": ("x1", "xmin", "left"),
    "y1": ("y1", "ymin", "top"),
    "x2": ("x2", "xmax", "right"),
    "y2": ("y2", "ymax", "bottom"),
    "width": ("width", "imagewidth", "imgwidth"),
    "height": ("height", "imageheight", "imgheight"),
    "crowd": ("crowd", "iscrowd", "isgroupof"),
    "difficult": ("difficult",),
    "truncated": ("truncated", "istruncated"),
    "occluded": ("occluded", "isoccluded"),
    "area": ("area",),
    "split": ("split", "subset"),
    "image_id": ("imageid",),
}
_SCORES = frozenset({"confidence", "score"})
_OPEN_IMAGES = frozenset({"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"})
_WITHOUT_HEADER = ("path", *CORNERS, "name")


@dataclass(frozen=True)
class Header:
    """The columns of a table.

    Args:
        positions: of each of COLUMNS; −1 where the table has no such column.
        width: how many columns there are.
        unit: corners are parts of the picture's sides.
        has_score: there is a column with scores.
        is_row: the first line is a row, because there is no header.
    """

    positions: tuple[int, ...]
    width: int
    unit: bool = False
    has_score: bool = False
    is_row: bool = False

    @classmethod
    def of(cls, source: object, cells: list[str]) -> Header:
        """Tell the columns by their names.

        Raises:
            DataError: a column is missing.
        """
        keys = ["".join(char for char in cell.casefold() if char.isalnum()) for cell in cells]
        columns: dict[str, int] = {}
        for column, aliases in _ALIASES.items():
            position = next((keys.index(alias) for alias in aliases if alias in keys), -1)
            columns[column] = -1 if position in columns.values() else position
        if _is_row(cells):
            positions = [_WITHOUT_HEADER.index(name) if name in _WITHOUT_HEADER else -1 for name in COLUMNS]
            return cls(tuple(positions), len(cells), is_row=True)
        lacking = [name for name in ("path", *CORNERS) if columns[name] < 0]
        if not lacking and columns["name"] < 0 and columns["class_id"] < 0:
            lacking = ["name"]
        if lacking:
            remedy = f"name the columns {', '.join(COLUMNS[:9])} in its first line"
            raise DataError(source, f"has no column {', '.join(lacking)}", remedy)
        positions = [columns[name] for name in COLUMNS]
        return cls(tuple(positions), len(cells), set(keys) >= _OPEN_IMAGES, not _SCORES.isdisjoint(keys))


def _is_row(cells: list[str]) -> bool:
    corners = cells[1:5]
    return (
        len(cells) == len(_WITHOUT_HEADER)
        and bool(cells[0])
        and (numbers(corners) is not None or not any(cells[1:]))
        and numbers(cells[5:]) is None
    )


def evidence(tree: Tree) -> Evidence | None:
    """The CSV tables of a tree."""
    if tree.is_file:
        return Evidence("a .csv file")
    files = _files(tree)
    return Evidence(f"found {files[0]}", sure=False) if files else None


def _files(tree: Tree) -> list[str]:
    files = tree.annotations(*SUFFIXES)
    return files if tree.is_file else [file for file in files if _first_line(tree.root / file) is not None]


def _first_line(path: Path) -> Header | None:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        line = stream.readline(1 << 16)
    try:
        return Header.of(path, next(csv.reader([line], delimiter=_delimiter(line)), []))
    except (DataError, csv.Error):
        return None


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=line.count)


def table_folders(file: str) -> list[str]:
    """Where the pictures of a table may lie: in its folder, in `images` there, or anywhere from the root."""
    folder = folder_of(file)
    return list(dict.fromkeys([folder, f"{folder}/images" if folder else "images", ""]))


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a CSV file, or those of a folder, one for each split. Paths count from the file's folder, or from `images`.

    Raises:
        DataError: no such file, a column is missing, or several files that are not for different splits.
    """
    files = _files(tree)
    splits = [split_in_file_name(file) for file in files]
    if not files or (len(files) > 1 and (None in splits or len(set(splits)) < len(files))):
        reason = f"holds {len(files)} CSV files with path, {', '.join(CORNERS)} that are not for one split each"
        raise DataError(tree.place, reason, "give the file")
    lists = [place for file in files if (place := (tree.root / file).with_suffix("." + CLASS_FILE)).is_file()]
    class_map = read_class_file(lists[0]) if lists else None
    reading = Reading(tree.root / files[0], tree, class_map, pictures=None if images is None else Tree(images))
    reading.meet(files=len(files))
    for file, own in zip(files, splits, strict=True):
        _read_file(reading, file, own if len(files) > 1 or "/" in file else None)
    reading.note_unlisted()
    return reading.finish(f"add a {stem_of(files[0])}.{CLASS_FILE} with the class names")


def _read_file(reading: Reading, file: str, split: str | None) -> None:
    source = reading.tree.root / file
    try:
        with source.open(encoding=_encoding(source), errors="surrogateescape", newline="") as stream:
            delimiter = _delimiter(stream.readline())
            stream.seek(0)
            lines = csv.reader(stream, delimiter=delimiter, strict=True)
            _read_rows(reading, file, lines, split)
    except OSError as error:
        raise DataError(source, f"cannot be read ({error.strerror})", "check the path") from None
    except (csv.Error, UnicodeError) as error:
        raise DataError(source, f"is no CSV table ({error})", "write it with commas and one header line") from None
    reading.account.files_read += 1


def _encoding(path: Path) -> str:
    with path.open("rb") as stream:
        return "utf-16" if stream.read(2) in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"


def _read_rows(reading: Reading, file: str, lines: Any, split: str | None) -> None:
    first = [cell.strip() for cell in next(lines, [])]
    header = Header.of(reading.tree.root / file, first)
    if header.has_score:
        reading.findings.add("score_ignored", file)
    names = _descriptions(reading.tree) if header.unit else {}
    folders = table_folders(file) if reading.pictures is reading.tree else [""]
    rows = RowReader(reading, file, folders, unit=header.unit, split=split)
    name_at = header.positions[COLUMNS.index("name")]
    width, positions = header.width, header.positions
    for cells in chain([first] if header.is_row else [], lines):
        if not any(cells):
            continue
        where = f"line {lines.line_num}"
        if len(cells) != width and not (len(cells) > width and not any(cells[width:])):
            _lose_row(reading, rows, file, where, cells, header)
            continue
        if names:
            cells[name_at] = names.get(cells[name_at], cells[name_at])
        cells[width:] = [""]  # what a column that is not there (−1) reads
        rows.add(where, tuple([cells[position] for position in positions]))


def _lose_row(reading: Reading, rows: RowReader, file: str, where: str, cells: list[str], header: Header) -> None:
    """Name a row with another number of columns than the header: its values may be shifted, so none of them is used.

    Its picture is kept where its name is that of a file.
    """
    reading.meet(boxes=1)
    message = f"it has {len(cells)} columns and not {header.width}; put values with commas into quotes; the box is lost"
    reading.findings.add("wrong_columns", file, where, message, lost=1)
    written = cells[header.positions[0]] if header.positions[0] < len(cells) else ""
    if written and reading.pictures.find(written, table_folders(file)).exact:
        rows.picture(where, written, (None, None), None, None)


def _descriptions(tree: Tree) -> dict[str, str]:
    """Open Images' class names by their codes (/m/01g317 → Person), where the file with them lies in the tree."""
    found = {}
    for file in [] if tree.is_file else tree.annotations(".csv"):
        if "class-descriptions" in file.rpartition("/")[2].lower():
            with (tree.root / file).open(encoding="utf-8-sig", newline="") as stream:
                found.update({row[0]: row[1] for row in csv.reader(stream) if len(row) == 2})
    return found


def write(dataset: Dataset, path: Path, *, copy: CopyMode = "false", exist_ok: bool = False) -> WriteReport:
    """Write a CSV file and its class file."""
    report = WriteReport(start_file(path, exist_ok=exist_ok))
    paths = picture_column(dataset, path.parent, copy, report)
    write_class_file(path.with_suffix("." + CLASS_FILE), dataset.class_map)
    with (
        atomic_path(path) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows_of(dataset, paths))
    return report
