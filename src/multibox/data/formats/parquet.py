"""Parquet: the columns of CSV, typed. The class list is in the file's metadata under "multibox.classes"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from multibox.data.class_lists import CLASS_FILE, class_map_of, read_class_file
from multibox.data.columns import FLAGS
from multibox.data.findings import DataError
from multibox.data.formats.rows import COLUMNS, CORNERS, Row, check_columns, read_rows, rows_of
from multibox.data.formats.table_pictures import table_paths
from multibox.data.picture_files import CopyMode
from multibox.data.records import Dataset
from multibox.data.write_report import WriteReport, start_file
from multibox.errors import MissingDependencyError
from multibox.spec.classes import ClassMap

__all__ = ["evidence", "read", "write"]

METADATA_KEY = b"multibox.classes"
CHUNK_ROWS = 1 << 16


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError("pyarrow", "Parquet", "data") from None
    return pyarrow, pyarrow.parquet


def evidence(path: Path) -> str | None:
    """What makes a file or folder look like a Parquet table, or None."""
    if path.is_file():
        return "a .parquet file" if path.suffix.lower() == ".parquet" else None
    files = sorted(path.glob("*.parquet"))
    return f"found {files[0].name}" if len(files) == 1 else None


def read(path: Path, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a Parquet file, or the one in a folder. Paths count from the file's folder, or from `images`.

    Raises:
        DataError: no such file, or a column is missing.
        MissingDependencyError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if len(files) != 1:
        raise DataError(path, f"holds {len(files)} .parquet files", "give the file")
    source = files[0]
    try:
        with parquet.ParquetFile(source) as file:
            header = list(file.schema_arrow.names)
            check_columns(source, header)
            class_map = _class_map(source, file.schema_arrow.metadata or {})
            rows = _rows(file, [name for name in COLUMNS if name in header])
            return read_rows(
                source, rows, root=images or source.parent, class_map=class_map, has_score="confidence" in header
            )
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(source, f"cannot be read as Parquet ({error})", "write it again or copy it again") from None


def _class_map(source: Path, metadata: dict[bytes, bytes]) -> ClassMap | None:
    if METADATA_KEY not in metadata:
        return read_class_file(source.with_suffix("." + CLASS_FILE), text=False)
    data = json.loads(metadata[METADATA_KEY])
    return class_map_of(source, list(data["names"]), list(data["ids"]))


def _rows(file: Any, names: list[str]) -> Iterator[tuple[str, Row]]:
    number = 0
    for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=names):
        values = {name: batch.column(name).to_pylist() for name in names}
        empty = [None] * batch.num_rows
        for row in zip(*(values.get(name, empty) for name in COLUMNS), strict=True):
            number += 1
            yield f"row {number}", row


def write(dataset: Dataset, path: Path, *, copy: CopyMode = "false", exist_ok: bool = False) -> WriteReport:
    """Write a Parquet file.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    report = WriteReport(start_file(path, exist_ok=exist_ok))
    paths = table_paths(dataset, path.parent, copy, report)
    for shown in paths:
        if any("\ud800" <= char <= "\udfff" for char in shown):
            raise DataError(path, f"cannot hold the file name {shown!r}, which is no UTF-8", "rename the picture")
    types: dict[str, Any] = dict.fromkeys(COLUMNS, pyarrow.string())
    types |= dict.fromkeys(("width", "height", "class_id"), pyarrow.int32())
    types |= dict.fromkeys((*CORNERS, "area"), pyarrow.float64()) | dict.fromkeys(FLAGS, pyarrow.bool_())
    metadata = {METADATA_KEY: json.dumps(dataset.class_map.to_dict()).encode()}
    schema = pyarrow.schema([(name, types[name]) for name in COLUMNS], metadata=metadata)
    rows = rows_of(dataset, paths)
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(rows, CHUNK_ROWS)):
            arrays = []
            for name, values in zip(COLUMNS, zip(*chunk, strict=True), strict=True):
                typed = [None if v is None else bool(v) for v in values] if name in FLAGS else values
                arrays.append(pyarrow.array(typed, types[name]))
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    return report
