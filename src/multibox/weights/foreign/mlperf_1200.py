"""Import of MLPerf's SSD on ResNet-34 as it is run at 1200×1200."""

from __future__ import annotations

from pathlib import Path

from multibox.spec.classes import ClassMap
from multibox.weights.foreign.mlperf import read_at, recognise
from multibox.weights.foreign.table import Imported

__all__ = ["read", "recognise"]


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a file."""
    return read_at(path, class_map, side=1200)
