"""The layouts that annotation tools write: their table, and what the functions that write them share.

These functions share nothing with the readers. They stand in `layouts_as_text` and `layouts_as_json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shot:
    """A picture: its file, the name it gets, (width, height), its split, and a (class, corners in pixels) a box."""

    file: Path
    name: str
    size_wh: tuple[int, int]
    split: str
    boxes: tuple[tuple[str, Box], ...]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]


Writer = Callable[[Path, list[Shot]], None]
WRITERS: dict[str, tuple[Writer, bool, str]] = {}
"""By name: the function, whether the layout tells splits, and the file to give to the reader ("" is the folder)."""


def layout(*, splits: bool = False, give: str = "") -> Callable[[Writer], Writer]:
    def put(writer: Writer) -> Writer:
        WRITERS[writer.__name__] = writer, splits, give
        return writer

    return put


def place(root: Path, shot: Shot, folder: str) -> None:
    path = root / folder / shot.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(shot.file)


def text(root: Path, name: str, content: str | Iterable[str]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else "".join(f"{line}\n" for line in content), encoding="utf-8")


def dump(root: Path, name: str, content: Any) -> None:
    text(root, name, json.dumps(content, indent=1, ensure_ascii=False))


def classes(shots: list[Shot]) -> list[str]:
    return sorted({name for shot in shots for name, _ in shot.boxes})


def of_split(shots: list[Shot], split: str) -> list[Shot]:
    return [shot for shot in shots if shot.split == split]


def corner_and_sides(box: Box) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


ROBOFLOW = {"train": "train", "val": "valid", "test": "test"}
