"""Writing YOLO text: images/<split>/, labels/<split>/, data.yaml and multibox.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multibox.data.columns import FLAGS
from multibox.data.findings import DataError, Findings
from multibox.data.formats.yolo.config import SPLIT_KEYS, yaml_text
from multibox.data.formats.yolo.sidecar import SIDECAR, VERSION, line_of
from multibox.data.picture_files import CopyMode, check_sizes, named_flat, place_pictures
from multibox.data.records import Dataset, ImageRecord
from multibox.data.write_report import WriteReport, shortest, start_folder
from multibox.errors import counted
from multibox.files import atomic_path, atomic_write

__all__ = ["write"]

UNASSIGNED = "unassigned"


def write(dataset: Dataset, path: Path, *, copy: CopyMode = "link", exist_ok: bool = False) -> WriteReport:
    """Write a folder that YOLO trainers read, with a sidecar for what the text cannot hold.

    Raises:
        DataError: pictures are to stay elsewhere (labels are found by the pictures' place), or the size of a picture
            with boxes is neither readable nor declared.
    """
    if copy == "false":
        raise DataError(
            path, "YOLO finds labels by the place of the pictures, so they must be in it", "say copy=link or copy=true"
        )
    sizes_hw = _sizes_hw(dataset)
    report = WriteReport(start_folder(path, exist_ok=exist_ok))
    names = named_flat(dataset, report)
    folders = _folders(dataset)
    places = [f"{folders[record_split]}/{name}" for name, record_split in zip(names, _splits(dataset), strict=True)]
    place_pictures(dataset, [path / "images" / place for place in places], copy, report)
    for folder in folders.values():
        for kind in ("images", "labels"):
            (path / kind / folder).mkdir(parents=True, exist_ok=True)
    _write_yaml(dataset, path, folders)
    with atomic_path(path / SIDECAR) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.write(_head(dataset, folders) + "\n")
        for i, (record, place) in enumerate(zip(dataset, places, strict=True)):
            text = _label_text(record, sizes_hw[i])
            atomic_write((path / "labels" / place).with_suffix(".txt"), text, durable=False)
            stream.write(json.dumps(line_of(record, f"images/{place}", text)) + "\n")
    _note(dataset, report)
    return report


def _sizes_hw(dataset: Dataset) -> NDArray[np.int32]:
    """[P, 2] the sizes that YOLO readers will divide by: those of the files; declared ones where a file is missing."""
    sizes_hw = check_sizes(dataset, Findings())
    missing = sizes_hw[:, 0] < 1
    sizes_hw[missing] = dataset.columns.sizes_hw[missing]
    lacking = np.flatnonzero((sizes_hw[:, 0] < 1) & (np.diff(dataset.columns.offsets) > 0))
    if len(lacking):
        shown = ", ".join(dataset.paths[int(i)] for i in lacking[:3])
        what = counted(len(lacking), "picture with boxes has", "pictures with boxes have")
        reason = f"{what} no readable file and no declared size ({shown})"
        raise DataError(dataset.root, reason, "YOLO text needs the sizes: add the pictures, or give images=FOLDER")
    return sizes_hw


def _splits(dataset: Dataset) -> list[str | None]:
    names = dataset.columns.split_names
    return [None if code < 0 else names[code] for code in dataset.columns.split_codes.tolist()]


def _folders(dataset: Dataset) -> dict[str | None, str]:
    folders: dict[str | None, str] = {name: name for name in dataset.splits}
    if (dataset.columns.split_codes < 0).any():
        name = UNASSIGNED
        while name in folders:
            name += "_"
        folders[None] = name
    return folders


def _head(dataset: Dataset, folders: dict[str | None, str]) -> str:
    extra = {folder: f"images/{folder}" for name, folder in folders.items() if name not in SPLIT_KEYS}
    return json.dumps({"multibox": VERSION, **dataset.class_map.to_dict(), "folders": extra})


def _write_yaml(dataset: Dataset, path: Path, folders: dict[str | None, str]) -> None:
    lines = ["path: ."]
    lines += [f"{key}: images/{key}" for key in SPLIT_KEYS if key in folders]
    lines += [f"nc: {len(dataset.class_map)}", "names:"]
    lines += [f"  {index}: {yaml_text(name)}" for index, name in enumerate(dataset.class_map.names)]
    atomic_write(path / "data.yaml", "\n".join(lines) + "\n")


def _label_text(record: ImageRecord, size_hw: NDArray[np.int32]) -> str:
    if not len(record):
        return ""
    height, width = (int(side) for side in size_hw)
    boxes = shortest(record.boxes_xyxy) / (width, height, width, height)
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = np.concatenate([centres, sides], axis=1).tolist()
    return "".join(
        f"{label} {cx:.10g} {cy:.10g} {w:.10g} {h:.10g}\n"
        for label, (cx, cy, w, h) in zip(record.labels.tolist(), rows, strict=True)
    )


def _note(dataset: Dataset, report: WriteReport) -> None:
    counts = [(int((dataset.columns.flags >> bit & 1).sum()), name) for bit, name in enumerate(FLAGS)]
    counts.append((int((~np.isnan(dataset.columns.area)).sum()), "area"))
    kept = ", ".join(f"{name} of {count}" for count, name in counts if count)
    if kept:
        report.note(f"YOLO text cannot hold these facts about boxes, {SIDECAR} does: {kept}")
    outside = int((dataset.columns.split_codes < 0).sum())
    others = [name for name in dataset.splits if name not in SPLIT_KEYS]
    if outside:
        what = counted(outside, "picture belongs", "pictures belong")
        report.note(f"{what} to no split; other YOLO tools will not see them (images/{UNASSIGNED})")
    if others:
        report.note(f"data.yaml has keys for train, val and test only; {SIDECAR} knows the splits {', '.join(others)}")
