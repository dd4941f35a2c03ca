"""What is exported, at the input size that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multibox.models.network import DetectionNetwork
from multibox.spec.card import ModelCard
from multibox.weights.opening import open_model

__all__ = ["open_source"]


def open_source(model: str | Path, *, size_hw: tuple[int, int] | None = None) -> tuple[DetectionNetwork, ModelCard]:
    """As `open_model`; `size_hw` is the input (height, width), the model's own when left out."""
    arguments: dict[str, Any] = {} if size_hw is None else {"size_hw": list(size_hw)}
    return open_model(model, **arguments)
