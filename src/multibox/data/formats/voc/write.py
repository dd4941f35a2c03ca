"""Writing Pascal VOC; what is written is described in `multibox.data.formats.voc.read`."""

from __future__ import annotations

import json
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from multibox.data.class_lists import CLASS_FILE, write_class_file
from multibox.data.columns import decode_id
from multibox.data.findings import DataError
from multibox.data.picture_files import CopyMode, named_flat, place_pictures, stored_path
from multibox.data.records import Dataset
from multibox.data.write_report import WriteReport, shortest, start_folder
from multibox.errors import counted
from multibox.files import atomic_write

__all__ = ["ANNOTATIONS", "CORNERS", "FIRST_PIXEL", "PICTURES", "SETS", "write"]

ANNOTATIONS, PICTURES, SETS = "Annotations", "JPEGImages", "ImageSets/Main"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
FIRST_PIXEL = 1


def write(
    dataset: Dataset, path: Path, *, copy: CopyMode = "link", exist_ok: bool = False, round_boxes: bool = False
) -> WriteReport:
    """Write a Pascal VOC folder; fractional coordinates are written as they are unless `round_boxes`."""
    report = WriteReport(start_folder(path, exist_ok=exist_ok))
    names = named_flat(dataset, report)
    for folder in (ANNOTATIONS, PICTURES):
        (path / folder).mkdir(exist_ok=True)
    place_pictures(dataset, [path / PICTURES / name for name in names], copy, report)
    write_class_file(path / CLASS_FILE, dataset.class_map)
    stems = [name.rpartition(".")[0] or name for name in names]
    for i, (name, stem) in enumerate(zip(names, stems, strict=True)):
        text = _annotation(
            dataset, i, name, stored=stored_path(dataset, i, path) if copy == "false" else None, whole=round_boxes
        )
        atomic_write(path / ANNOTATIONS / f"{stem}.xml", text, durable=False)
    _write_sets(dataset, path, stems)
    _note(dataset, report, whole=round_boxes)
    return report


def _write_sets(dataset: Dataset, path: Path, stems: list[str]) -> None:
    codes = dataset.columns.split_codes
    for code, split in enumerate(dataset.columns.split_names):
        chosen = np.flatnonzero(codes == code).tolist()
        if chosen:
            (path / SETS).mkdir(parents=True, exist_ok=True)
            atomic_write(path / SETS / f"{split}.txt", "".join(f"{stems[i]}\n" for i in chosen))


def _note(dataset: Dataset, report: WriteReport, *, whole: bool) -> None:
    boxes = dataset.columns.boxes_xyxy
    fractional = int((boxes != np.rint(boxes)).any(axis=1).sum())
    if fractional and whole:
        what = counted(fractional, "box was", "boxes were")
        report.note(f"{what} rounded to whole pixels and moved by up to 0.5 px")
    elif fractional:
        what = counted(fractional, "box has", "boxes have")
        report.note(f"{what} fractional coordinates, which some VOC tools cannot read; round=true rounds them")
    for element, count in (
        ("crowd", int((dataset.columns.flags & 1).sum())),
        ("area", int((~np.isnan(dataset.columns.area)).sum())),
    ):
        if count:
            carrying = counted(count, "box carries", "boxes carry")
            report.note(f"{carrying} <{element}>, an element that VOC does not have and other tools ignore")


def _annotation(dataset: Dataset, index: int, name: str, *, stored: str | None, whole: bool) -> str:
    record = dataset[index]
    lines = ["<annotation>", f"\t<folder>{PICTURES}</folder>", f"\t<filename>{escape(name)}</filename>"]
    if stored is not None:
        if not stored.isprintable():
            raise DataError(stored, "has a name that XML cannot hold", "rename it, or say copy=true or copy=link")
        lines.append(f"\t<path>{escape(stored)}</path>")
    text = dataset.columns.image_ids[index]
    own_id = text if text.isprintable() else json.dumps(decode_id(text))
    lines.append(f"\t<image_id>{escape(own_id)}</image_id>")
    if record.size_hw is not None:
        height, width = record.size_hw
        lines.append(f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    corners = np.add(shortest(record.boxes_xyxy), (FIRST_PIXEL, FIRST_PIXEL, 0, 0))
    corners = np.rint(corners) if whole else corners
    for i, corner in enumerate(corners.tolist()):
        extra = "<crowd>1</crowd>" if record.crowd[i] else ""
        extra += "" if np.isnan(record.area[i]) else f"<area>{float(record.area[i])!r}</area>"
        box = "".join(f"<{key}>{_number(value)}</{key}>" for key, value in zip(CORNERS, corner, strict=True))
        flags = "".join(
            f"<{key}>{int(getattr(record, key)[i])}</{key}>" for key in ("truncated", "occluded", "difficult")
        )
        named = escape(dataset.class_map.names[record.labels[i]])
        lines.append(
            f"\t<object>\n\t\t<name>{named}</name>\n\t\t{flags}{extra}\n\t\t<bndbox>{box}</bndbox>\n\t</object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(round(value, 9))
