"""From pictures to detections, with any engine."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.card import ModelCard
from multibox.catalogue import DEFAULT_MODEL, resolve_model
from multibox.detections import Detections
from multibox.errors import ContractError, ModelFileError, OptionError, did_you_mean
from multibox.images import read_limited, read_picture
from multibox.postprocess import postprocess_np
from multibox.runtime.engine import ENGINES, open_engine

if TYPE_CHECKING:
    from multibox.classes import ClassMap
    from multibox.postprocess import PostprocessSpec

__all__ = ["DISPLAY_THRESHOLD", "Detector", "Options", "load"]

# The score from which a box is shown to a person. A choice, not part of the model: evaluation keeps scores down to the
# model's own threshold (0.01).
DISPLAY_THRESHOLD = 0.5


@dataclass(frozen=True)
class Options:
    """What a prediction may be asked; checked on construction.

    Args:
        conf: only scores above it are reported; 0.5 when left out. Evaluation goes down to
            `card.postprocess.score_threshold`.
        iou: overlap above which the lower-scored of two boxes is dropped; the model's own when left out.
        max_det: most objects in a picture; the model's own when left out.
        classes: names or indexes to keep; all when left out.
        agnostic_nms: let boxes of different classes suppress each other.
        batch: pictures given to the network at once.

    Raises:
        OptionError: a value out of range or of the wrong kind.
    """

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: Iterable[str | int] | str | int | None = None
    agnostic_nms: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        for name, high in (("conf", "below 1"), ("iou", "to 1")):
            value: Any = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool | str) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
                raise OptionError(f"{name} must be a number from 0 {high}, got {value!r}")
            if name == "conf" and value == 1:
                raise OptionError("conf must be below 1: only scores above it are reported, and none is above 1")
            object.__setattr__(self, name, float(value))
        for name in ("max_det", "batch"):
            value = getattr(self, name)
            if value is None and name == "max_det":
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < 1:
                raise OptionError(f"{name} must be a whole number from 1, got {value!r}")
            object.__setattr__(self, name, int(value))

    def selected(self, class_map: ClassMap) -> tuple[int, ...] | None:
        """Indexes of the wanted classes; None for all."""
        if self.classes is None:
            return None
        if isinstance(self.classes, numbers.Integral):
            return class_map.select([int(self.classes)])
        return class_map.select(self.classes)  # type: ignore[arg-type]  # numbers.Integral hides that int is gone

    def applied_to(self, default: PostprocessSpec) -> PostprocessSpec:
        """The model's own post-processing with what was asked for in its place."""
        return replace(
            default,
            score_threshold=DISPLAY_THRESHOLD if self.conf is None else self.conf,
            nms_iou=default.nms_iou if self.iou is None else self.iou,
            max_detections=default.max_detections if self.max_det is None else self.max_det,
            class_agnostic=bool(self.agnostic_nms) or default.class_agnostic,
        )


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
        self.path = resolve_model(model, suffixes=suffixes)
        self.engine = open_engine(self.path, engine=engine, device=device)
        self._anchors = self.card.anchors_cxcywh()

    @property
    def card(self) -> ModelCard:
        """What the model file says about itself."""
        return self.engine.card

    def __repr__(self) -> str:
        return f"Detector({self.card.name!r}, engine={self.engine.name!r}, device={self.engine.device!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was opened with: a worker process opens its own session on the same file."""
        return _reopen, (self.path, self.engine.name, self.engine.device)

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

    def stream(self, pictures: Iterable[Any], **options: Any) -> Iterator[Detections]:
        """Lazily one `Detections` for each picture, in order.

        A picture that cannot be read ends the stream with its `ImageError`; to go on, read each picture with
        `multibox.images.read_picture` yourself and pass what could be read.

        Args:
            pictures: an iterable of what `__call__` takes. A result refers to the array or bytes it came from, which
                `plot` draws on; `dataclasses.replace(result, source=None)` lets go of them.
            options: see `Options`, whose fields they are.

        Raises:
            OptionError: one picture in place of several, or an option that is unknown or out of range; at once.
        """
        if isinstance(pictures, str | bytes | os.PathLike | np.ndarray) or hasattr(pictures, "mode"):
            raise OptionError("several pictures here; for one call the detector itself, or give a list: [picture]")
        for key in options:
            if key not in Options.__dataclass_fields__:
                raise OptionError(f"unknown option {key!r}; {did_you_mean(key, Options.__dataclass_fields__)}")
        chosen = Options(**options)
        spec = chosen.applied_to(self.card.postprocess)
        return self._stream(iter(pictures), spec, chosen.selected(self.card.class_map), chosen.batch)

    def _stream(
        self, pictures: Iterator[Any], spec: PostprocessSpec, classes: tuple[int, ...] | None, batch: int
    ) -> Iterator[Detections]:
        while chunk := [_opened(picture) for picture in islice(pictures, batch)]:
            yield from self._detect(chunk, spec, classes)

    def _detect(
        self, pictures: Sequence[_Opened], spec: PostprocessSpec, classes: tuple[int, ...] | None
    ) -> Iterator[Detections]:
        prepared = [self.card.preprocess(read_picture(p.source, name=p.shown)) for p in pictures]
        first = prepared[0][0][None]
        images = first if len(prepared) == 1 else np.stack([tensor for tensor, _ in prepared])
        offsets, logits = self.engine.run(images)
        for i, (picture, (_, geometry)) in enumerate(zip(pictures, prepared, strict=True)):
            try:
                unit_xyxy, scores, labels = postprocess_np(
                    offsets[i], logits[i], self._anchors, variances=self.card.variances, spec=spec, classes=classes
                )
            except ContractError as error:
                reason = f"it gives nonsense on {picture.shown or 'a picture'} ({error})"
                raise ModelFileError(str(self.path), reason, "get the file again, or train it anew") from None
            yield Detections(
                geometry.to_picture(unit_xyxy),
                labels,
                scores,
                self.card.class_map,
                geometry.picture_size_hw,
                path=picture.shown,
                source=picture.source,
            )

    def raw(self, picture: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The network's own numbers for one picture: offsets [A, 4] and logits [A, K]."""
        tensor, _ = self.card.preprocess(read_picture(picture))
        offsets, logits = self.engine.run(tensor[None])
        return offsets[0], logits[0]


class _Opened(NamedTuple):
    source: Any
    shown: str | None


def _opened(picture: Any) -> _Opened:
    """What to read, now and again for drawing, and how to call it; an open file is read once, to its end."""
    if isinstance(picture, str | os.PathLike):
        return _Opened(picture, os.fspath(picture) if isinstance(picture, os.PathLike) else picture)
    name = getattr(picture, "filename", None) or getattr(picture, "name", None)
    shown = name if isinstance(name, str) and name else None
    if hasattr(picture, "read") and not hasattr(picture, "size"):
        return _Opened(read_limited(picture, shown or "<picture>"), shown)
    return _Opened(picture, shown)


def _reopen(path: Path, engine: str, device: str) -> Detector:
    return Detector(path, engine=engine, device=device)


def load(name_or_path: str | Path = DEFAULT_MODEL, *, engine: str = "auto", device: str = "cpu") -> Detector:
    """Open a model by name or path; the same as `Detector(...)`."""
    return Detector(name_or_path, engine=engine, device=device)
