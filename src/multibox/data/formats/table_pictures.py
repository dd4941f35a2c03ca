"""How tables (CSV, Parquet) name the pictures."""

from __future__ import annotations

from pathlib import Path

from multibox.data.picture_files import CopyMode, flat_names, place_pictures, stored_path
from multibox.data.records import Dataset
from multibox.data.write_report import WriteReport

__all__ = ["table_paths"]


def table_paths(dataset: Dataset, folder: Path, copy: CopyMode, report: WriteReport) -> list[str]:
    """The path column of a table in `folder`; pictures to be copied or linked go into images/ beside it."""
    if copy == "false":
        place_pictures(dataset, [], copy, report)
        return [stored_path(dataset, i, folder) for i in range(len(dataset))]
    names, renamed = flat_names(list(dataset.paths))
    if renamed:
        report.note(f"{renamed} pictures renamed because of equal or unusable names")
    place_pictures(dataset, [folder / "images" / name for name in names], copy, report)
    return [f"images/{name}" for name in names]
