"""The table of formats, how one is recognised, and the two functions that read and write all of them."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from multibox.data.findings import DataError
from multibox.data.picture_files import CopyMode, check_sizes
from multibox.data.records import Dataset
from multibox.data.write_report import WriteReport
from multibox.errors import OptionError, did_you_mean

__all__ = ["FORMATS", "Format", "detect_format", "format_of_target", "read_dataset", "write_dataset"]


@dataclass(frozen=True)
class Format:
    """A format: its title, its module (with evidence, read and write), and what `write` does with pictures unasked.

    `suffix` is that of the file it is written to; a format without one is written to a folder.
    """

    title: str
    module: str
    copy: CopyMode
    suffix: str | None = None

    def load(self) -> ModuleType:
        """The module."""
        return importlib.import_module(f"multibox.data.formats.{self.module}")


FORMATS: dict[str, Format] = {
    "coco": Format("COCO JSON", "coco", "false"),
    "voc": Format("Pascal VOC", "voc", "link"),
    "yolo": Format("YOLO text", "yolo", "link"),
    "csv": Format("CSV", "csv", "false", ".csv"),
    "parquet": Format("Parquet", "parquet", "false", ".parquet"),
    "huggingface": Format("Hugging Face picture folder", "huggingface", "link"),
}
_TARGET_SUFFIXES = {".json": "coco", ".csv": "csv", ".parquet": "parquet"}


def detect_format(path: str | os.PathLike[str]) -> tuple[str, str]:
    """(format, what was found that says so).

    Raises:
        DataError: nothing there, no known format, or several.
    """
    place = Path(path)
    if not place.exists():
        raise DataError(place, "there is no such file or folder", "check the path")
    found = {
        name: evidence for name, entry in FORMATS.items() if (evidence := entry.load().evidence(place)) is not None
    }
    if set(found) == {"coco", "yolo"}:
        # One set written twice, as is common: the JSON keeps ids, areas and crowd flags that the text files cannot.
        return "coco", f"{found['coco']}; besides {found['yolo'].removeprefix('found ')}, which format=yolo reads"
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        both = " and ".join(f"{FORMATS[name].title} ({evidence})" for name, evidence in found.items())
        choice = " or ".join(f"format={name}" for name in found)
        raise DataError(place, f"looks like {both}", f"say which to read: {choice} (from_format= on the command line)")
    inner = [entry for entry in sorted(place.iterdir()) if entry.is_dir()][:50] if place.is_dir() else []
    inside = next((entry for entry in inner if any(f.load().evidence(entry) for f in FORMATS.values())), None)
    hint = f"did you mean {inside}?" if inside else f"say format= with one of {', '.join(FORMATS)}, or check the path"
    raise DataError(place, "is no data set in a known format", hint)


def read_dataset(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    split: str | None = None,
    images: str | os.PathLike[str] | None = None,
    check_pictures: bool = True,
) -> Dataset:
    """Read a data set; what is wrong with it is in `Dataset.findings`, what was read and why in `Dataset.origin`.

    Args:
        path: a file or folder.
        format: a key of FORMATS; recognised when left out.
        split: only the pictures of this split.
        images: the folder of the pictures, where the annotations do not lead to it (a lone COCO JSON, a table).
        check_pictures: read every picture's header, to find missing files and wrong declared sizes.

    Raises:
        DataError: it is not there, broken as a whole, of unknown or ambiguous format, or lacks the split.
        OptionError: an unknown format.
        MissingDependencyError: the format needs an optional package.
    """
    place = Path(path)
    if format is None:
        name, evidence = detect_format(place)
    else:
        name, evidence = _known(format), "as asked for"
        if not place.exists():
            raise DataError(place, "there is no such file or folder", "check the path")
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DataError(folder, "images= is no folder", "give the folder with the pictures")
    dataset: Dataset = FORMATS[name].load().read(place, split=split, images=folder)
    dataset.origin = f"{place} as {FORMATS[name].title} ({evidence})"
    if split is not None:
        dataset = dataset.split(split)
    _note_degenerate(dataset)
    if check_pictures and name != "yolo":  # whose reader needs the sizes anyway
        check_sizes(dataset, dataset.findings)
    return dataset


def _note_degenerate(dataset: Dataset) -> None:
    boxes, offsets = dataset.columns.boxes_xyxy, dataset.columns.offsets
    for position in np.flatnonzero((boxes[:, :2] >= boxes[:, 2:]).any(axis=1)).tolist():
        picture = int(np.searchsorted(offsets, position, side="right")) - 1
        where = f"box {position - int(offsets[picture])}"
        message = f"(x1, y1, x2, y2) = {boxes[position].tolist()} has no area or swapped corners; kept as it is"
        dataset.findings.add("degenerate_box", dataset.paths[picture], where, message)


def format_of_target(path: str | os.PathLike[str], format: str | None) -> str:
    """The format to write to a path: as asked for, or by its suffix."""
    if format is not None:
        return _known(format)
    name = _TARGET_SUFFIXES.get(Path(path).suffix.lower())
    if name is None:
        raise OptionError(f"{path}: say which format to write: format= with one of {', '.join(FORMATS)}")
    return name


def write_dataset(
    dataset: Dataset,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    copy: CopyMode | bool | None = None,
    exist_ok: bool = False,
    round_boxes: bool = False,
) -> WriteReport:
    """Write a data set; nothing of it is dropped, and what the format holds in its own way is in the report's notes.

    Args:
        dataset: what to write.
        path: a folder, or a file for csv, parquet and, with the suffix .json, coco.
        format: a key of FORMATS; by the suffix of `path` when left out.
        copy: pictures are copied ("true"), linked ("link") or stay ("false"); when left out they are linked for formats
            that find pictures by their place (voc, yolo, huggingface) and stay for the others.
        exist_ok: write into a folder with files in it, replace annotation files; pictures are never overwritten.
        round_boxes: Pascal VOC only: whole pixels.

    Raises:
        DataError: the target is taken or cannot be written, or the format cannot hold the data set at all.
    """
    name = format_of_target(path, format)
    entry, target = FORMATS[name], Path(path)
    if entry.suffix is not None and target.suffix.lower() != entry.suffix:
        raise OptionError(f"{target}: {entry.title} is written to a file with the suffix {entry.suffix}")
    if round_boxes and name != "voc":
        raise OptionError(f"rounding boxes is for Pascal VOC; {entry.title} holds them as they are")
    mode = entry.copy if copy is None else str(copy).lower()
    if mode not in {"true", "false", "link"}:
        raise OptionError(f"copy must be true, false or link, got {copy!r}")
    options = {"round_boxes": True} if round_boxes else {}
    report: WriteReport = entry.load().write(dataset, target, copy=mode, exist_ok=exist_ok, **options)
    return report


def _known(name: str) -> str:
    if name not in FORMATS:
        raise OptionError(f"unknown format {name!r}; {did_you_mean(name, FORMATS)}")
    return name
