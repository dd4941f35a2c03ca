"""What an engine is: something that runs one model file on a batch of network inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from multibox.card import ModelCard
from multibox.errors import OptionError, did_you_mean

__all__ = ["ENGINES", "Engine", "open_engine"]

FloatArray = NDArray[np.float32]


class Engine(Protocol):
    """Runs a network. Preprocessing, decoding and suppression happen outside, once for all engines.

    Attributes:
        name: "onnxruntime", "torch", …
        card: what the model file says about itself.
        device: where it runs.
    """

    name: str
    card: ModelCard
    device: str

    def run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Network input [B, 3, H, W] -> offsets [B, A, 4] and logits [B, A, K] of the last stage."""
        ...


# Suffix of the model file each engine opens.
ENGINES = {"onnxruntime": ".onnx", "torch": ".safetensors"}


def open_engine(path: Path, *, engine: str, device: str) -> Engine:
    """The engine for a model file.

    Args:
        path: an existing `.onnx` or `.safetensors` file.
        engine: "auto" (chosen by the file's suffix) or a name from `ENGINES`.
        device: "cpu", or what the engine calls its device ("cuda", "cuda:1").

    Raises:
        OptionError: unknown engine, or one that does not open this kind of file.
    """
    suffix = path.suffix.lower()
    if engine == "auto":
        engine = next(name for name, opened in ENGINES.items() if opened == suffix)
    if engine not in ENGINES:
        raise OptionError(f"unknown engine {engine!r}; {did_you_mean(engine, ['auto', *ENGINES])}")
    if ENGINES[engine] != suffix:
        raise OptionError(f"engine {engine!r} opens {ENGINES[engine]} files, not {path.name!r}; use engine=auto")
    if engine == "torch":
        from multibox.runtime.eager import EagerEngine

        return EagerEngine(path, device=device)
    from multibox.runtime.ort import OrtEngine

    return OrtEngine(path, device=device)
