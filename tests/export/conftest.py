"""Graphs of networks, made once for all tests here: torch's exporter takes seconds for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jaxtyping
import numpy as np
import pytest


@pytest.fixture(scope="module", autouse=True)
def without_shape_checks() -> Iterator[None]:
    """Without those of the tests, which would make torch's exporter take the batch of its example for the only one."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@dataclass(frozen=True)
class Exported:
    """A network in evaluation mode, its card, and its graph."""

    detector: Any
    card: Any
    network: Any


def _settle(detector: Any, card: Any) -> None:
    """Give a network with random weights the batch statistics of pictures.

    With those of its construction the activations fade, every picture gets nearly the same numbers, and a comparison
    of them would hardly notice a fault.
    """
    import torch

    from multibox.export.verify.samples import drawn_pictures

    layers = [layer for layer in detector.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    if not layers:
        return
    for layer in layers:
        layer.momentum = 1.0
        layer.train()
    images = np.stack([card.preprocess(picture)[0] for picture in drawn_pictures()])
    with torch.no_grad():
        detector(torch.from_numpy(images))
    detector.eval()


@cache
def _exported(name: str, size_hw: tuple[int, int] | None) -> Exported:
    from multibox.export.onnx import convert_network
    from multibox.weights.opening import open_model

    detector, card = open_model(name, size_hw=size_hw)
    if card.source == "random weights":
        _settle(detector, card)
    return Exported(detector, card, convert_network(detector, card))


@pytest.fixture(scope="session")
def exported() -> Callable[..., Exported]:
    """`exported(name, size_hw)`; the graph, whose batch is free, must not be changed."""

    def made(name: str = "ssdlite300-coco", size_hw: Any = None) -> Exported:
        return _exported(name, size_hw)

    return made
