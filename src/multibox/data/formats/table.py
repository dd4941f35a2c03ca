"""The table of formats, how one is recognised, and the two functions that read and write all of them."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from multibox.data.entries import Evidence
from multibox.data.findings import DataError
from multibox.data.names import is_web_address
from multibox.data.picture_files import CopyMode, check_sizes
from multibox.data.records import Dataset
from multibox.data.tree import Tree, suffix_of
from multibox.data.write_report import WriteReport
from multibox.errors import OptionError, did_you_mean

__all__ = ["FORMATS", "WRITABLE", "Format", "detect_format", "format_of_target", "read_dataset", "write_dataset"]


@dataclass(frozen=True)
class Format:
    """A format.

    Its module has `evidence(tree)` and `read(tree, split=, images=)`, and `write` unless the format is read only.

    Args:
        title: its name for people.
        suffixes: of the files that can be evidence for it.
        copy: what `write` does with pictures unasked; None for a format that is read only.
        suffix: of the file it is written to; a format without one is written to a folder.
    """

    title: str
    suffixes: tuple[str, ...]
    copy: CopyMode | None = None
    suffix: str | None = None


FORMATS: dict[str, Format] = {
    "coco": Format("COCO JSON", (".json",), "false"),
    "voc": Format("Pascal VOC", (".xml",), "link"),
    "yolo": Format("YOLO text", (".yaml", ".yml", ".data", ".txt"), "link"),
    "csv": Format("CSV", (".csv", ".tsv"), "false", ".csv"),
    "parquet": Format("Parquet", (".parquet",), "false", ".parquet"),
    "huggingface": Format("Hugging Face picture folder", (".jsonl",), "link"),
    "cvat": Format("CVAT XML", (".xml",)),
    "labelme": Format("LabelMe JSON", (".json",)),
    "via": Format("VIA JSON", (".json",)),
    "createml": Format("CreateML JSON", (".json",)),
    "label_studio": Format("Label Studio JSON", (".json",)),
    "supervisely": Format("Supervisely", (".json",)),
    "datumaro": Format("Datumaro JSON", (".json",)),
}
"""The formats; each is the module or folder of its name beside this file."""

WRITABLE = tuple(name for name, entry in FORMATS.items() if entry.copy is not None)
_TARGET_SUFFIXES = {".json": "coco", ".csv": "csv", ".parquet": "parquet"}


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"multibox.data.formats.{name}")


def detect_format(path: str | os.PathLike[str]) -> tuple[str, str]:
    """(format, what was found that says so).

    Raises:
        DataError: nothing there, no known format, or several.
    """
    return _detect(_tree(path))


def _tree(path: str | os.PathLike[str]) -> Tree:
    if is_web_address(os.fspath(path)):
        raise DataError(os.fspath(path), "is an address on the web", "download the data set and give its folder")
    place = Path(path)
    if not place.exists():
        raise DataError(place, "there is no such file or folder", "check the path")
    return Tree(place)


def _detect(tree: Tree) -> tuple[str, str]:
    place = tree.place
    found = _evidence(tree)
    best = {name: evidence for name, evidence in found.items() if evidence.sure} or found
    if set(best) == {"coco", "yolo"}:
        # One set written twice, as is common: the JSON keeps ids, areas and crowd flags that the text files cannot.
        besides = best["yolo"].text.removeprefix("found ")
        return "coco", f"{best['coco'].text}; besides {besides}, which format=yolo reads"
    if len(best) == 1:
        name, evidence = next(iter(best.items()))
        return name, evidence.text
    if best:
        both = " and ".join(f"{FORMATS[name].title} ({evidence.text})" for name, evidence in best.items())
        choice = " or ".join(f"format={name}" for name in best)
        raise DataError(place, f"looks like {both}", f"say which to read: {choice} (from_format= on the command line)")
    if tree.is_file and place.suffix.lower() == ".json":
        return "coco", "a .json file"  # whose reader says what is wrong
    inner = [entry for entry in sorted(place.iterdir()) if entry.is_dir()][:50] if place.is_dir() else []
    inside = next((entry for entry in inner if _evidence(Tree(entry))), None)
    hint = f"did you mean {inside}?" if inside else f"say format= with one of {', '.join(FORMATS)}, or check the path"
    raise DataError(place, "is no data set in a known format", hint)


def _evidence(tree: Tree) -> dict[str, Evidence]:
    """The evidence for each format that has some; modules are loaded only for suffixes that are there."""
    there = {suffix_of(file) for file in ([tree.place.name] if tree.is_file else tree.files)}
    likely = [name for name, entry in FORMATS.items() if there.intersection(entry.suffixes)]
    found = {name: _module(name).evidence(tree) for name in likely}
    return {name: evidence for name, evidence in found.items() if evidence is not None}


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
    name, evidence = "" if format is None else _known(format), "as asked for"
    tree = _tree(path)
    if format is None:
        name, evidence = _detect(tree)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DataError(folder, "images= is no folder", "give the folder with the pictures")
    dataset: Dataset = _module(name).read(tree, split=split, images=folder)
    dataset.origin = f"{tree.place} as {FORMATS[name].title} ({evidence})"
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
    if is_web_address(os.fspath(path)):
        raise OptionError(f"{os.fspath(path)} is an address on the web; give a folder or file to write")
    name = _TARGET_SUFFIXES.get(Path(path).suffix.lower()) if format is None else _known(format)
    if name not in WRITABLE:
        what = "say which format to write" if format is None else f"{FORMATS[str(name)].title} is read only"
        raise OptionError(f"{path}: {what}: format= with one of {', '.join(WRITABLE)}")
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
        format: one of WRITABLE; by the suffix of `path` when left out.
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
    report: WriteReport = _module(name).write(dataset, target, copy=mode, exist_ok=exist_ok, **options)
    return report


def _known(name: str) -> str:
    if name not in FORMATS:
        raise OptionError(f"unknown format {name!r}; {did_you_mean(name, FORMATS)}")
    return name
