"""From pictures to detections, with any engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multibox.card import ModelCard
from multibox.catalogue import DEFAULT_MODEL, resolve_model
from multibox.detections import Detections
from multibox.errors import OptionError
from multibox.images import read_picture
from multibox.postprocess import postprocess_np
from multibox.runtime.engine import ENGINES, open_engine

if TYPE_CHECKING:
    from multibox.postprocess import PostprocessSpec

__all__ = ["DISPLAY_THRESHOLD", "Detector", "load"]

# The score from which a box is shown to a person. A choice, not part of the model: evaluation keeps scores down to the
# model's own threshold (0.01).
DISPLAY_THRESHOLD = 0.5


class Detector:
    """A model file, ready to find objects in pictures.

    >>> detector = Detector("ssdlite300-coco")
    >>> detections = detector("cat.jpg")
    >>> detections.save("cat-boxes.jpg")

    Args:
        model: a shipped model's name (see `multibox list`) or a `.onnx` or `.safetensors` file.
        engine: "auto" (by the file's suffix), "onnxruntime" or "torch". For a shipped model "torch" takes its
            `.safetensors` file.
        device: "cpu", "cuda", "cuda:1" …

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
        OptionError: unknown engine or device.
        MissingDependencyError: the engine's package is not installed.
    """

    def __init__(self, model: str | Path = DEFAULT_MODEL, *, engine: str = "auto", device: str = "cpu") -> None:
        suffixes = (".onnx", ".safetensors") if engine == "auto" else (ENGINES.get(engine, ".onnx"),)
        self.engine = open_engine(resolve_model(model, suffixes=suffixes), engine=engine, device=device)
        self._anchors = self.card.anchors_cxcywh()

    @property
    def card(self) -> ModelCard:
        """What the model file says about itself."""
        return self.engine.card

    def __repr__(self) -> str:
        return f"Detector({self.card.name!r}, engine={self.engine.name!r}, device={self.engine.device!r})"

    def __call__(self, picture: Any, **options: Any) -> Detections:
        """Objects in one picture.

        Args:
            picture: a path, encoded bytes, an open binary file, a PIL image, or an array [h, w, 3] uint8 RGB.
            options: `conf`, `iou`, `max_det`, `classes`, `agnostic_nms`, as in `stream`.

        Raises:
            ImageError: the picture cannot be read.
        """
        if isinstance(picture, list | tuple):
            raise OptionError("one picture at a time here; for several use predict([...]) or stream(...)")
        return next(self.stream([picture], **options))

    def predict(self, pictures: Iterable[Any], **options: Any) -> list[Detections]:
        """One `Detections` for each picture, in order. Options as in `stream`."""
        return list(self.stream(pictures, **options))

    def stream(
        self,
        pictures: Iterable[Any],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: Sequence[str | int] | None = None,
        agnostic_nms: bool = False,
        batch: int = 1,
    ) -> Iterator[Detections]:
        """Lazily one `Detections` for each picture, in order.

        Args:
            pictures: see `__call__`.
            conf: only scores above it are reported; 0.5 when left out. Evaluation goes down to
                `card.postprocess.score_threshold`.
            iou: overlap above which the lower-scored of two boxes is dropped; the model's own when left out.
            max_det: most objects in a picture; the model's own when left out.
            classes: names or indexes to keep; all when left out.
            agnostic_nms: let boxes of different classes suppress each other.
            batch: pictures given to the network at once.
        """
        spec = self._spec(conf=conf, iou=iou, max_det=max_det, agnostic_nms=agnostic_nms)
        wanted = None if classes is None else self.card.class_map.select(classes)
        if batch < 1:
            raise OptionError(f"batch must be at least 1, got {batch}")
        remaining = iter(pictures)
        while chunk := list(islice(remaining, batch)):
            yield from self._detect(chunk, spec, wanted)

    def _spec(
        self, *, conf: float | None, iou: float | None, max_det: int | None, agnostic_nms: bool
    ) -> PostprocessSpec:
        default = self.card.postprocess
        return replace(
            default,
            score_threshold=DISPLAY_THRESHOLD if conf is None else conf,
            nms_iou=default.nms_iou if iou is None else iou,
            max_detections=default.max_detections if max_det is None else max_det,
            class_agnostic=agnostic_nms or default.class_agnostic,
        )

    def _detect(
        self, pictures: Sequence[Any], spec: PostprocessSpec, classes: tuple[int, ...] | None
    ) -> Iterator[Detections]:
        prepared = [self.card.preprocess(read_picture(picture)) for picture in pictures]
        first = prepared[0][0][None]
        images = first if len(prepared) == 1 else np.stack([tensor for tensor, _ in prepared])
        offsets, logits = self.engine.run(images)
        for i, (picture, (_, geometry)) in enumerate(zip(pictures, prepared, strict=True)):
            unit_xyxy, scores, labels = postprocess_np(
                offsets[i], logits[i], self._anchors, variances=self.card.variances, spec=spec, classes=classes
            )
            yield Detections(
                geometry.to_picture(unit_xyxy),
                labels,
                scores,
                self.card.class_map,
                geometry.picture_size_hw,
                path=_name(picture),
                source=picture,
            )

    def raw(self, picture: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The network's own numbers for one picture: offsets [A, 4] and logits [A, K]."""
        tensor, _ = self.card.preprocess(read_picture(picture))
        offsets, logits = self.engine.run(tensor[None])
        return offsets[0], logits[0]


def _name(picture: Any) -> str | None:
    return str(picture) if isinstance(picture, str | Path) else getattr(picture, "filename", None) or None


def load(name_or_path: str | Path = DEFAULT_MODEL, *, engine: str = "auto", device: str = "cpu") -> Detector:
    """Open a model by name or path; the same as `Detector(...)`."""
    return Detector(name_or_path, engine=engine, device=device)
