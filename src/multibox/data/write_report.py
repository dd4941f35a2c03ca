"""What a writer did, and everything it has to say about it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multibox.data.findings import DataError

__all__ = ["WriteReport", "shortest", "start_file", "start_folder"]


@dataclass
class WriteReport:
    """Where the data set was written, and one line for everything a user should know, with counts."""

    path: Path
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Add a line."""
        self.notes.append(line)


def shortest(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The shortest decimals that are these float32 values: 0.1 instead of 0.10000000149011612."""
    return values.astype("U24").astype(np.float64)


def start_folder(path: Path, *, exist_ok: bool) -> Path:
    """Create a folder to write into; one with files in it is refused unless `exist_ok`."""
    if path.exists() and not path.is_dir():
        raise DataError(path, "is a file", "give a folder to write into")
    if path.is_dir() and not exist_ok and any(path.iterdir()):
        raise DataError(path, "is not empty", "choose another folder, or say exist_ok=true to write into it")
    return _made(path)


def start_file(path: Path, *, exist_ok: bool) -> Path:
    """Create the folder of a file to write; an existing file is refused unless `exist_ok`."""
    if path.is_dir():
        raise DataError(path, "is a folder", "give the name of a file to write")
    if path.exists() and not exist_ok:
        raise DataError(path, "exists", "choose another name, or say exist_ok=true to replace it")
    _made(path.parent)
    return path


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(folder, f"cannot be created ({error.strerror})", "choose another place") from None
    if not os.access(folder, os.W_OK):
        raise DataError(folder, "may not be written to", "choose another place")
    return folder
