"""Many pictures: the same results as one by one, in order, and nothing left behind."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multibox import Detections, Detector
from multibox.errors import ImageError, OptionError
from multibox.inference import Deferred
from multibox.inference import stream as stream_module

EXAMPLES = Path(__file__).parents[2] / "examples"
CAT, COFFEE = EXAMPLES / "chelsea.png", EXAMPLES / "coffee.png"
THREADS_NAME = "multibox"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector("ssdlite300-coco", threads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """12 small pictures, all different, in which something is found."""
    place = tmp_path_factory.mktemp("pictures")
    pictures = [Image.open(path).convert("RGB") for path in (CAT, COFFEE)]
    paths = []
    for i in range(12):
        path = place / f"{i}.jpg"
        pictures[i % 2].resize((200 + 3 * i, 150 + 2 * i)).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def expected(detector: Detector, folder: list[Path]) -> list[Detections]:
    return [detector(path, conf=0.1) for path in folder]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert not our_threads()


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREADS_NAME)]


def drain(stream: Iterable[Detections], into: list[Detections]) -> None:
    for one in stream:
        into.append(one)  # one by one, so that those before an error are there


def test_one_picture_pays_for_no_thread(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda *_: pytest.fail("a thread"))
    assert detector(CAT).names == ["cat"]
    stream = detector.stream([CAT, COFFEE])
    assert next(stream).names == ["cat"]
    stream.close()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"workers": 3}, {"batch": 5}])
@pytest.mark.parametrize("concurrent", ["from the first", "later", "never"])
def test_the_same_bit_for_bit(
    folder: list[Path],
    expected: list[Detections],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    concurrent: str,
) -> None:
    monkeypatch.setattr(stream_module, "CONCURRENT_FROM", {"from the first": 1, "later": 4, "never": 999}[concurrent])
    detector = Detector("ssdlite300-coco", threads=2)
    found = list(detector.stream(iter(folder), conf=0.1, **options))
    if "batch" in options:  # other shapes may be added up in another order
        assert [one.names for one in found] == [one.names for one in expected]
    else:
        assert found == expected
    assert [one.path for one in found] == [str(path) for path in folder]
    workers = options.get("workers", 2)
    assert set(detector._network.concurrent_engines) == ({workers} if concurrent != "never" and workers > 1 else set())


def test_every_kind_of_source(detector: Detector, folder: list[Path], expected: list[Detections]) -> None:
    def kind(i: int, path: Path) -> Any:
        made: list[Callable[[], Any]] = [
            lambda: path,
            lambda: str(path),
            path.read_bytes,
            lambda: Image.open(path),
            lambda: path.open("rb"),
            lambda: Deferred(str(path), lambda: np.array(Image.open(path)), ahead=i < 6),
        ]
        return made[i % len(made)]()

    kinds = [kind(i, path) for i, path in enumerate(folder)]
    found = detector.predict(kinds, conf=0.1)
    assert found == expected
    assert found[5].path == str(folder[5])
    for source in kinds[4::6]:
        source.close()


def test_an_array_may_be_written_over_after_it_was_drawn(detector: Detector, folder: list[Path]) -> None:
    """As cameras do that hand out one buffer again and again."""
    frames = [np.array(Image.open(path).resize((200, 150))) for path in folder]

    def camera() -> Iterator[np.ndarray]:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    assert detector.predict(camera()) == [detector(frame) for frame in frames]


@pytest.mark.slow
@pytest.mark.parametrize("bad_at", [0, 1, 10])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_unreadable_picture(
    detector: Detector, folder: list[Path], expected: list[Detections], tmp_path: Path, bad_at: int, workers: int
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    paths = [*folder[:bad_at], bad, *folder[bad_at:]]
    found: list[Detections] = []
    with pytest.raises(ImageError, match=r"bad\.jpg") as caught:
        drain(detector.stream(paths, conf=0.1, workers=workers), found)
    assert caught.value.source == str(bad)
    assert found == expected[:bad_at]

    events: list[Any] = []
    for one in detector.stream(paths, conf=0.1, workers=workers, on_error=events.append):
        events.append(one)
    assert isinstance(events.pop(bad_at), ImageError)
    assert events == expected


def test_unreadable_pictures_in_batches(detector: Detector, folder: list[Path], tmp_path: Path) -> None:
    missing = [tmp_path / f"{i}.jpg" for i in range(3)]
    errors: list[ImageError] = []
    paths = [missing[0], *folder[:4], *missing[1:], folder[4]]
    found = list(detector.stream(paths, batch=3, on_error=errors.append))
    assert [Path(one.path or "") for one in found] == folder[:5]
    assert [error.source for error in errors] == [str(path) for path in missing]
    assert list(detector.stream(missing, batch=2, on_error=errors.append)) == []
    with pytest.raises(OptionError, match="unknown option 'on_error'"):
        detector(CAT, on_error=errors.append)


class Marker(Exception):
    pass


@pytest.mark.parametrize("kind", [Marker, KeyboardInterrupt])
def test_an_error_of_the_source_comes_after_its_results(detector: Detector, folder: list[Path], kind: type) -> None:
    def pictures() -> Iterator[Path]:
        yield from folder[:6]
        raise kind

    found: list[Detections] = []
    with pytest.raises(kind):
        drain(detector.stream(pictures()), found)
    assert len(found) == 6 if kind is Marker else len(found) <= 6  # an interruption waits for nothing


@pytest.mark.parametrize("taken", [0, 1, 9])
def test_closing_ends_threads_and_source(detector: Detector, folder: list[Path], taken: int) -> None:
    ended: list[int] = []

    def pictures() -> Iterator[Path]:
        try:
            yield from folder * 9
        finally:
            ended.append(1)

    source = pictures()
    gone = weakref.ref(source)
    stream = detector.stream(source)
    del source
    for _ in range(taken):
        next(stream)
    stream.close()
    assert not our_threads()
    del stream
    assert gone() is None
    assert ended == ([1] if taken else [])


def test_an_error_of_the_consumer_ends_the_threads(detector: Detector, folder: list[Path]) -> None:
    def consume() -> None:
        for i, _ in enumerate(detector.stream(folder)):
            if i == 5:
                raise Marker

    with pytest.raises(Marker):
        consume()
    assert not our_threads()


def test_no_more_is_drawn_than_twice_the_workers(detector: Detector, folder: list[Path]) -> None:
    drawn = 0

    def pictures() -> Iterator[Path]:
        nonlocal drawn
        for path in folder:
            drawn += 1
            yield path

    for taken, _ in enumerate(detector.stream(pictures(), workers=2), 1):
        assert drawn <= taken + 2 * 2
    assert drawn == len(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_are_read_in_their_turn(detector: Detector, folder: list[Path], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    readers: list[str] = []

    def write() -> None:
        pipe.write_bytes(CAT.read_bytes())

    original = stream_module.Picture.pixels

    def pixels(self: Any, **options: Any) -> Any:
        if str(self.source) == str(pipe):
            readers.append(threading.current_thread().name)
        return original(self, **options)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module.Picture, "pixels", pixels)
        found = detector.predict([folder[0], folder[1], pipe])
    writer.join()
    assert found[2] == detector(CAT)
    assert readers == [threading.current_thread().name]


def test_a_model_file_that_was_replaced_meanwhile_is_not_mixed_in(folder: list[Path], tmp_path: Path) -> None:
    import shutil

    from multibox.catalogue import CATALOGUE

    copy = tmp_path / "model.onnx"
    shutil.copy(CATALOGUE["ssdlite300-coco"].path(".onnx"), copy)
    detector = Detector(copy, threads=2)
    data = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(data + b"\x00")
    assert detector.engine.concurrent(2) is None
    copy.unlink()
    assert detector.engine.concurrent(2) is None
    assert len(detector.predict(folder)) == len(folder)


def test_threads(folder: list[Path]) -> None:
    import pickle

    one = Detector("ssdlite300-coco", threads=1)
    assert one.engine.threads == 1
    assert pickle.loads(pickle.dumps(one)).engine.threads == 1
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(OptionError, match="threads must be a whole number from 1"):
            Detector("ssdlite300-coco", threads=bad)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="workers must be a whole number from 1"):
        one.stream(folder, workers=0)
