"""What can be timed: our detector with an engine, and torchvision's detectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from multibox.errors import MissingDependencyError
from multibox.inference import Detector
from multibox.inference.engines.torch import torch_threads
from multibox.pictures.read import read_picture
from multibox.spec.options import PictureOptions
from multibox.spec.pipeline import Pipeline

__all__ = ["TORCHVISION", "Contender", "Folder", "Ours", "Sample", "Torchvision"]

# torchvision's builders by what they are called here.
TORCHVISION = {
    "ssdlite320": "ssdlite320_mobilenet_v3_large",
    "ssd300": "ssd300_vgg16",
    "fasterrcnn320": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn": "fasterrcnn_resnet50_fpn",
}


@dataclass(frozen=True)
class Sample:
    """Seconds of one call on `pictures` pictures; parts that a contender does not tell apart are 0."""

    pictures: int
    total: float
    decode: float = 0.0
    network: float = 0.0
    postprocess: float = 0.0


class Contender(Protocol):
    """Something that looks at picture files.

    Attributes:
        name: for the table.
        threads: that it computes with.
        batch: pictures a call.
    """

    name: str
    threads: int
    batch: int

    def call(self, paths: Sequence[Path]) -> Sample:
        """Look at `batch` files, given as many or fewer."""
        ...


class Ours:
    """A detector, one call at a time: decoding and resizing, the network, post-processing of scores above `conf`.

    Args:
        model: what it is called in the tables.
        detector: it.
        batch: pictures a call.
        conf: least score.
    """

    def __init__(self, model: str, detector: Detector, *, batch: int, conf: float) -> None:
        self.model, self.detector, self.batch, self.conf = model, detector, batch, conf
        self._pipeline, self._options = Pipeline(detector.card), PictureOptions(conf=conf)
        self.name, self.threads = detector.engine.name, detector.engine.threads

    def call(self, paths: Sequence[Path]) -> Sample:
        """Look at `batch` files; the stages are timed within, so each meets the caches as the others left them."""
        engine, pipeline = self.detector.engine, self._pipeline
        marks = [time.perf_counter()]
        prepared = [pipeline.prepare(read_picture(path)) for path in paths]
        images = np.stack([picture.tensor for picture in prepared])
        marks.append(time.perf_counter())
        offsets, logits = engine.run(images)
        marks.append(time.perf_counter())
        for row, picture in enumerate(prepared):
            pipeline.finish(offsets[row], logits[row], picture, self._options)
        marks.append(time.perf_counter())
        decode, network, post = (b - a for a, b in pairwise(marks))
        return Sample(len(paths), marks[-1] - marks[0], decode, network, post)


class Folder:
    """A detector's stream over many files, as `multibox predict FOLDER` uses it."""

    def __init__(self, ours: Ours, *, pictures: int) -> None:
        self._ours, self._stream_batch = ours, ours.batch
        self.name, self.threads, self.batch = ours.name, ours.threads, pictures

    def call(self, paths: Sequence[Path]) -> Sample:
        """Look at all the files."""
        started = time.perf_counter()
        for _ in self._ours.detector.stream(paths, batch=self._stream_batch, conf=self._ours.conf):
            pass
        return Sample(len(paths), time.perf_counter() - started)


class Torchvision:
    """One of torchvision's detectors, eager, float32, with random weights and its own default thresholds.

    Args:
        name: a key of `TORCHVISION`.
        threads: for torch to compute with.

    Raises:
        MissingDependencyError: torchvision is not installed.
    """

    batch = 1

    def __init__(self, name: str, *, threads: int) -> None:
        try:
            import torch
            from torchvision.models import detection
        except ImportError as error:
            raise MissingDependencyError(error.name or "torchvision", "the comparison", "train") from None
        self.name, self.threads = TORCHVISION[name], threads
        self._torch = torch
        torch.manual_seed(0)
        self._model = getattr(detection, TORCHVISION[name])(weights=None, weights_backbone=None).eval()
        self._post = _Timed()
        owner = getattr(self._model, "roi_heads", self._model)
        owner.postprocess_detections = self._post.around(owner.postprocess_detections)

    def call(self, paths: Sequence[Path]) -> Sample:
        """Look at one file: Pillow's decoder, to floats from 0 to 1, the model with its own resizing."""
        from PIL import Image
        from torchvision.transforms.functional import to_tensor

        torch = self._torch
        with torch_threads(self.threads), torch.inference_mode():
            started = time.perf_counter()
            with Image.open(paths[0]) as file:
                image = to_tensor(file.convert("RGB"))
            decoded = time.perf_counter()
            self._post.seconds = 0.0
            self._model([image])
            ended = time.perf_counter()
        post = self._post.seconds
        return Sample(1, ended - started, decoded - started, ended - decoded - post, post)


class _Timed:
    """Seconds spent in a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed
