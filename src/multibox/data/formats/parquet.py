"""Parquet: the columns of CSV, typed. The class list is in the file's metadata under "multibox.classes"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from multibox.data.class_lists import CLASS_FILE, class_map_of, read_class_file
from multibox.data.columns import FLAGS
from multibox.data.entries import Evidence
from multibox.data.findings import DataError
from multibox.data.formats.csv import Header, table_folders
from multibox.data.formats.rows import COLUMNS, CORNERS, Row, RowReader, picture_column, rows_of
from multibox.data.picture_files import CopyMode
from multibox.data.reading import Reading
from multibox.data.records import Dataset
from multibox.data.tree import Tree
from multibox.data.write_report import WriteReport, start_file
from multibox.errors import MissingDependencyError
from multibox.files import atomic_path
from multibox.spec.classes import ClassMap

__all__ = ["evidence", "read", "write"]

SUFFIX = ".parquet"
METADATA_KEY = b"multibox.classes"
CHUNK_ROWS = 1 << 16


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError("pyarrow", "Parquet", "data") from None
    return pyarrow, pyarrow.parquet


def evidence(tree: Tree) -> Evidence | None:
    """The Parquet table of a tree."""
    if tree.is_file:
        return Evidence("a .parquet file")
    files = _files(tree)
    return Evidence(f"found {files[0]}", sure=False) if len(files) == 1 else None


def _files(tree: Tree) -> list[str]:
    return [file for file in tree.annotations(SUFFIX) if tree.is_file or "/" not in file]


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a Parquet file, or the one in a folder. Paths count from the file's folder, or from `images`.

    Raises:
        DataError: no such file, or a column is missing.
        MissingDependencyError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    files = _files(tree)
    if len(files) != 1:
        raise DataError(tree.place, f"holds {len(files)} {SUFFIX} files", "give the file")
    source = tree.root / files[0]
    try:
        with parquet.ParquetFile(source) as file:
            names = list(file.schema_arrow.names)
            header = Header.of(source, names)
            class_map = _class_map(source, file.schema_arrow.metadata or {})
            reading = Reading(source, tree, class_map, pictures=None if images is None else Tree(images))
            reading.meet(files=1)
            if header.has_score:
                reading.findings.add("score_ignored", files[0])
            rows = RowReader(reading, files[0], table_folders(files[0]), unit=header.unit)
            for where, row in _rows(file, [names[at] if at >= 0 else None for at in header.positions]):
                rows.add(where, row)
            reading.account.files_read += 1
            reading.note_unlisted()
            return reading.finish(f"add a {source.stem}.{CLASS_FILE} with the class names")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(source, f"cannot be read as Parquet ({error})", "write it again or copy it again") from None


def _class_map(source: Path, metadata: dict[bytes, bytes]) -> ClassMap | None:
    if METADATA_KEY not in metadata:
        place = source.with_suffix("." + CLASS_FILE)
        return read_class_file(place) if place.is_file() else None
    data = json.loads(metadata[METADATA_KEY])
    return class_map_of(source, list(data["names"]), list(data["ids"]))


def _rows(file: Any, names: list[str | None]) -> Iterator[tuple[str, Row]]:
    """The rows; `names` are the columns to take for COLUMNS, None for one that is not there."""
    number = 0
    used = [name for name in names if name is not None]
    for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=used):
        values = {name: batch.column(name).to_pylist() for name in used}
        empty = [None] * batch.num_rows
        for row in zip(*(empty if name is None else values[name] for name in names), strict=True):
            number += 1
            yield f"row {number}", row


def write(dataset: Dataset, path: Path, *, copy: CopyMode = "false", exist_ok: bool = False) -> WriteReport:
    """Write a Parquet file.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    report = WriteReport(start_file(path, exist_ok=exist_ok))
    paths = picture_column(dataset, path.parent, copy, report)
    for shown in paths:
        if any("\ud800" <= char <= "\udfff" for char in shown):
            raise DataError(path, f"cannot hold the file name {shown!r}, which is no UTF-8", "rename the picture")
    types: dict[str, Any] = dict.fromkeys(COLUMNS, pyarrow.string())
    types |= dict.fromkeys(("width", "height", "class_id"), pyarrow.int32())
    types |= dict.fromkeys((*CORNERS, "area"), pyarrow.float64()) | dict.fromkeys(FLAGS, pyarrow.bool_())
    metadata = {METADATA_KEY: json.dumps(dataset.class_map.to_dict()).encode()}
    schema = pyarrow.schema([(name, types[name]) for name in COLUMNS], metadata=metadata)
    rows = rows_of(dataset, paths)
    with atomic_path(path) as partial, parquet.ParquetWriter(partial, schema) as writer:
        while chunk := list(islice(rows, CHUNK_ROWS)):
            arrays = []
            for name, values in zip(COLUMNS, zip(*chunk, strict=True), strict=True):
                typed = [None if v is None else bool(v) for v in values] if name in FLAGS else values
                arrays.append(pyarrow.array(typed, types[name]))
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    return report
