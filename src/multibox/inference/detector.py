"""From pictures to detections, with any engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.catalogue import DEFAULT_MODEL
from multibox.cpus import usable_cpus
from multibox.errors import ImageError, ModelFileError, OptionError
from multibox.inference.engines.choice import ENGINE_VARIABLE, asked_engine
from multibox.inference.engines.interface import Engine
from multibox.inference.engines.opening import open_engine
from multibox.inference.engines.table import suffixes_of
from multibox.inference.options import StreamOptions, split_options
from multibox.inference.picture import Deferred, PictureRequest
from multibox.inference.stream import MOST_WORKERS, Network, Stream
from multibox.pictures.read import read_picture
from multibox.spec.card import ModelCard
from multibox.spec.detections import Detections
from multibox.spec.options import DISPLAY_THRESHOLD, PictureOptions
from multibox.spec.pipeline import Pipeline

__all__ = ["DISPLAY_THRESHOLD", "Deferred", "Detector", "PictureOptions", "PictureRequest", "load"]


class Detector:
    """A model file, ready to find objects in pictures.

    >>> detector = Detector("ssdlite300-coco")
    >>> detections = detector("cat.jpg")
    >>> detections.save("cat-boxes.jpg")

    Args:
        model: a shipped model's name (see `multibox list`); a `.onnx`, `.safetensors`, OpenVINO `.xml` or `.tflite`
            file; foreign weights that `multibox import` recognises; or a builder's name, for random weights.
        engine: "auto" or a name from `multibox.inference.engines.table` ("onnxruntime", "openvino", "torch" …). "auto"
            is what the environment variable MULTIBOX_ENGINE names; without it, the engine that `multibox benchmark`
            found to be the fastest for this file on this machine; without that, the first that opens the file. For a
            shipped model "torch" takes its `.safetensors` file.
        device: "cpu", "cuda", "cuda:1" …, or "auto" for the best that the engine finds.
        threads: processors to use; as many as this process may (its container's quota included) when left out.
        builder_arguments: of a network that is built (`num_classes=3`), or `size_hw=(height, width)` of the input in
            place of the model's own.

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
        OptionError: unknown engine or device.
        MissingDependencyError: the engine's package is not installed.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        engine: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        **builder_arguments: Any,
    ) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise OptionError(f"threads must be a whole number from 1, got {threads!r}")
        asked = asked_engine(engine)
        if asked != engine and Path(model).suffix.lower() in set(suffixes_of("auto")) - set(suffixes_of(asked)):
            reason = f"engine {asked!r} does not open it"
            remedy = f"{ENGINE_VARIABLE}={asked} asks for that one; unset it, or give another engine="
            raise ModelFileError(str(model), reason, remedy)
        opened, path = open_engine(
            model, engine=asked, device=device, threads=threads, builder_arguments=builder_arguments
        )
        self._open(opened, str(path or model))
        self._path = path
        self._arguments = {
            "model": path or model,
            "engine": opened.name,
            "device": device,
            "threads": threads,
            **builder_arguments,
        }

    @classmethod
    def of_engine(cls, engine: Engine, *, source: str, stream: StreamOptions | None = None) -> Detector:
        """A detector around an engine that is open already, such as a network in memory.

        Args:
            engine: runs the network and has its card.
            source: how to call it in messages.
            stream: how `outcomes` works; one picture at a time through the network when left out.
        """
        detector = cls.__new__(cls)
        detector._open(engine, source, stream)
        detector._path, detector._arguments = None, None
        return detector

    _path: Path | None
    _arguments: dict[str, Any] | None

    def _open(self, engine: Engine, source: str, stream: StreamOptions | None = None) -> None:
        self.engine = engine
        self._stream_options = stream or StreamOptions()
        self._network = Network(engine, Pipeline(engine.card), source)

    @property
    def runs_on(self) -> dict[str, str]:
        """What computes, by "engine" and "device"."""
        return {"engine": self.engine.name, "device": self.engine.device}

    @property
    def card(self) -> ModelCard:
        """What the model file says about itself."""
        return self.engine.card

    def __repr__(self) -> str:
        return f"Detector({self.card.name!r}, engine={self.engine.name!r}, device={self.engine.device!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was opened with: a worker process opens its own session on the same file."""
        if self._arguments is None:
            raise TypeError(
                "a detector around a network in memory cannot be pickled; save the network and open the file"
            )
        return _reopen, (self._arguments,)

    @property
    def path(self) -> Path | None:
        """The model file; None for a network in memory."""
        return self._path

    def __call__(self, picture: Any, **options: Any) -> Detections:
        """Objects in one picture.

        Args:
            picture: a path, encoded bytes, an open binary file, a PIL image, or an array [h, w, 3] uint8 RGB.
            options: `conf`, `iou`, `max_det`, `classes`, `agnostic_nms`, `tile`, `tile_overlap`, as in `stream`.

        Raises:
            ImageError: the picture cannot be read.
        """
        if isinstance(picture, list | tuple):
            raise OptionError("one picture at a time here; for several use predict([...]) or stream(...)")
        return next(self._begin([picture], options, None))

    def predict(self, pictures: Iterable[Any], **options: Any) -> list[Detections]:
        """One `Detections` for each picture, in order. Options as in `stream`."""
        return list(self.stream(pictures, **options))

    def stream(
        self, pictures: Iterable[Any], *, on_error: Callable[[ImageError], None] | None = None, **options: Any
    ) -> Generator[Detections, None, None]:
        """Lazily one `Detections` for each picture, in order, the same as one by one.

        The first result comes as soon as it can. While the caller is busy with it, the next pictures are drawn (in the
        caller's thread, as he asks for results), then read and looked at by `workers` threads: at most twice as many
        as there are workers, each result that waits with its picture. So give workers=1 for pictures that come as they
        happen, from a camera. Files and bytes are read in the threads; arrays, Pillow pictures, open files and pipes
        when they are drawn, since they may change afterwards. The threads end with the stream: when it is used up, an
        error comes out of it, or it is closed.

        Args:
            pictures: an iterable of what `__call__` takes, or of `PictureRequest`, which has options of its own;
                pictures with other options share batches. A result refers to the array or bytes it came from, which
                `plot` draws on; `dataclasses.replace(result, source=None)` lets go of them.
            on_error: called with the `ImageError` of a picture that cannot be read, in its turn; the stream goes on
                with the next. Without it the error ends the stream.
            options: the fields of `PictureOptions` and `StreamOptions`.

        Raises:
            OptionError: one picture in place of several, or an option that is unknown or out of range; at once.
        """
        if isinstance(pictures, str | bytes | os.PathLike | np.ndarray) or hasattr(pictures, "mode"):
            raise OptionError("several pictures here; for one call the detector itself, or give a list: [picture]")
        return self._begin(pictures, options, on_error)

    def _begin(
        self, pictures: Iterable[Any], options: dict[str, Any], on_error: Callable[[ImageError], None] | None
    ) -> Generator[Detections, None, None]:
        of_picture, of_stream = split_options(options)
        stream = self._stream_of(of_stream, expected=length_hint(pictures), keep_going=on_error is not None)
        self._network.pipeline.require(of_picture)
        return _told(stream.outcomes(iter(pictures), of_picture), on_error)

    def outcomes(self, pictures: Iterable[Any], options: PictureOptions) -> Iterator[Detections | ImageError]:
        """As `stream`, but a picture that cannot be read is an outcome too, so that there is one for each picture.

        Args:
            pictures: as in `stream`.
            options: for the pictures that are no `PictureRequest`.
        """
        self._network.pipeline.require(options)
        work = self._stream_of(self._stream_options, expected=length_hint(pictures), keep_going=True)
        return work.outcomes(iter(pictures), options)

    def _stream_of(self, options: StreamOptions, *, expected: int, keep_going: bool) -> Stream:
        busy = self.engine.threads if self.engine.device == "cpu" else usable_cpus()
        workers = options.workers or min(busy, MOST_WORKERS)
        return Stream(self._network, options, workers=workers, expected=expected, keep_going=keep_going)

    def raw(self, picture: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The network's own numbers for one picture: offsets [A, 4] and logits [A, K]."""
        prepared = self._network.pipeline.prepare(read_picture(picture))
        offsets, logits = self.engine.run(prepared.tensor[None])
        return offsets[0], logits[0]


def _told(
    outcomes: Iterator[Detections | ImageError], on_error: Callable[[ImageError], None] | None
) -> Generator[Detections, None, None]:
    """The detections; what cannot be read goes to `on_error`."""
    for outcome in outcomes:
        if isinstance(outcome, Detections):
            yield outcome
        elif on_error is not None:
            on_error(outcome)


def _reopen(arguments: dict[str, Any]) -> Detector:
    return Detector(**arguments)


def load(name_or_path: str | Path = DEFAULT_MODEL, **options: Any) -> Detector:
    """Open a model by name or path; the same as `Detector(...)`."""
    return Detector(name_or_path, **options)
