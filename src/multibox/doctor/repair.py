"""A repaired copy of a data set. The original is only read; every change is a line."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.columns import Columns
from multibox.data.findings import DataError, Findings
from multibox.data.formats.table import FORMATS, write_dataset
from multibox.data.picture_files import CopyMode
from multibox.data.records import Dataset
from multibox.data.write_report import WriteReport
from multibox.doctor.box_checks import owners_of
from multibox.doctor.examination import Examination
from multibox.doctor.kinds import FINDING_KINDS, CheckFinding
from multibox.doctor.picture_checks import in_stored_frame, split_of

__all__ = ["Repair", "repair_dataset", "write_repaired"]

_KEEP_ORDER = ("test", "val")
_DROPS_PICTURE = frozenset({"picture_missing", "picture_unreadable", "picture_truncated", "empty"})
_DROPS_BOX = frozenset({"degenerate_box", "boxes_far_outside", "boxes_duplicated", "boxes_tiny", "boxes_extreme_ratio"})
_DUPLICATES = frozenset({"duplicate_across", "duplicate_within", "near_duplicate_across", "near_duplicate_within"})


@dataclass(frozen=True)
class Repair:
    """A repaired data set, still without files, and a line for each thing changed or left out."""

    dataset: Dataset
    lines: tuple[str, ...]


def repair_dataset(examination: Examination) -> Repair:
    """Repair what the policy says is to be repaired: kinds at `error` or `fix` that have a repair."""
    repairer = _Repairer(examination)
    for finding in examination.findings:
        if examination.policy.repairs(finding.kind):
            repairer.apply(finding)
    return Repair(repairer.finish(), tuple(repairer.lines))


def write_repaired(
    repaired: Repair,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: str,
    copy: CopyMode = "true",
) -> tuple[WriteReport, Path]:
    """Write a repaired data set; returns the writer's report and what to read back.

    Args:
        repaired: what to write.
        source: what was examined, which must stay as it is.
        target: a folder that is empty or not there.
        format: a key of FORMATS; tables become annotations.csv or annotations.parquet in the folder.
        copy: whether pictures are copied, linked, or stay.

    Raises:
        DataError: the target is the source, lies inside it, has files in it, or cannot be written to.
    """
    folder, origin = Path(target), Path(source)
    inside = folder.resolve().is_relative_to(origin.resolve())
    if inside or (folder.exists() and not folder.is_dir()):
        raise DataError(folder, "is the data set itself or lies in it", "choose a folder elsewhere")
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(folder, "is not empty", "choose another folder")
    suffix = FORMATS[format].suffix
    place = folder if suffix is None else folder / f"annotations{suffix}"
    return write_dataset(repaired.dataset, place, format=format, copy=copy), place


class _Repairer:
    def __init__(self, examination: Examination) -> None:
        self._diagnosis, self._dataset = examination, examination.dataset
        columns = self._dataset.columns
        self._pictures = np.ones(len(self._dataset), np.bool_)
        self._kept = np.ones(len(columns.labels), np.bool_)
        self._boxes, self._area = columns.boxes_xyxy.copy(), columns.area.copy()
        self._sizes = columns.sizes_hw.copy()
        self.lines: list[str] = []

    def apply(self, finding: CheckFinding) -> None:
        """Repair one finding and say so."""
        kind = finding.kind
        if kind in _DROPS_PICTURE:
            self._drop_picture(finding.pictures[0], f"{kind}: {finding.message}")
        elif kind in _DUPLICATES:
            self._separate(finding)
        elif kind in _DROPS_BOX:
            self._drop_box(finding)
        elif kind == "boxes_outside":
            self._clip(finding)
        elif kind in {"size_differs", "size_turned"}:
            self._resize(finding)
        else:
            more = f" (and {finding.count - 1} more of this kind)" if finding.count > 1 else ""
            self.lines.append(f"{kind}: {finding}{more}; {FINDING_KINDS[kind].repair}")

    def _drop_picture(self, picture: int, why: str) -> None:
        if self._pictures[picture]:
            self._pictures[picture] = False
            boxes = int(np.diff(self._dataset.columns.offsets[picture : picture + 2])[0])
            self.lines.append(f"{self._dataset.paths[picture]}: left out with its {boxes} boxes ({why})")

    def _separate(self, finding: CheckFinding) -> None:
        """Leave a group of duplicates in one split, or as one picture."""
        group = [i for i in finding.pictures if self._pictures[i]]
        if finding.kind.endswith("_within"):
            for picture in group[1:]:
                self._drop_picture(picture, f"{finding.kind}: as {self._dataset.paths[group[0]]}")
            return
        splits = {split_of(self._dataset, i) for i in group} - {None}
        ranked = [name for name in _KEEP_ORDER if name in splits] + sorted(
            name for name in splits if name is not None and name not in {*_KEEP_ORDER, "train"}
        )
        for picture in group if ranked else ():
            if split_of(self._dataset, picture) not in {ranked[0], None}:
                left = next(self._dataset.paths[i] for i in group if split_of(self._dataset, i) == ranked[0])
                self._drop_picture(picture, f"{finding.kind}: as {left} of {ranked[0]}")

    def _position(self, finding: CheckFinding) -> int:
        return int(self._dataset.columns.offsets[finding.pictures[0]]) + finding.boxes[0]

    def _drop_box(self, finding: CheckFinding) -> None:
        position = self._position(finding)
        if self._kept[position]:
            self._kept[position] = False
            self.lines.append(f"{finding.path}, {finding.where}: left out ({finding.kind}: {finding.message})")

    def _clip(self, finding: CheckFinding) -> None:
        picture, position = finding.pictures[0], self._position(finding)
        height, width = self._size_hw(picture)
        box = np.clip(self._boxes[position], 0, (width, height, width, height))
        self._boxes[position] = box
        sides = box[2:].astype(np.float64) - box[:2]
        self._area[position] = np.minimum(self._area[position], sides.prod())  # NaN, for none given, stays
        shown = ", ".join(f"{value:.6g}" for value in box.tolist())
        self.lines.append(f"{finding.path}, {finding.where}: cut to ({shown})")

    def _size_hw(self, picture: int) -> tuple[int, int]:
        sizes = self._diagnosis.scan.sizes_hw[picture]
        sizes = self._dataset.columns.sizes_hw[picture] if sizes[0] < 0 else sizes
        return int(sizes[0]), int(sizes[1])

    def _resize(self, finding: CheckFinding) -> None:
        picture = finding.pictures[0]
        height, width = self._size_hw(picture)
        self._sizes[picture] = height, width
        self.lines.append(f"{finding.path}: declared as {width} × {height} pixels ({finding.message})")
        orientation = int(self._diagnosis.scan.orientations[picture])
        if in_stored_frame(self._dataset, self._diagnosis.scan, picture):
            part = slice(*(int(end) for end in self._dataset.columns.offsets[picture : picture + 2]))
            self._boxes[part] = _turned(self._boxes[part], orientation, (height, width))
            count = part.stop - part.start
            self.lines.append(f"{finding.path}: {count} boxes turned with the picture (EXIF orientation {orientation})")

    def finish(self) -> Dataset:
        """The repaired data set."""
        columns = self._dataset.columns
        counts = np.bincount(owners_of(self._dataset)[self._kept], minlength=len(self._dataset))
        offsets = np.zeros(len(self._dataset) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        repaired = replace_columns(columns, self._kept, offsets=offsets, sizes_hw=self._sizes)
        repaired = replace(repaired, boxes_xyxy=self._boxes[self._kept], area=self._area[self._kept])
        chosen = repaired.take(np.flatnonzero(self._pictures))
        return Dataset(chosen, self._dataset.class_map, self._dataset.root, findings=Findings())


def replace_columns(columns: Columns, kept: NDArray[np.bool_], **changed: Any) -> Columns:
    """The columns with some boxes only."""
    return replace(columns, labels=columns.labels[kept], flags=columns.flags[kept], **changed)


def _turned(boxes_xyxy: NDArray[np.float32], orientation: int, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes [N, 4] of the stored picture in the upright one of `size_hw`, for orientations that swap the sides."""
    height, width = size_hw
    x1, y1, x2, y2 = boxes_xyxy.T
    # Stored (x, y) becomes upright (y, x), mirrored as the orientation says (EXIF 2.32).
    left, right = (width - y2, width - y1) if orientation in {6, 7} else (y1, y2)
    top, bottom = (height - x2, height - x1) if orientation in {7, 8} else (x1, x2)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)
