"""A `.tflite` file as its users run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from multibox.cpus import usable_cpus
from multibox.export.litert_graph import LitertGraph
from multibox.export.picture_input import NETWORK_INPUT
from multibox.inference.engines.litert import Interpreters, read_metadata
from multibox.spec.card import ModelCard

__all__ = ["litert_session"]


class _Litert:
    def __init__(self, content: bytes, source: str, *, takes_pictures: bool) -> None:
        self._interpreters = Interpreters(content, usable_cpus(), source=source)
        self._takes_pictures = takes_pictures

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        out = self._interpreters.run(images if self._takes_pictures else images.transpose(0, 2, 3, 1))
        if NETWORK_INPUT in out:
            out[NETWORK_INPUT] = out[NETWORK_INPUT].transpose(0, 3, 1, 2)
        return out

    def faults(self, card: ModelCard) -> list[str]:
        return []


def litert_session(path: Path, probes: Sequence[str]) -> tuple[_Litert, dict[str, str]]:
    """A session, which takes and gives pictures as [B, 3, H, W] however the file has them, and the file's metadata.

    Args:
        path: the file.
        probes: tensors to return besides its outputs, where it has them.
    """
    content = path.read_bytes()
    metadata = read_metadata(content, source=str(path))
    if probes:
        graph = LitertGraph(content)
        names = {tensor.name.decode(): number for number, tensor in enumerate(graph.graph.tensors)}
        shown = [int(number) for number in graph.graph.outputs]
        inside = [names[name] for name in probes if name in names and names[name] not in shown]
        graph.graph.outputs = [*shown, *inside]
        content = graph.content()
    return _Litert(content, str(path), takes_pictures=metadata.get("preprocessing_inside") == "true"), metadata
