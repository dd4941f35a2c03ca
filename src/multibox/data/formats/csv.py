"""CSV: a row for each box, a row with empty cells for each picture without objects.

Columns: path, width, height, name, class_id, x1, y1, x2, y2 and, optionally, crowd, difficult, truncated, occluded,
area, split, image_id, in any order. `<name>.classes.json` beside the file keeps the class list.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from multibox.data.class_lists import CLASS_FILE, read_class_file, write_class_file
from multibox.data.findings import DataError
from multibox.data.formats.rows import COLUMNS, REQUIRED, Row, check_columns, read_rows, rows_of
from multibox.data.formats.table_pictures import table_paths
from multibox.data.picture_files import CopyMode
from multibox.data.records import Dataset
from multibox.data.write_report import WriteReport, start_file

__all__ = ["evidence", "read", "write"]


def evidence(path: Path) -> str | None:
    """What makes a file or folder look like a CSV table, or None."""
    if path.is_file():
        return "a .csv file" if path.suffix.lower() == ".csv" else None
    files = _files(path)
    return f"found {files[0].name}" if len(files) == 1 else None


def _files(folder: Path) -> list[Path]:
    out = []
    for file in sorted(folder.glob("*.csv")):
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
            if set(REQUIRED) <= set(stream.readline().strip().replace('"', "").split(",")):
                out.append(file)
    return out


def read(path: Path, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a CSV file, or the one such file in a folder. Paths count from the file's folder, or from `images`.

    Raises:
        DataError: no such file, or a column is missing.
    """
    files = [path] if path.is_file() else _files(path)
    if len(files) != 1:
        raise DataError(path, f"holds {len(files)} CSV files with {', '.join(REQUIRED)}", "give the file")
    source = files[0]
    class_map = read_class_file(source.with_suffix("." + CLASS_FILE), text=False)
    try:
        with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            check_columns(source, header)
            rows = _rows(reader, header)
            has_score = "confidence" in header
            return read_rows(source, rows, root=images or source.parent, class_map=class_map, has_score=has_score)
    except OSError as error:
        raise DataError(source, f"cannot be read ({error.strerror})", "check the path") from None
    except csv.Error as error:
        raise DataError(source, f"is no CSV table ({error})", "write it with commas and one header line") from None


def _rows(reader: Iterator[list[str]], header: list[str]) -> Iterator[tuple[str, Row]]:
    width = len(header)
    positions = [header.index(name) if name in header else width for name in COLUMNS]
    for number, cells in enumerate(reader, start=2):
        if not any(cells):
            continue
        padded = [
            *cells[:width],
            *[""] * (width + 1 - len(cells[:width])),
        ]  # a missing column reads the last, empty cell
        yield f"row {number}", tuple(padded[position] for position in positions)


def write(dataset: Dataset, path: Path, *, copy: CopyMode = "false", exist_ok: bool = False) -> WriteReport:
    """Write a CSV file and its class file."""
    report = WriteReport(start_file(path, exist_ok=exist_ok))
    paths = table_paths(dataset, path.parent, copy, report)
    write_class_file(path.with_suffix("." + CLASS_FILE), dataset.class_map)
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows_of(dataset, paths))
    return report
