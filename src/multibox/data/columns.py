"""Annotations in a few NumPy arrays instead of millions of Python objects.

A Python object is written to whenever it is looked at (its reference count), so a data set made of them is copied
page by page into every forked worker; arrays are not. They also pickle as plain bytes for spawned workers.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError

__all__ = ["FLAGS", "Builder", "Columns", "TextColumn", "decode_id", "encode_id", "flag_bits", "is_set"]

FLAGS = ("crowd", "difficult", "truncated", "occluded")
"""The yes/no facts about a box; bit i of a flags byte is FLAGS[i]."""

LARGEST_PX = 2.0**31
"""Coordinates at or beyond this are no pixels and count as unparsable."""

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
LONGEST_INTEGER = 4000  # digits; int() refuses longer text
_TRUE = frozenset({"1", "1.0", "true", "yes", "y", "t"})
_SPLIT_NAME = re.compile(r"[^./\\:*?\"<>|\s][^/\\:*?\"<>|\r\n\t]*")


def encode_id(image_id: int | str) -> str:
    """An image id as text from which `decode_id` restores it, type included: 7 → 7, "7" → "7" in quotes, "a" → a."""
    if isinstance(image_id, str):
        plain = image_id and image_id == image_id.strip() and image_id[0] != '"' and not _INTEGER.fullmatch(image_id)
        return image_id if plain and image_id.isprintable() else json.dumps(image_id)
    return str(int(image_id))


def decode_id(text: str) -> int | str:
    """Inverse of `encode_id`."""
    if _INTEGER.fullmatch(text) and len(text) <= LONGEST_INTEGER:
        return int(text)
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text


def is_set(value: Any) -> bool:
    """Whether a flag of an annotation file is on: 1, 1.0, true and yes are, everything else is not."""
    return bool(value) if isinstance(value, (bool, int)) else str(value).strip().lower() in _TRUE


def flag_bits(*flags: Any) -> int:
    """The flags byte for values in the order of FLAGS."""
    return sum(1 << bit for bit, value in enumerate(flags) if value and is_set(value))


@dataclass(frozen=True, slots=True)
class TextColumn:
    """P strings in one UTF-8 buffer: data [bytes] uint8, offsets [P + 1] int64. File names of odd bytes survive."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> TextColumn:
        """Pack strings."""
        buffer, offsets = bytearray(), array("q", [0])
        for text in strings:
            buffer += text.encode("utf-8", "surrogateescape")
            offsets.append(len(buffer))
        return cls(np.frombuffer(bytes(buffer), np.uint8), np.array(offsets, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        start, stop = self.offsets[index], self.offsets[index + 1]
        return self.data[start:stop].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def take(self, indices: NDArray[np.int64]) -> TextColumn:
        """The strings at `indices`, in that order."""
        positions, offsets = ragged_positions(self.offsets, indices)
        return TextColumn(self.data[positions], offsets)


def ragged_positions(
    offsets: NDArray[np.int64], indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of all elements of the chosen groups, in order, and the offsets of the groups after the choice."""
    counts = (offsets[1:] - offsets[:-1])[indices]
    new_offsets = np.zeros(len(indices) + 1, np.int64)
    np.cumsum(counts, out=new_offsets[1:])
    starts = np.repeat(offsets[indices] - new_offsets[:-1], counts)
    return starts + np.arange(new_offsets[-1], dtype=np.int64), new_offsets


@dataclass(frozen=True, slots=True)
class Columns:
    """P pictures and N boxes; the boxes of picture i are offsets[i] … offsets[i + 1]. All arrays are read-only.

    sizes_hw [P, 2] int32 holds −1 where no size is declared; split_codes [P] int16 indexes split_names, −1 is none;
    boxes_xyxy [N, 4] float32 pixels of the upright picture (float32 is exact to 0.001 px below 16,384 px);
    labels [N] int32; flags [N] uint8 (see FLAGS); area [N] float64 square pixels, NaN where none is given.
    """

    paths: TextColumn
    image_ids: TextColumn
    sizes_hw: NDArray[np.int32]
    split_codes: NDArray[np.int16]
    split_names: tuple[str, ...]
    offsets: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int32]
    flags: NDArray[np.uint8]
    area: NDArray[np.float64]

    def __post_init__(self) -> None:
        texts = (self.paths.data, self.paths.offsets, self.image_ids.data, self.image_ids.offsets)
        arrays: tuple[NDArray[Any], ...] = (*texts, *self._arrays())
        for values in arrays:
            values.flags.writeable = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt through the constructor: pickling alone would make the arrays writable again.
        return Columns, tuple(getattr(self, each.name) for each in fields(self))

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self.sizes_hw, self.split_codes, self.offsets, self.boxes_xyxy, self.labels, self.flags, self.area

    def take(self, indices: NDArray[np.int64]) -> Columns:
        """The pictures at `indices`, in that order, with their boxes."""
        positions, offsets = ragged_positions(self.offsets, indices)
        used = self.split_codes[indices]
        return Columns(
            paths=self.paths.take(indices),
            image_ids=self.image_ids.take(indices),
            sizes_hw=self.sizes_hw[indices],
            split_codes=used,
            split_names=self.split_names,
            offsets=offsets,
            boxes_xyxy=self.boxes_xyxy[positions],
            labels=self.labels[positions],
            flags=self.flags[positions],
            area=self.area[positions],
        )


class Builder:
    """Collects pictures and boxes, in any order, into `Columns`."""

    def __init__(self) -> None:
        self._paths, self._path_ends = bytearray(), array("q", [0])
        self._ids, self._id_ends = bytearray(), array("q", [0])
        self._sizes, self._splits = array("i"), array("h")
        self._split_codes: dict[str, int] = {}
        self._pictures, self._labels = array("q"), array("i")
        self._boxes, self._flags, self._area = array("f"), array("B"), array("d")

    def __len__(self) -> int:
        return len(self._splits)

    def add_picture(
        self,
        path: str,
        *,
        image_id: int | str | None = None,
        size_hw: tuple[int, int] | None = None,
        split: str | None = None,
    ) -> int:
        """Add a picture and return its index. Its id is its path when left out."""
        if not path or "\0" in path:
            raise ContractError(f"a picture needs a path, got {path!r}")
        self._paths += path.encode("utf-8", "surrogateescape")
        self._path_ends.append(len(self._paths))
        self._ids += encode_id(path if image_id is None else image_id).encode("utf-8", "surrogateescape")
        self._id_ends.append(len(self._ids))
        self._sizes.extend((-1, -1) if size_hw is None else size_hw)
        self._splits.append(self._split_code(split))
        return len(self._splits) - 1

    def path(self, picture: int) -> str:
        """The path of a picture."""
        return self._paths[self._path_ends[picture] : self._path_ends[picture + 1]].decode("utf-8", "surrogateescape")

    def _split_code(self, split: str | None) -> int:
        if split is None:
            return -1
        if split not in self._split_codes and not _SPLIT_NAME.fullmatch(split):
            raise ContractError(f"{split!r} cannot name a split: it becomes the name of files and folders")
        return self._split_codes.setdefault(split, len(self._split_codes))

    def add_box(
        self, picture: int, label: int, box_xyxy: Sequence[float], *, flags: int = 0, area: float | None = None
    ) -> bool:
        """Add a box (pixels of the upright picture); False, and nothing added, if it is not four finite numbers."""
        x1, y1, x2, y2 = box_xyxy
        if not (abs(x1) < LARGEST_PX and abs(y1) < LARGEST_PX and abs(x2) < LARGEST_PX and abs(y2) < LARGEST_PX):
            return False
        self._pictures.append(picture)
        self._labels.append(label)
        self._boxes.extend((x1, y1, x2, y2))
        self._flags.append(flags)
        self._area.append(float("nan") if area is None else area)
        return True

    def remove_last(self, count: int) -> None:
        """Remove the boxes added last."""
        if count:
            del self._pictures[-count:], self._labels[-count:], self._flags[-count:], self._area[-count:]
            del self._boxes[-count * 4 :]

    def set_last_labels(self, labels: array[int]) -> None:
        """Replace the labels of the boxes added last."""
        if labels:
            self._labels[-len(labels) :] = labels

    def finish(self, relabel: NDArray[np.int64] | None = None, pictures: NDArray[np.int64] | None = None) -> Columns:
        """The columns; boxes keep their order within a picture.

        Args:
            relabel: [codes] the label for each code given as label, where the class list was not known before.
            pictures: [N] picture of each box, where it was not known before; −1 removes the box.
        """
        owners = np.array(self._pictures, np.int64) if pictures is None else pictures
        labels = np.array(self._labels, np.int32)
        if relabel is not None and len(labels):
            labels = relabel[labels].astype(np.int32)
        counted = owners[owners >= 0]
        order = (
            None if len(counted) == len(owners) and (np.diff(owners) >= 0).all() else np.argsort(owners, kind="stable")
        )
        if order is not None:
            order = order[len(owners) - len(counted) :]
        arrays: list[NDArray[Any]] = [
            np.array(self._boxes, np.float32).reshape(-1, 4),
            labels,
            np.array(self._flags, np.uint8),
            np.array(self._area, np.float64),
        ]
        if order is not None:
            arrays = [values[order] for values in arrays]
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.bincount(counted, minlength=len(self)), out=offsets[1:])
        return Columns(
            TextColumn(np.frombuffer(bytes(self._paths), np.uint8), np.array(self._path_ends, np.int64)),
            TextColumn(np.frombuffer(bytes(self._ids), np.uint8), np.array(self._id_ends, np.int64)),
            np.array(self._sizes, np.int32).reshape(-1, 2),
            np.array(self._splits, np.int16),
            tuple(self._split_codes),
            offsets,
            *arrays,
        )
