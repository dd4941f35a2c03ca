"""Opening a model with an engine: a file with the engine that runs such files, anything else as a network in memory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from multibox.catalogue import CATALOGUE, NETWORKS, resolve_model
from multibox.errors import OptionError
from multibox.inference.engines.choice import fastest_engine
from multibox.inference.engines.interface import Engine
from multibox.inference.engines.table import engine_row, engines_for, suffixes_of
from multibox.spec.card import METADATA_KEY, ModelCard, read_safetensors_card

__all__ = ["model_card", "open_engine", "open_file"]

NATIVE = ".safetensors"
FOREIGN_TOO = (".tflite",)
IN_MEMORY = ("auto", "torch")  # engines that run a network without a model file


def open_engine(
    model: str | Path,
    *,
    engine: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    builder_arguments: Mapping[str, Any] | None = None,
) -> tuple[Engine, Path | None]:
    """The engine for a model, and its file where it has one that an engine opens.

    Args:
        model: a shipped model's name, a model file, foreign weights, or a builder's name.
        engine: "auto" or a name from the table.
        device: "auto" (the best that the engine finds), "cpu", or what the engine calls its device ("cuda", "cuda:1").
        threads: to compute with; as many as this process may use processors when left out.
        builder_arguments: as for `multibox.weights.opening.open_model`.

    Raises:
        ModelFileError: no such model, or one that cannot be read.
        OptionError: unknown engine, one that does not run such a model, or arguments that the model does not take.
    """
    named = str(model) in ("", *CATALOGUE) or (any(engines_for(Path(model).suffix.lower())) and not _foreign(model))
    if (named and not builder_arguments) or (find_spec("torch") is None and str(model) not in NETWORKS):
        path = resolve_model(model, suffixes=suffixes_of(engine))
        return open_file(path, engine=engine, device=device, threads=threads), path
    if engine not in IN_MEMORY:
        engine_row(engine)
        raise OptionError(f"engine {engine!r} runs model files only; use engine=torch, or export {model} first")
    from multibox.inference.engines.torch import open_network

    return open_network(model, device=device, threads=threads, builder_arguments=builder_arguments or {}), None


def _foreign(model: str | Path) -> bool:
    """Whether a file is of a kind that an engine opens, but was written by others and can be imported."""
    path = Path(model)
    if path.suffix.lower() not in FOREIGN_TOO or not path.is_file() or METADATA_KEY.encode() in path.read_bytes():
        return False
    if find_spec("torch") is None:
        return False
    from multibox.inference.engines.torch import is_foreign

    return is_foreign(path)


def model_card(model: str | Path, builder_arguments: Mapping[str, Any] | None = None) -> ModelCard:
    """The card of whatever `open_engine` opens; of a `.safetensors` file without its weights, so without torch.

    Raises:
        ModelFileError, OptionError, MissingDependencyError: as `open_engine`.
    """
    if not builder_arguments and (str(model) in CATALOGUE or Path(model).suffix.lower() == NATIVE):
        return read_safetensors_card(resolve_model(model, suffixes=(NATIVE,)))
    return open_engine(model, builder_arguments=builder_arguments)[0].card


def open_file(path: Path, *, engine: str, device: str, threads: int | None = None) -> Engine:
    """The engine for a model file. "auto" is the fastest of those that open this kind of file if `multibox benchmark`
    has found it out on this machine, else the first.

    Raises:
        OptionError: unknown engine, or one that does not open this kind of file.
    """
    suffix = path.suffix.lower()
    if engine == "auto":
        names = tuple(row.name for row in engines_for(suffix) if row.automatic)
        engine = names[0]
        if len(names) > 1 and device in ("cpu", "auto"):
            engine = fastest_engine(path, names) or engine
    row = engine_row(engine)
    if suffix not in row.suffixes:
        opened = " and ".join(row.suffixes)
        raise OptionError(f"engine {engine!r} opens {opened} files, not {path.name!r}; use engine=auto")
    return row.open(path, device=device, threads=threads)
