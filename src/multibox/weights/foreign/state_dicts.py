"""Reading the files of tensors that torch projects leave, without running anything in them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multibox.catalogue import PICKLED
from multibox.errors import ModelFileError
from multibox.spec.classes import ClassMap

__all__ = ["Tensors", "read_state_dict", "stored_classes", "tensors_of"]

Tensors = Mapping[str, Tensor]
INSIDE = ("state_dict", "model_state_dict", "model", "net", "weights")  # of a training checkpoint
LOGS = ("mmengine.logging.",)  # modules whose objects mmengine keeps in the checkpoints of its trainings
HARMLESS = (
    "builtins.getattr",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
)
"""What those objects consist of. None of it is run: it only may be in a file."""
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and compile put before every name


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file by name: of a state dict, or of the training checkpoint that holds one.

    A file that holds anything but tensors and plain values is refused, never run.

    Raises:
        ModelFileError: no such file, not a file of tensors, or no state dict in it.
    """
    found = _state_dict(_content(path))
    if found is None:
        raise ModelFileError(str(path), "it does not hold a state dict", "save model.state_dict() and nothing else")
    for wrapper in WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): value for name, value in found.items()}
    return found


def stored_classes(path: Path) -> ClassMap | None:
    """The class names that mmengine keeps in the checkpoints of its trainings; None where there are none."""
    content: Any = _content(path)
    for key in ("meta", "dataset_meta"):
        content = content.get(key) if isinstance(content, dict) else None
    names = {str(key).lower(): value for key, value in content.items()} if isinstance(content, dict) else {}
    found = names.get("classes")
    if not isinstance(found, (tuple, list)) or not found or not all(isinstance(name, str) for name in found):
        return None
    return ClassMap(tuple(found))


def _content(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelFileError(str(path), "no such file", "check the path") from None
    except Exception as error:  # the restricted unpickler meets arbitrary bytes and raises almost anything
        with_stand_ins = _with_stand_ins(path)
        if with_stand_ins is not None:
            return with_stand_ins
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFileError(
            str(path),
            f"not a plain file of tensors ({first_line})",
            "save it as model.state_dict() where it was made",
        ) from None


class _StandIn:
    """Takes the place of a class or a function of a log: it takes anything, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _with_stand_ins(path: Path) -> Any:
    """The content of a checkpoint whose logs are objects of `HARMLESS`; nothing of theirs is called or imported."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not names or not all(name in HARMLESS or name.startswith(LOGS) for name in names):
            return None
        kinds = [(type(name, (_StandIn,), {}), name) for name in names]
        with torch.serialization.safe_globals([argparse.Namespace, *kinds]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # as above; the first error is the one to be told
        return None


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return dict(content)
    inside = (_state_dict(content.get(name)) for name in INSIDE)
    return next((found for found in inside if found is not None), None)


def tensors_of(path: Path) -> dict[str, Tensor] | None:
    """As `read_state_dict`, for a question of many importers: None for any other file."""
    if path.suffix.lower() not in PICKLED or not path.is_file():
        return None
    stat = path.stat()
    return _remembered(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _remembered(path: Path, size: int, changed: int) -> dict[str, Tensor] | None:
    try:
        return read_state_dict(path)
    except ModelFileError:
        return None
