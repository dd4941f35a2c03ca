"""Opening a model file with an engine."""

from __future__ import annotations

from pathlib import Path

from multibox.errors import OptionError
from multibox.inference.engines.choice import fastest_engine
from multibox.inference.engines.interface import Engine
from multibox.inference.engines.table import engine_row, engines_for

__all__ = ["open_engine"]


def open_engine(path: Path, *, engine: str, device: str, threads: int | None = None) -> Engine:
    """The engine for a model file.

    Args:
        path: an existing model file.
        engine: "auto" (of those that open this kind of file, the fastest if `multibox benchmark` has found it out on
            this machine, else the first) or a name from the table.
        device: "cpu", or what the engine calls its device ("cuda", "cuda:1").
        threads: to compute with; as many as this process may use processors when left out.

    Raises:
        OptionError: unknown engine, or one that does not open this kind of file.
    """
    suffix = path.suffix.lower()
    if engine == "auto":
        names = tuple(row.name for row in engines_for(suffix) if row.automatic)
        engine = names[0]
        if len(names) > 1 and device == "cpu":
            engine = fastest_engine(path, names) or engine
    row = engine_row(engine)
    if suffix not in row.suffixes:
        opened = " and ".join(row.suffixes)
        raise OptionError(f"engine {engine!r} opens {opened} files, not {path.name!r}; use engine=auto")
    return row.open(path, device=device, threads=threads)
