"""Many pictures, one after the other: drawn, prepared, looked at and told in order, with work going on ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, ImageError, ModelFileError
from multibox.inference.engines.interface import Engine
from multibox.inference.options import StreamOptions
from multibox.inference.picture import Picture
from multibox.spec.detections import Detections
from multibox.spec.options import PictureOptions
from multibox.spec.pipeline import Pipeline, Prepared

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from multibox.inference.tiling import Found, Tile

__all__ = ["Network", "Stream"]

Outcome = Detections | ImageError

MOST_WORKERS = 8  # threads of Python: with more, they wait for one another rather than compute
# Pictures or tiles, after which a network for each worker has earned the time to open it. Where twice as many are
# expected, it is opened at once.
CONCURRENT_FROM = 16


@dataclass(frozen=True)
class Network:
    """An opened model: the engine that runs it, and what stands before and behind the engine.

    Args:
        engine: runs the network.
        pipeline: prepares pictures and finishes predictions.
        source: the model file, for messages.
        concurrent_engines: by number of workers, the engines to run in several threads at once, once they were needed.
    """

    engine: Engine
    pipeline: Pipeline
    source: str
    concurrent_engines: dict[int, Engine | None] = field(default_factory=dict)

    def concurrent(self, workers: int) -> Engine | None:
        """The engine to run in several threads at once, opened when first asked for; None where there is none."""
        if workers not in self.concurrent_engines:
            self.concurrent_engines[workers] = self.engine.concurrent(workers)
        return self.concurrent_engines[workers]

    def finish(
        self, offsets: NDArray[np.float32], logits: NDArray[np.float32], prepared: Prepared, picture: Picture
    ) -> Detections:
        """The detections of a picture.

        Raises:
            ModelFileError: the network's numbers make no sense.
        """
        try:
            return self.pipeline.finish(
                offsets, logits, prepared, picture.options, path=picture.shown, source=picture.source
            )
        except ContractError as error:
            reason = f"it gives nonsense on {picture.shown or 'a picture'} ({error})"
            raise ModelFileError(self.source, reason, "get the file again, or train it anew") from None


class Stream:
    """Outcomes of pictures, in order.

    Args:
        network: the opened model.
        options: how the stream works.
        workers: threads that work ahead.
        expected: pictures, 0 where that is not known.
        keep_going: an unreadable picture is an outcome, not the end.
    """

    def __init__(
        self, network: Network, options: StreamOptions, *, workers: int, expected: int, keep_going: bool
    ) -> None:
        self._network, self._options = network, options
        self._workers, self._expected, self._keep_going = workers, expected, keep_going

    def outcomes(self, pictures: Iterator[Any], options: PictureOptions) -> Iterator[Outcome]:
        """One outcome for each picture; `options` hold for those that have none of their own."""
        queue = (Picture(picture, options) for picture in pictures)
        if self._options.tile is not None:
            for picture in queue:
                yield from self._tiled(picture, self._options.tile)
            return
        chunks = iter(lambda: list(islice(queue, self._options.batch)), [])
        # The first alone, here: who asks for one picture pays for no thread, and who asks for many sees it early.
        for chunk in islice(chunks, None if self._workers == 1 else 1):
            yield from self._found(self._prepared(chunk), self._network.engine)
        if self._workers > 1:
            yield from self._found_ahead(chunks)

    def _prepared(self, chunk: list[Picture]) -> list[Picture]:
        for picture in chunk:
            picture.prepare(self._network.pipeline, keep_going=self._keep_going)
        return chunk

    def _found(self, chunk: list[Picture], engine: Engine) -> Iterator[Outcome]:
        tensors = [picture.prepared.tensor for picture in chunk if picture.prepared is not None]
        if tensors:
            offsets, logits = engine.run(tensors[0][None] if len(tensors) == 1 else np.stack(tensors))
        row = 0
        for picture in chunk:
            if picture.prepared is not None:
                yield self._network.finish(offsets[row], logits[row], picture.prepared, picture)
                row += 1
            elif picture.error is not None:
                yield picture.error

    def _found_ahead(self, chunks: Iterator[list[Picture]]) -> Iterator[Outcome]:
        """`_found` of all chunks, by threads.

        At first they only read and prepare, while the network runs here with all its threads. Once there are pictures
        enough, each runs a network of its own on a share of the threads: more pictures a second, none of them sooner.
        """
        from multibox.inference.ahead import ahead

        drawn = 0
        opening: Future[Engine | None] | None = None

        def prepare(chunk: list[Picture]) -> Iterator[Outcome]:
            return self._found(self._prepared(chunk), self._network.engine)  # runs in the caller's thread

        def finish(chunk: list[Picture], engine: Engine) -> Iterator[Outcome]:
            return _replayed(self._found(self._prepared(chunk), engine))

        def start(chunk: list[Picture]) -> Future[Iterator[Outcome]]:
            nonlocal drawn, opening
            self._prepared([picture for picture in chunk if not picture.ahead])
            drawn += len(chunk)
            if opening is None and max(drawn, self._expected // 2) >= CONCURRENT_FROM:
                opening = pool.submit(self._network.concurrent, self._workers)
            if opening is not None and opening.done():
                opening.result()  # its error, if it ended with one
            engine = self._network.concurrent_engines.get(self._workers)
            return pool.submit(prepare, chunk) if engine is None else pool.submit(finish, chunk, engine)

        with _threads(self._workers) as pool:
            for outcomes in ahead(chunks, start, window=2 * self._workers):
                yield from outcomes

    def _tiled(self, picture: Picture, side: int) -> Iterator[Outcome]:
        from multibox.inference.tiling import merged, tiles_of

        rgb = picture.pixels(keep_going=self._keep_going)
        if rgb is None:
            if picture.error is not None:
                yield picture.error
            return
        size_hw = (rgb.shape[0], rgb.shape[1])
        tiles = tiles_of(size_hw, side=side, overlap=self._options.tile_overlap)
        found = list(self._found_in_tiles(rgb, tiles, picture))
        card = self._network.pipeline.card
        boxes_xyxy, scores, labels = merged(found, size_hw, picture.options.applied_to(card.postprocess))
        yield Detections(boxes_xyxy, labels, scores, card.class_map, size_hw, path=picture.shown, source=picture.source)

    def _found_in_tiles(self, rgb: NDArray[np.uint8], tiles: list[Tile], picture: Picture) -> Iterator[Found]:
        from multibox.inference.ahead import ahead
        from multibox.inference.tiling import Found

        network = self._network

        def find(tile: Tile, engine: Engine) -> Found:
            prepared = network.pipeline.prepare(rgb[tile.y1 : tile.y2, tile.x1 : tile.x2])
            offsets, logits = engine.run(prepared.tensor[None])
            found = network.finish(offsets[0], logits[0], prepared, picture)
            corner = np.array([tile.x1, tile.y1, tile.x1, tile.y1], dtype=np.float32)
            assert found.scores is not None
            return Found(tile, found.boxes_xyxy + corner, found.scores, found.labels)

        many = self._workers > 1 and len(tiles) >= CONCURRENT_FROM
        twin = network.concurrent(self._workers) if many else None
        if twin is None:
            yield from (find(tile, network.engine) for tile in tiles)
            return
        engine = twin
        with _threads(self._workers) as pool:
            yield from ahead(iter(tiles), lambda tile: pool.submit(find, tile, engine), window=2 * self._workers)


def _replayed(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Take everything now and give it later: the results, and the error that ended them."""
    taken: list[Outcome] = []
    failure: Exception | None = None
    try:
        for outcome in outcomes:
            taken.append(outcome)
    except Exception as error:
        failure = error

    def give() -> Iterator[Outcome]:
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
