"""The table of engines: one row for each program that can run a model file.

A row names its module and imports nothing of it. Another package adds rows through the entry point group
`multibox.engines`: each entry point there is an `EngineRow`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from multibox.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from multibox.inference.engines.interface import Engine

__all__ = [
    "ENGINES",
    "ENTRY_POINTS",
    "EngineRow",
    "engine_names",
    "engine_row",
    "engines_for",
    "installed",
    "suffixes_of",
]

ENTRY_POINTS = "multibox.engines"


@dataclass(frozen=True)
class EngineRow:
    """One engine.

    Args:
        name: as in `engine=`.
        suffixes: of the model files it opens, the one that a shipped model is taken with first.
        package: that must be installed, by the name it is imported under.
        target: "module:class"; the class is called with (path, device=, threads=) and gives an `Engine`.
        automatic: whether `engine=auto` may take it; one that takes long to open has to be asked for.
    """

    name: str
    suffixes: tuple[str, ...]
    package: str
    target: str
    automatic: bool = True

    def open(self, path: Path, *, device: str, threads: int | None) -> Engine:
        """The engine, with the file opened."""
        module, _, name = self.target.partition(":")
        engine: Engine = getattr(importlib.import_module(module), name)(path, device=device, threads=threads)
        return engine


_HERE = "multibox.inference.engines"
ENGINES: dict[str, EngineRow] = {
    row.name: row
    for row in (
        EngineRow("onnxruntime", (".onnx",), "onnxruntime", f"{_HERE}.onnxruntime:OrtEngine"),
        EngineRow("torch", (".safetensors",), "torch", f"{_HERE}.torch:EagerEngine"),
        EngineRow("openvino", (".onnx", ".xml"), "openvino", f"{_HERE}.openvino:OpenVinoEngine"),
        EngineRow("torch-compile", (".safetensors",), "torch", f"{_HERE}.torch:CompiledEngine", automatic=False),
        EngineRow("litert", (".tflite",), "ai_edge_litert", f"{_HERE}.litert:LitertEngine"),
    )
}
"""The engines of this package. For `engine=auto`, the first that opens a suffix is the default."""


@cache
def _added() -> dict[str, EngineRow]:
    """Rows of other packages. Looked up only where no row of this package fits, since a look takes milliseconds."""
    from importlib.metadata import entry_points

    rows = [entry.load() for entry in entry_points(group=ENTRY_POINTS)]
    return {row.name: row for row in rows if row.name not in ENGINES}


def engine_row(name: str) -> EngineRow:
    """The row of an engine.

    Raises:
        OptionError: no such engine.
    """
    row = ENGINES.get(name) or _added().get(name)
    if row is None:
        raise OptionError(f"unknown engine {name!r}; {did_you_mean(name, ['auto', *engine_names()])}")
    return row


def installed(name: str) -> bool:
    """Whether the package of an engine can be imported; it is not loaded."""
    try:
        return find_spec(engine_row(name).package) is not None
    except ValueError:  # what Python says of a module that is blocked or half loaded
        return False


def engine_names() -> tuple[str, ...]:
    """The names of all engines, those of other packages last."""
    return (*ENGINES, *_added())


def engines_for(suffix: str) -> Iterator[EngineRow]:
    """The engines that open files with a suffix, in the order of the table."""
    own = [row for row in ENGINES.values() if suffix in row.suffixes]
    return iter(own or [row for row in _added().values() if suffix in row.suffixes])


def suffixes_of(engine: str) -> tuple[str, ...]:
    """What an engine opens ("auto": what any does), the suffix that shipped models are taken with first."""
    rows = ENGINES.values() if engine == "auto" else [engine_row(engine)]
    return tuple(dict.fromkeys(suffix for row in rows for suffix in row.suffixes))
