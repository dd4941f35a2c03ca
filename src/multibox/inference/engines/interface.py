"""What an engine is: something that runs one model file on a batch of network inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ModelFileError
from multibox.spec.card import ModelCard

__all__ = ["INPUT", "OUTPUTS", "Engine", "in_groups", "refuse_head"]

FloatArray = NDArray[np.float32]
INPUT, OUTPUTS = "images", ("offsets", "logits")  # of every exported file an engine runs


class Engine(Protocol):
    """Runs a network. Preprocessing, decoding and suppression happen outside, once for all engines.

    Attributes:
        name: "onnxruntime", "torch", …
        card: what the model file says about itself.
        device: where it runs.
        threads: processors that it keeps busy, where it runs on them.
        batch: pictures that the file takes at once; None where it takes any number.
    """

    name: str
    card: ModelCard
    device: str
    threads: int
    batch: int | None

    def run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Network input [B, 3, H, W] -> offsets [B, A, 4] and logits [B, A, K]."""
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
