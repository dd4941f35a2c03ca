"""`multibox.jsonl`: what YOLO text cannot say, kept beside data.yaml.

The first line holds the version, the original class ids, and the folder of each split that data.yaml has no key for.
A line for each picture follows: path, image_id, split, height and width, and, as lists, the positions of its boxes
that are crowd, difficult, truncated or occluded, and the given areas. A check sum of the label file shows whether the
labels were changed since; flags of a changed file are not used.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.columns import FLAGS
from multibox.data.findings import DataError
from multibox.data.records import ImageRecord

__all__ = ["SIDECAR", "Sidecar", "check_sum", "line_of"]

SIDECAR = "multibox.jsonl"
VERSION = 1


def check_sum(label_text: str) -> int:
    """Check sum of a label file that does not depend on white space and line ends."""
    return zlib.crc32(" ".join(label_text.split()).encode("utf-8", "replace"))


def line_of(record: ImageRecord, path: str, label_text: str) -> dict[str, Any]:
    """The line of one picture, whose file is `path` in the written data set."""
    line: dict[str, Any] = {
        "path": path,
        "image_id": record.image_id,
        "split": record.split,
        "labels_crc32": check_sum(label_text),
    }
    if record.size_hw is not None:
        line["height"], line["width"] = record.size_hw
    for name in FLAGS:
        positions = np.flatnonzero(getattr(record, name)).tolist()
        if positions:
            line[name] = positions
    if not np.isnan(record.area).all():
        line["area"] = [None if np.isnan(value) else value for value in record.area.tolist()]
    return line


class Sidecar:
    """A sidecar read back; empty where there is none."""

    def __init__(self, path: Path) -> None:
        self.class_names: list[str] = []
        self.class_ids: list[int] = []
        self.folders: dict[str, str] = {}
        self._lines: dict[str, str] = {}
        if not path.is_file():
            return
        try:
            with path.open(encoding="utf-8-sig") as stream:
                self._head(json.loads(stream.readline()))
                for line in stream:
                    if line.strip():  # kept as text, which is smaller
                        self._lines[str(json.loads(line)["path"])] = line
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                path, f"is damaged ({error})", "write the data set again, or delete the file and lose its flags"
            ) from None

    def _head(self, head: dict[str, Any]) -> None:
        if head["multibox"] != VERSION:
            raise ValueError(f"version {head['multibox']!r}, not {VERSION}")
        self.class_names, self.class_ids = list(head["names"]), [int(i) for i in head["ids"]]
        self.folders = dict(head["folders"])

    @property
    def paths(self) -> list[str]:
        """The pictures it knows, in the order written."""
        return list(self._lines)

    def get(self, path: str) -> dict[str, Any] | None:
        """The line of a picture, or None."""
        line = self._lines.get(path)
        return None if line is None else json.loads(line)
