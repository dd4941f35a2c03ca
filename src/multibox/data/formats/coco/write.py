"""Writing COCO JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.columns import FLAGS, decode_id
from multibox.data.picture_files import CopyMode, named_flat, place_pictures, stored_path
from multibox.data.records import Dataset, box_area
from multibox.data.write_report import WriteReport, shortest, start_file, start_folder
from multibox.errors import counted
from multibox.files import atomic_path

__all__ = ["write"]

ANNOTATION_FOLDER = "annotations"


def write(dataset: Dataset, path: Path, *, copy: CopyMode = "false", exist_ok: bool = False) -> WriteReport:
    """Write one .json file, or a folder with annotations/instances_<split>.json and, if asked for, images/<split>/.

    Image and category ids are the original ones. Boxes without an area get that of the box, which COCO requires.
    """
    report = WriteReport(path)
    single = path.suffix.lower() == ".json"
    folder = start_file(path, exist_ok=exist_ok).parent if single else start_folder(path, exist_ok=exist_ok)
    splits: list[str | None] = [*dataset.splits]
    if (dataset.columns.split_codes < 0).any() or not splits:
        splits.append(None)
    parts = [dataset] if single else [dataset.split(name) if name or len(splits) > 1 else dataset for name in splits]
    if not single:
        (folder / ANNOTATION_FOLDER).mkdir(exist_ok=True)
    for part, name in zip(parts, [None] if single else splits, strict=True):
        names = _place(part, folder / "images" / (name or ""), folder if single else None, copy=copy, report=report)
        file = path if single else folder / ANNOTATION_FOLDER / (f"instances_{name}.json" if name else "instances.json")
        _write_file(part, file, names, _ids(part, report), split=name)
    if copy == "false":
        place_pictures(dataset, [], copy, report)
    extra = int((dataset.columns.flags & ~np.uint8(1) != 0).sum())
    if extra:
        report.note(
            f"{counted(extra, 'box carries', 'boxes carry')} difficult, truncated or occluded in extra keys, "
            "which other COCO tools ignore"
        )
    return report


def _place(part: Dataset, images: Path, base: Path | None, *, copy: CopyMode, report: WriteReport) -> list[str]:
    """Put the pictures into `images` and return their file_name entries, relative to `base` or to `images`."""
    if copy == "false":
        names = [stored_path(part, i, base or images) for i in range(len(part))]
        return names
    names = named_flat(part, report)
    place_pictures(part, [images / name for name in names], copy, report)
    return names if base is None else [(images / name).relative_to(base).as_posix() for name in names]


def _ids(part: Dataset, report: WriteReport) -> list[int | str]:
    ids = [decode_id(text) for text in part.columns.image_ids]
    if len(set(ids)) < len(ids):
        twice = counted(len(ids) - len(set(ids)), "image id was", "image ids were")
        report.note(f"{twice} used twice; pictures are numbered anew from 1")
        return list(range(1, len(ids) + 1))
    return ids


def _write_file(part: Dataset, file: Path, names: list[str], ids: list[int | str], *, split: str | None) -> None:
    class_ids = part.class_map.ids
    own: dict[str, Any] = {"split": split}
    if list(class_ids) != sorted(class_ids):
        own["class_order"] = list(class_ids)
    with atomic_path(file) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.write('{"info": ' + json.dumps({"multibox": own}) + ',\n"categories": ')
        stream.write(json.dumps([{"id": i, "name": n} for i, n in zip(class_ids, part.class_map.names, strict=True)]))
        stream.write(',\n"images": [')
        for i, (picture_id, name) in enumerate(zip(ids, names, strict=True)):
            entry: dict[str, Any] = {"id": picture_id, "file_name": name}
            size_hw = part.declared_size_hw(i)
            if size_hw is not None:
                entry["height"], entry["width"] = size_hw
            code = part.columns.split_codes[i]
            if split is None and code >= 0:
                entry["split"] = part.columns.split_names[code]
            stream.write((",\n" if i else "\n") + json.dumps(entry))
        stream.write('\n],\n"annotations": [')
        stream.writelines(_annotations(part, ids))
        stream.write("\n]}\n")


def _annotations(part: Dataset, ids: list[int | str]) -> Iterator[str]:
    columns, class_ids, number = part.columns, part.class_map.ids, 0
    id_texts = [json.dumps(picture_id) for picture_id in ids]
    for picture in range(len(part)):
        start, stop = int(columns.offsets[picture]), int(columns.offsets[picture + 1])
        boxes = columns.boxes_xyxy[start:stop]
        areas = np.where(np.isnan(columns.area[start:stop]), box_area(boxes), columns.area[start:stop]).tolist()
        for (x1, y1, x2, y2), label, bits, area in zip(
            shortest(boxes).tolist(),
            columns.labels[start:stop].tolist(),
            columns.flags[start:stop].tolist(),
            areas,
            strict=True,
        ):
            number += 1
            others = "".join(f', "{name}": 1' for bit, name in enumerate(FLAGS) if bit and bits >> bit & 1)
            yield (
                f'{"," if number > 1 else ""}\n{{"id": {number}, "image_id": {id_texts[picture]}, '
                f'"category_id": {class_ids[label]}, "bbox": [{x1}, {y1}, {_side(x1, x2)}, {_side(y1, y2)}], '
                f'"area": {area!r}, "iscrowd": {bits & 1}{others}}}'
            )


def _side(low: float, high: float) -> str:
    """Return high − low without the noise of the subtraction (139.61, not 139.60999999999996)."""
    return repr(float(f"{high - low:.12g}"))
