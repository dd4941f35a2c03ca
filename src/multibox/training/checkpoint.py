"""The state of a run in one `.safetensors` file, written whole or not at all; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multibox.errors import ModelFileError, MultiboxError, first_line
from multibox.files import atomic_write

__all__ = ["load_state", "optimizer_tensors", "restore_optimizer", "save_state", "writing"]

STATE_KEY = "multibox_training"
FORMAT_VERSION = 1


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in the user's terms that a file of the run cannot be written.

    Raises:
        MultiboxError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
        raise MultiboxError(f"{path}: {reason}; what was saved before is untouched, free some space") from None


def save_state(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON values into one file.

    Args:
        path: ends in `.safetensors`.
        tensors: of any dtype and device.
        state: JSON values.

    Raises:
        MultiboxError: it cannot be written; the old file is untouched.
    """
    from safetensors.torch import save

    flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    header = json.dumps({"format": FORMAT_VERSION, **state}, sort_keys=True, allow_nan=True)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(flat, metadata={STATE_KEY: header}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `save_state`.

    Raises:
        ModelFileError: not such a file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        remedy = (
            "give the run folder whose weights/ holds the state of a run, or start anew with its config.toml as recipe"
        )
        raise ModelFileError(str(path), "no such file", remedy)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(STATE_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
        state = json.loads(header or "")
    except (SafetensorError, OSError, ValueError) as error:
        reason = f"holds no state of a training run ({first_line(error)})"
        raise ModelFileError(str(path), reason, "start the training anew from weights/best.safetensors") from None
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT_VERSION:
        raise ModelFileError(str(path), "was written by another version", "resume with that one, or start anew")
    return tensors, state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory, by position of the parameter and name."""
    out: dict[str, Tensor] = {}
    for number, values in optimizer.state_dict()["state"].items():
        out.update({f"{number}.{name}": v for name, v in values.items() if isinstance(v, Tensor)})
    return out


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, for an optimiser over the same parameters."""
    content = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": content["param_groups"]})
