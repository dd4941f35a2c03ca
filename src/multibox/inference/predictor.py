"""What an evaluation asks of a model, whatever runs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from multibox.errors import ImageError
from multibox.spec.card import ModelCard
from multibox.spec.detections import Detections
from multibox.spec.options import PictureOptions

__all__ = ["Predictor"]


class Predictor(Protocol):
    """Pictures in, detections or an error out, in order: a `Detector`, or an exported file under its check."""

    @property
    def card(self) -> ModelCard:
        """What is known about the model."""
        ...

    @property
    def runs_on(self) -> dict[str, str]:
        """What computes, by "engine" and "device"."""
        ...

    def outcomes(self, pictures: Iterable[Any], options: PictureOptions) -> Iterator[Detections | ImageError]:
        """One outcome for each picture, in order: what was found, or why the picture cannot be read.

        Args:
            pictures: paths, or what else the predictor takes.
            options: asked of every picture.
        """
        ...
