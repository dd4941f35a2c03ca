"""From pictures to detections, with any engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multibox.catalogue import DEFAULT_MODEL, resolve_model
from multibox.cpus import usable_cpus
from multibox.errors import ContractError, ImageError, ModelFileError, OptionError, did_you_mean
from multibox.inference.engines.choice import ENGINE_VARIABLE, asked_engine
from multibox.inference.engines.interface import Engine
from multibox.inference.engines.opening import open_engine
from multibox.inference.engines.table import suffixes_of
from multibox.inference.options import DISPLAY_THRESHOLD, Options
from multibox.inference.picture import Deferred, Picture
from multibox.pictures.read import read_picture
from multibox.spec.card import ModelCard
from multibox.spec.detections import Detections
from multibox.spec.postprocess import postprocess_np

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from multibox.inference.tiling import Found, Tile
    from multibox.spec.postprocess import PostprocessSpec
    from multibox.spec.preprocess import Geometry

__all__ = ["DISPLAY_THRESHOLD", "Deferred", "Detector", "Options", "load"]

MOST_WORKERS = 8  # threads of Python: with more, they wait for one another rather than compute
# Pictures or tiles, after which a network for each worker has earned the time to open it. Where twice as many are
# expected, it is opened at once.
CONCURRENT_FROM = 16


@dataclass(frozen=True)
class _Request:
    """What one stream was asked for, resolved against the model."""

    spec: PostprocessSpec
    classes: tuple[int, ...] | None
    batch: int
    workers: int
    tile: int | None
    tile_overlap: float
    expected: int  # pictures, 0 where that is not known
    keep_going: bool  # an unreadable picture is an outcome, not the end


class Detector:
    """A model file, ready to find objects in pictures.

    >>> detector = Detector("ssdlite300-coco")
    >>> detections = detector("cat.jpg")
    >>> detections.save("cat-boxes.jpg")

    Args:
        model: a shipped model's name (see `multibox list`) or a `.onnx`, `.safetensors`, OpenVINO `.xml` or `.tflite`
            file.
        engine: "auto" or a name from `multibox.inference.engines.table` ("onnxruntime", "openvino", "torch" …). "auto"
            is what the environment variable MULTIBOX_ENGINE names; without it, the engine that `multibox benchmark`
            found to be the fastest for this file on this machine; without that, the first that opens the file. For a
            shipped model "torch" takes its `.safetensors` file.
        device: "cpu", "cuda", "cuda:1" …
        threads: processors to use; as many as this process may (its container's quota included) when left out.

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
    ) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise OptionError(f"threads must be a whole number from 1, got {threads!r}")
        asked = asked_engine(engine)
        if asked != engine and Path(model).suffix.lower() in set(suffixes_of("auto")) - set(suffixes_of(asked)):
            reason = f"engine {asked!r} does not open it"
            remedy = f"{ENGINE_VARIABLE}={asked} asks for that one; unset it, or give another engine="
            raise ModelFileError(str(model), reason, remedy)
        self.path = resolve_model(model, suffixes=suffixes_of(asked))
        self.engine = open_engine(self.path, engine=asked, device=device, threads=threads)
        self._threads = threads
        self._twins: dict[int, Engine | None] = {}
        self._anchors = self.card.anchors_cxcywh()

    @property
    def card(self) -> ModelCard:
        """What the model file says about itself."""
        return self.engine.card

    def __repr__(self) -> str:
        return f"Detector({self.card.name!r}, engine={self.engine.name!r}, device={self.engine.device!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was opened with: a worker process opens its own session on the same file."""
        return _reopen, (self.path, self.engine.name, self.engine.device, self._threads)

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
            pictures: an iterable of what `__call__` takes. A result refers to the array or bytes it came from, which
                `plot` draws on; `dataclasses.replace(result, source=None)` lets go of them.
            on_error: called with the `ImageError` of a picture that cannot be read, in its turn; the stream goes on
                with the next. Without it the error ends the stream.
            options: see `Options`, whose fields they are.

        Raises:
            OptionError: one picture in place of several, or an option that is unknown or out of range; at once.
        """
        if isinstance(pictures, str | bytes | os.PathLike | np.ndarray) or hasattr(pictures, "mode"):
            raise OptionError("several pictures here; for one call the detector itself, or give a list: [picture]")
        return self._begin(pictures, options, on_error)

    def _begin(
        self, pictures: Iterable[Any], options: dict[str, Any], on_error: Callable[[ImageError], None] | None
    ) -> Generator[Detections, None, None]:
        for key in options:
            if key not in Options.__dataclass_fields__:
                raise OptionError(f"unknown option {key!r}; {did_you_mean(key, Options.__dataclass_fields__)}")
        chosen = Options(**options)
        busy = self.engine.threads if self.engine.device == "cpu" else usable_cpus()
        request = _Request(
            chosen.applied_to(self.card.postprocess),
            chosen.selected(self.card.class_map),
            chosen.batch,
            chosen.workers or min(busy, MOST_WORKERS),
            chosen.tile,
            chosen.tile_overlap,
            length_hint(pictures),
            on_error is not None,
        )
        return self._stream(iter(pictures), request, on_error)

    def _stream(
        self, pictures: Iterator[Any], request: _Request, on_error: Callable[[ImageError], None] | None
    ) -> Generator[Detections, None, None]:
        for outcome in self._outcomes(map(Picture, pictures), request):
            if isinstance(outcome, Detections):
                yield outcome
            elif on_error is not None:
                on_error(outcome)

    def _outcomes(self, pictures: Iterator[Picture], request: _Request) -> Iterator[Detections | ImageError]:
        if request.tile is not None:
            for picture in pictures:
                yield from self._tiled(picture, request, request.tile)
            return
        chunks = iter(lambda: list(islice(pictures, request.batch)), [])
        # The first alone, here: who asks for one picture pays for no thread, and who asks for many sees it early.
        for chunk in islice(chunks, None if request.workers == 1 else 1):
            yield from self._found(self._prepared(chunk, request), request, self.engine)
        if request.workers > 1:
            yield from self._found_ahead(chunks, request)

    def _prepared(self, chunk: list[Picture], request: _Request) -> list[Picture]:
        for picture in chunk:
            picture.prepare(self.card, keep_going=request.keep_going)
        return chunk

    def _found(self, chunk: list[Picture], request: _Request, engine: Engine) -> Iterator[Detections | ImageError]:
        tensors = [picture.tensor for picture in chunk if picture.tensor is not None]
        if tensors:
            offsets, logits = engine.run(tensors[0][None] if len(tensors) == 1 else np.stack(tensors))
        row = 0
        for picture in chunk:
            if picture.geometry is None:
                if picture.error is not None:
                    yield picture.error
                continue
            unit_xyxy, scores, labels = self._postprocessed(offsets[row], logits[row], picture, request)
            row += 1
            yield self._detections(picture, picture.geometry, picture.geometry.to_picture(unit_xyxy), labels, scores)

    def _found_ahead(self, chunks: Iterator[list[Picture]], request: _Request) -> Iterator[Detections | ImageError]:
        """`_found` of all chunks, by threads.

        At first they only read and prepare, while the network runs here with all its threads. Once there are pictures
        enough, each runs a network of its own on a share of the threads: more pictures a second, none of them sooner.
        """
        from multibox.inference.ahead import ahead

        drawn = 0
        opening: Future[Engine | None] | None = None

        def prepare(chunk: list[Picture]) -> Iterator[Detections | ImageError]:
            return self._found(self._prepared(chunk, request), request, self.engine)  # runs in the caller's thread

        def finish(chunk: list[Picture], engine: Engine) -> Iterator[Detections | ImageError]:
            return _replayed(self._found(self._prepared(chunk, request), request, engine))

        def start(chunk: list[Picture]) -> Future[Iterator[Detections | ImageError]]:
            nonlocal drawn, opening
            self._prepared([picture for picture in chunk if not picture.ahead], request)
            drawn += len(chunk)
            if opening is None and max(drawn, request.expected // 2) >= CONCURRENT_FROM:
                opening = pool.submit(self._twin, request.workers)
            if opening is not None and opening.done():
                opening.result()  # its error, if it ended with one
            engine = self._twins.get(request.workers)
            return pool.submit(prepare, chunk) if engine is None else pool.submit(finish, chunk, engine)

        with _threads(request.workers) as pool:
            for outcomes in ahead(chunks, start, window=2 * request.workers):
                yield from outcomes

    def _twin(self, workers: int) -> Engine | None:
        """The engine to run in several threads at once, opened when it is first needed; None where there is none."""
        if workers not in self._twins:
            self._twins[workers] = self.engine.concurrent(workers)
        return self._twins[workers]

    def _tiled(self, picture: Picture, request: _Request, side: int) -> Iterator[Detections | ImageError]:
        from multibox.inference.tiling import merged, tiles_of
        from multibox.spec.preprocess import Geometry

        rgb = picture.pixels(keep_going=request.keep_going)
        if rgb is None:
            if picture.error is not None:
                yield picture.error
            return
        size_hw = (rgb.shape[0], rgb.shape[1])
        tiles = tiles_of(size_hw, side=side, overlap=request.tile_overlap)
        found = list(self._found_in_tiles(rgb, tiles, picture, request))
        boxes_xyxy, scores, labels = merged(found, size_hw, request.spec)
        yield self._detections(picture, Geometry(size_hw, self.card.preprocess.size_hw), boxes_xyxy, labels, scores)

    def _found_in_tiles(
        self, rgb: NDArray[np.uint8], tiles: list[Tile], picture: Picture, request: _Request
    ) -> Iterator[Found]:
        from multibox.inference.ahead import ahead
        from multibox.inference.tiling import Found

        def find(tile: Tile, engine: Engine) -> Found:
            tensor, geometry = self.card.preprocess(rgb[tile.y1 : tile.y2, tile.x1 : tile.x2])
            offsets, logits = engine.run(tensor[None])
            unit_xyxy, scores, labels = self._postprocessed(offsets[0], logits[0], picture, request)
            corner = np.array([tile.x1, tile.y1, tile.x1, tile.y1], dtype=np.float32)
            return Found(tile, geometry.to_picture(unit_xyxy) + corner, scores, labels)

        many = request.workers > 1 and len(tiles) >= CONCURRENT_FROM
        twin = self._twin(request.workers) if many else None
        if twin is None:
            yield from (find(tile, self.engine) for tile in tiles)
            return
        engine = twin
        with _threads(request.workers) as pool:
            yield from ahead(iter(tiles), lambda tile: pool.submit(find, tile, engine), window=2 * request.workers)

    def _postprocessed(
        self, offsets: NDArray[np.float32], logits: NDArray[np.float32], picture: Picture, request: _Request
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        variances, spec, classes = self.card.variances, request.spec, request.classes
        try:
            return postprocess_np(offsets, logits, self._anchors, variances=variances, spec=spec, classes=classes)
        except ContractError as error:
            reason = f"it gives nonsense on {picture.shown or 'a picture'} ({error})"
            raise ModelFileError(str(self.path), reason, "get the file again, or train it anew") from None

    def _detections(
        self,
        picture: Picture,
        geometry: Geometry,
        boxes_xyxy: NDArray[np.float32],
        labels: NDArray[np.int64],
        scores: NDArray[np.float32],
    ) -> Detections:
        return Detections(
            boxes_xyxy,
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


def _replayed(outcomes: Iterator[Detections | ImageError]) -> Iterator[Detections | ImageError]:
    """Take everything now and give it later: the results, and the error that ended them."""
    taken: list[Detections | ImageError] = []
    failure: Exception | None = None
    try:
        for outcome in outcomes:
            taken.append(outcome)
    except Exception as error:
        failure = error

    def give() -> Iterator[Detections | ImageError]:
        yield from taken
        if failure is not None:
            raise failure

    return give()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when this is left, in whatever way: what they had not begun is not begun any more."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(count, thread_name_prefix="multibox")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _reopen(path: Path, engine: str, device: str, threads: int | None) -> Detector:
    return Detector(path, engine=engine, device=device, threads=threads)


def load(
    name_or_path: str | Path = DEFAULT_MODEL, *, engine: str = "auto", device: str = "cpu", threads: int | None = None
) -> Detector:
    """Open a model by name or path; the same as `Detector(...)`."""
    return Detector(name_or_path, engine=engine, device=device, threads=threads)
