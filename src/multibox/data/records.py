"""The annotations of a data set: one picture at a time as `ImageRecord`, all of them as `Dataset`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multibox.data.columns import FLAGS, Builder, Columns, TextColumn, decode_id, flag_bits
from multibox.data.findings import Account, DataError, Finding, Findings
from multibox.data.names import usual_split
from multibox.errors import ContractError, ImageError, counted
from multibox.pictures.read import picture_size_hw
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections

__all__ = ["DataError", "Dataset", "Finding", "Findings", "ImageRecord", "box_area"]

_ABSENT: Any = np.zeros(0)


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """What is annotated in one picture. Arrays are read-only.

    Boxes are as the annotator left them: they may reach outside the picture or have no area.

    Args:
        path: the picture, relative to the data set's root or absolute.
        image_id: the id in the data set it comes from.
        size_hw: (height, width) that the annotations declare, or None.
        boxes_xyxy: [N, 4] float32, corners (x1, y1, x2, y2) in pixels of the upright (EXIF-applied) picture.
        labels: [N] int64, indexes 0 … C−1 into the data set's class map.
        crowd, difficult, truncated, occluded: [N] bool; all False when left out.
        area: [N] float64 square pixels of the object itself; NaN where the annotations give none.
        split: "train", "val", … or None.

    Raises:
        ContractError: a shape or value that breaks the above.
    """

    path: str
    image_id: int | str
    size_hw: tuple[int, int] | None
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_] = field(default_factory=lambda: _ABSENT)
    difficult: NDArray[np.bool_] = field(default_factory=lambda: _ABSENT)
    truncated: NDArray[np.bool_] = field(default_factory=lambda: _ABSENT)
    occluded: NDArray[np.bool_] = field(default_factory=lambda: _ABSENT)
    area: NDArray[np.float64] = field(default_factory=lambda: _ABSENT)
    split: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ContractError("an image record needs the path of its picture")
        boxes = _readonly(self.boxes_xyxy, np.float32)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise ContractError(f"{self.path}: boxes_xyxy must be [N, 4] finite numbers, got {list(boxes.shape)}")
        object.__setattr__(self, "boxes_xyxy", boxes)
        for name, dtype, fill in (
            ("labels", np.int64, 0),
            *((f, np.bool_, 0) for f in FLAGS),
            ("area", np.float64, np.nan),
        ):
            given = getattr(self, name)
            values = _readonly(np.full(len(boxes), fill, dtype) if given is _ABSENT else given, dtype)
            if values.shape != (len(boxes),):
                raise ContractError(
                    f"{self.path}: {name} must be [{len(boxes)}] like boxes_xyxy, got {list(values.shape)}"
                )
            object.__setattr__(self, name, values)
        if len(self.labels) and self.labels.min() < 0:
            raise ContractError(f"{self.path}: labels must be 0 or more, got {self.labels.min()}")
        if self.size_hw is not None and (len(self.size_hw) != 2 or min(self.size_hw) < 1):
            raise ContractError(f"{self.path}: size_hw must be two positive numbers or None, got {self.size_hw}")

    def __len__(self) -> int:
        return len(self.labels)

    def effective_area(self) -> NDArray[np.float64]:
        """[N] float64: the given area, or that of the box where none is given."""
        return np.where(np.isnan(self.area), box_area(self.boxes_xyxy), self.area)


class Dataset:
    """Pictures with boxes, kept in a few arrays (see `Columns`), so that a million boxes cost about 30 MB.

    `dataset[i]` builds the record of picture i from views of these arrays. Reading from forked workers copies nothing;
    for spawned workers the arrays are pickled as bytes.

    Args:
        columns: the annotations.
        class_map: the classes that labels refer to.
        root: the folder that relative picture paths start from.
        findings: what the reader found wrong.
        origin: one line that says what was read, and how.
        account: what the reader met; it must be in the data set or in the findings.

    Raises:
        ContractError: a label outside the class map.
        DataError: something that the reader met is neither here nor in the findings.
    """

    def __init__(
        self,
        columns: Columns,
        class_map: ClassMap,
        root: str | os.PathLike[str] = ".",
        *,
        findings: Findings | None = None,
        origin: str = "",
        account: Account | None = None,
    ) -> None:
        labels = columns.labels
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(class_map)):
            raise ContractError(f"labels must be in 0…{len(class_map) - 1}, got {labels.min()}…{labels.max()}")
        self.columns, self.class_map, self.root = columns, class_map, Path(root)
        self.findings = Findings() if findings is None else findings
        self.origin = origin
        if account is not None:
            account.prove(root, len(self), self.num_boxes, self.findings.lost_boxes)

    @classmethod
    def from_records(
        cls, records: Iterable[ImageRecord], class_map: ClassMap, *, root: str | os.PathLike[str] = "."
    ) -> Dataset:
        """Pack records, one at a time."""
        builder = Builder()
        for record in records:
            picture = builder.add_picture(
                record.path, image_id=record.image_id, size_hw=record.size_hw, split=record.split
            )
            for i, box in enumerate(record.boxes_xyxy.tolist()):
                flags = flag_bits(*(bool(getattr(record, name)[i]) for name in FLAGS))
                if not builder.add_box(picture, int(record.labels[i]), box, flags=flags, area=float(record.area[i])):
                    raise ContractError(f"{record.path}: box {i} is too large to be pixels: {box}")
        return cls(builder.finish(), class_map, root)

    def __len__(self) -> int:
        return len(self.columns.split_codes)

    def __getitem__(self, index: int) -> ImageRecord:
        i = self._position(index)
        columns, part = self.columns, slice(self.columns.offsets[i], self.columns.offsets[i + 1])
        flags = columns.flags[part]
        return ImageRecord(
            path=columns.paths[i],
            image_id=decode_id(columns.image_ids[i]),
            size_hw=self.declared_size_hw(i),
            boxes_xyxy=columns.boxes_xyxy[part],
            labels=columns.labels[part].astype(np.int64),
            **{name: (flags >> bit & 1).astype(np.bool_) for bit, name in enumerate(FLAGS)},
            area=columns.area[part],
            split=self._split(i),
        )

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        sizes = ", ".join(
            (
                counted(len(self), "picture"),
                counted(self.num_boxes, "box", "boxes"),
                counted(len(self.class_map), "class", "classes"),
            )
        )
        return f"Dataset({sizes}, root={str(self.root)!r})"

    def _position(self, index: int) -> int:
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return int(i)

    def _split(self, i: int) -> str | None:
        code = self.columns.split_codes[i]
        return None if code < 0 else self.columns.split_names[code]

    @property
    def num_boxes(self) -> int:
        """Boxes in all pictures."""
        return len(self.columns.labels)

    @property
    def paths(self) -> TextColumn:
        """Picture paths as given, like a read-only list."""
        return self.columns.paths

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have pictures, in the order in which they were read."""
        used = set(np.unique(self.columns.split_codes).tolist())
        return tuple(name for code, name in enumerate(self.columns.split_names) if code in used)

    def split(self, name: str | None) -> Dataset:
        """The pictures of one split; None gives those that belong to none. val, valid and validation are one name.

        Raises:
            DataError: there is no such split; the message lists those there are.
        """
        return self.select(self.split_indices(name))

    def split_indices(self, name: str | None) -> NDArray[np.int64]:
        """The positions of a split's pictures; names and errors as in `split`."""
        if name is None:
            return np.flatnonzero(self.columns.split_codes < 0)
        exact = name in self.splits
        codes = [
            code
            for code, known in enumerate(self.columns.split_names)
            if (known == name if exact else usual_split(known) == usual_split(name))
        ]
        chosen = np.flatnonzero(np.isin(self.columns.split_codes, codes))
        if not len(chosen):
            known = ", ".join(self.splits) or "none at all"
            raise DataError(self.root, f"has no split {name!r}", f"choose one of its splits ({known})")
        return chosen

    def select(self, indices: ArrayLike) -> Dataset:
        """The pictures at `indices` (integers, or a boolean mask [P]), in that order, as a data set of its own."""
        picked = np.asarray(indices)
        picked = np.flatnonzero(picked) if picked.dtype == np.bool_ else picked.astype(np.int64).reshape(-1)
        if len(picked) and not (picked.min() >= 0 and picked.max() < len(self)):
            raise IndexError(f"pictures {picked.min()}…{picked.max()} of {len(self)}")
        return Dataset(self.columns.take(picked), self.class_map, self.root, findings=self.findings, origin=self.origin)

    def picture_path(self, index: int) -> Path:
        """Where the picture is. One with a web address is nowhere on this machine."""
        return self.root / self.columns.paths[self._position(index)]

    def declared_size_hw(self, index: int) -> tuple[int, int] | None:
        """(height, width) that the annotations declare, or None."""
        height, width = (int(side) for side in self.columns.sizes_hw[self._position(index)])
        return None if height < 1 or width < 1 else (height, width)

    def to_detections(self, index: int) -> Detections:
        """The boxes of a picture as `Detections` without scores.

        The size is the declared one, or is read from the picture's header.

        Raises:
            DataError: a box has swapped corners, or the size is neither declared nor readable.
        """
        record = self[index]
        swapped = np.flatnonzero((record.boxes_xyxy[:, :2] > record.boxes_xyxy[:, 2:]).any(axis=1))
        if len(swapped):
            reason = f"box {swapped[0]} has swapped corners (x1, y1, x2, y2) = {record.boxes_xyxy[swapped[0]].tolist()}"
            raise DataError(record.path, reason, "correct the annotation, or leave the box out")
        size_hw = record.size_hw
        if size_hw is None:
            try:
                size_hw = picture_size_hw(self.picture_path(index))
            except ImageError as error:
                raise DataError(
                    error.source, f"no size is declared and the picture {error.reason}", error.remedy
                ) from None
        return Detections(
            record.boxes_xyxy, record.labels, None, self.class_map, size_hw, path=str(self.picture_path(index))
        )


def box_area(boxes_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """[N] float64 square pixels; 0 for a box with swapped corners."""
    sides = np.maximum(boxes_xyxy[:, 2:].astype(np.float64) - boxes_xyxy[:, :2], 0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def _readonly(values: Any, dtype: Any) -> NDArray[Any]:
    array = np.asarray(values, dtype)
    if array.flags.writeable:  # the caller's, or fresh: a view of a data set is read-only already
        array = array.copy()
        array.flags.writeable = False
    return array
