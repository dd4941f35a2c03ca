"""What an engine is: something that runs one model file on a batch of network inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from multibox.card import ModelCard
from multibox.errors import ModelFileError, OptionError, did_you_mean
from multibox.runtime.choice import fastest_engine

__all__ = [
    "BY_NAME_ONLY",
    "ENGINES",
    "INPUT",
    "OUTPUTS",
    "Engine",
    "in_groups",
    "open_engine",
    "refuse_head",
    "suffixes_of",
]

FloatArray = NDArray[np.float32]
INPUT, OUTPUTS = "images", ("offsets", "logits")  # of every exported file an engine runs


class Engine(Protocol):
    """Runs a network. Preprocessing, decoding and suppression happen outside, once for all engines.

    Attributes:
        name: "onnxruntime", "torch", …
        card: what the model file says about itself.
        device: where it runs.
        threads: processors that it keeps busy, where it runs on them.
    """

    name: str
    card: ModelCard
    device: str
    threads: int

    def run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Network input [B, 3, H, W] -> offsets [B, A, 4] and logits [B, A, K] of the last stage."""
        ...

    def concurrent(self, workers: int) -> Engine | None:
        """The same model with this engine's threads divided among `workers` that call `run` at the same time.

        More pictures a second come out of that than out of all threads on one picture after the other. It gives the
        same numbers. None where it cannot be had.
        """
        ...


def in_groups(
    images: FloatArray, batch: int | None, run: Callable[[FloatArray], tuple[FloatArray, FloatArray]]
) -> tuple[FloatArray, FloatArray]:
    """What `run` gives for [B, 3, H, W], where it takes `batch` pictures at once and no other number (None: any).

    A group that is too small is filled up with its last picture.
    """
    if batch is None or len(images) == batch:
        return run(images)
    found = []
    for start in range(0, len(images), batch):
        group = images[start : start + batch]
        missing = batch - len(group)
        if missing:
            group = np.concatenate([group, np.repeat(group[-1:], missing, axis=0)])
        offsets, logits = run(group)
        found.append((offsets[: batch - missing], logits[: batch - missing]))
    offsets, logits = (np.concatenate(part) for part in zip(*found, strict=True))
    return offsets, logits


# Suffixes of the model files each engine opens; for "auto", the first engine that opens a suffix takes it.
ENGINES: dict[str, tuple[str, ...]] = {
    "onnxruntime": (".onnx",),
    "torch": (".safetensors",),
    "openvino": (".onnx", ".xml"),
    "torch-compile": (".safetensors",),
    "litert": (".tflite",),
}
# Those that take so long to open that they have to be asked for.
BY_NAME_ONLY = frozenset({"torch-compile"})


def suffixes_of(engine: str) -> tuple[str, ...]:
    """What an engine opens ("auto": what any does), the suffix that shipped models are taken with first."""
    if engine == "auto":
        return tuple(dict.fromkeys(suffix for opened in ENGINES.values() for suffix in opened))
    return ENGINES.get(engine, (".onnx",))


def open_engine(path: Path, *, engine: str, device: str, threads: int | None = None) -> Engine:
    """The engine for a model file.

    Args:
        path: an existing `.onnx`, `.safetensors`, `.xml` or `.tflite` file.
        engine: "auto" (of those that open this kind of file, the fastest if `multibox benchmark` has found it out on
            this machine, else the first) or a name from `ENGINES`.
        device: "cpu", or what the engine calls its device ("cuda", "cuda:1").
        threads: to compute with; as many as this process may use processors when left out.

    Raises:
        OptionError: unknown engine, or one that does not open this kind of file.
    """
    suffix = path.suffix.lower()
    if engine == "auto":
        candidates = tuple(name for name, opened in ENGINES.items() if suffix in opened and name not in BY_NAME_ONLY)
        engine = candidates[0]
        if len(candidates) > 1 and device == "cpu":
            engine = fastest_engine(path, candidates) or engine
    if engine not in ENGINES:
        raise OptionError(f"unknown engine {engine!r}; {did_you_mean(engine, ['auto', *ENGINES])}")
    if suffix not in ENGINES[engine]:
        opened = " and ".join(ENGINES[engine])
        raise OptionError(f"engine {engine!r} opens {opened} files, not {path.name!r}; use engine=auto")
    if engine in ("torch", "torch-compile"):
        from multibox.runtime.eager import CompiledEngine, EagerEngine

        kind = CompiledEngine if engine == "torch-compile" else EagerEngine
        return kind(path, device=device, threads=threads)
    if engine == "openvino":
        from multibox.runtime.openvino import OpenVinoEngine

        return OpenVinoEngine(path, device=device, threads=threads)
    if engine == "litert":
        from multibox.runtime.litert import LitertEngine

        return LitertEngine(path, device=device, threads=threads)
    from multibox.runtime.ort import OrtEngine

    return OrtEngine(path, device=device, threads=threads)


def refuse_head(source: str, metadata: Mapping[str, str]) -> None:
    """Engines run raw outputs only, because options such as conf and iou are applied to those.

    Raises:
        ModelFileError: the file was exported with another head, or takes pictures in place of prepared input.
    """
    head, inside = metadata.get("head", "raw"), metadata.get("preprocessing_inside", "false")
    if head == "raw" and inside == "false":
        return
    what = f"head={head}" + (" and preprocess=true" if inside == "true" else "")
    raise ModelFileError(
        source,
        f"it was exported with {what}, for other programs to run",
        "predict with the model it came from, or with an export of that with head=raw and preprocess=false",
    )
