"""int8: what the quantisers of all formats share, which is how ranges are chosen and what one layer costs.

Weights are int8 with a scale for each output channel. The scales of activations come from pictures. Outputs of the
network are never rounded to 8 bits: small differences between offsets, or between logits, decide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.export.layout import Layout
from multibox.spec.card import ModelCard

__all__ = ["LEVELS", "Quantizer", "Ranges", "Sensitivity", "least_loss", "measured_ranges", "noise_shares", "snr_db"]

FloatArray = NDArray[np.float32]
Ranges = dict[str, tuple[FloatArray, FloatArray]]
LEVELS = 255  # steps of 8 bits
SAMPLED = 4096  # values of an activation that are kept of each picture
SHRINKAGES = np.linspace(0.4, 1.0, 25)  # of an activation's range


@dataclass(frozen=True)
class Sensitivity:
    """How much noise one layer alone adds to the raw outputs when it is quantised, in decibels below the signal."""

    node: str
    layer: str
    snr_db: float


class Quantizer(ABC):
    """Makes int8 forms of one network; calibrates once.

    Args:
        network: as the format's `convert_network` makes it.
        card: how it is fed.
        pictures: [h, w, 3] uint8 that set the scales.

    Attributes:
        inputs: the pictures as network inputs [3, H, W].
        ranges: (low, high) of each activation by name.
        always_float: names of the nodes that are never quantised.
    """

    engine: str
    ranges: Ranges
    always_float: list[str]

    def __init__(self, network: Any, card: ModelCard, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self.network, self.card, self.pictures = network, card, pictures
        self.inputs: list[FloatArray] = [card.preprocess(picture)[0] for picture in pictures]

    @property
    @abstractmethod
    def layers(self) -> list[str]:
        """Names of the nodes that can be quantised, in the order of the network."""

    @abstractmethod
    def layer_of(self, node: str) -> str:
        """What the network calls a node."""

    @abstractmethod
    def compose(self, layout: Layout, *, keep_float: Sequence[str] = ()) -> tuple[Any, list[str]]:
        """A model to be written with these nodes in float32, and all nodes that are float32 in it."""

    @abstractmethod
    def rounded_alone(self, node: str) -> Any:
        """The network with only this node, and what it hands on, rounded to int8."""

    @abstractmethod
    def raw(self, network: Any, inputs: Sequence[FloatArray]) -> list[FloatArray]:
        """Offsets and logits [B, A, …] of the network, or a form of it, for network inputs [3, H, W]."""

    def sensitivity(self, count: int) -> list[Sensitivity]:
        """Each layer rounded alone, most harmful first, on so many of the pictures."""
        inputs = self.inputs[:count]
        expected = self.raw(self.network, inputs)
        found = []
        for node in self.layers:
            given = self.raw(self.rounded_alone(node), inputs)
            ratios = [snr_db(ours, theirs) for ours, theirs in zip(expected, given, strict=True)]
            found.append(Sensitivity(node, self.layer_of(node), min(ratios)))
        return sorted(found, key=lambda row: row.snr_db)


def measured_ranges(runs: Iterable[Mapping[str, NDArray[Any]]]) -> Ranges:
    """(low, high) of each activation, chosen by `least_loss`; zero lies inside, because padding is zero.

    Args:
        runs: the values of every activation by name, picture by picture.
    """
    random = np.random.default_rng(0)
    limits: dict[str, tuple[float, float]] = {}
    samples: dict[str, list[FloatArray]] = {}
    for run in runs:
        for name, tensor in run.items():
            values = tensor.ravel()
            low, high = limits.get(name, (0.0, 0.0))
            limits[name] = min(low, float(values.min())), max(high, float(values.max()))
            samples.setdefault(name, []).append(values[random.integers(0, values.size, SAMPLED)])
    return {name: least_loss(np.concatenate(samples[name]), *limits[name]) for name in limits}


def least_loss(values: FloatArray, low: float, high: float) -> tuple[FloatArray, FloatArray]:
    """The range within [low, high] that rounds and clips a sample of values with the least squared error."""
    best, chosen = np.inf, 1.0
    for part in SHRINKAGES if high > low else ():
        least, step = low * part, (high - low) * part / LEVELS
        error = float(((np.clip(np.rint((values - least) / step), 0, LEVELS) * step + least - values) ** 2).mean())
        if error < best:
            best, chosen = error, float(part)
    return np.array(low * chosen, np.float32), np.array(high * chosen, np.float32)


def noise_shares(ranking: Sequence[Sensitivity]) -> list[float]:
    """The part of each layer in the noise of all of them, which adds up as long as it is small."""
    noise = [10 ** (-row.snr_db / 10) for row in ranking]
    return [value / sum(noise) for value in noise]


def snr_db(expected: FloatArray, given: FloatArray) -> float:
    """Signal over noise of some values, in decibels."""
    noise = float(((expected - given).astype(np.float64) ** 2).mean())
    signal = float((expected.astype(np.float64) ** 2).mean())
    return 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
