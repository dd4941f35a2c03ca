"""What is timed, and what is said of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multibox.benchmark.contenders import TORCHVISION, Contender, Folder, Ours, Torchvision
from multibox.benchmark.fresh import fresh_process
from multibox.benchmark.machine import hardware_line
from multibox.benchmark.numbers import comparison, counterparts, percentiles_ms, row
from multibox.benchmark.turns import FOLDER_PICTURES, LEAST_ROUNDS, Timed, take_turns, warmed_up
from multibox.catalogue import CATALOGUE, DEFAULT_MODEL
from multibox.cpus import usable_cpus
from multibox.data.sampling import evenly
from multibox.errors import ContractError, ImageError, MultiboxError, OptionError, did_you_mean
from multibox.inference import Detector
from multibox.inference.engines.choice import fastest_engine, note_timings
from multibox.inference.engines.table import ENGINES, engine_row, installed
from multibox.pictures.read import read_picture
from multibox.pictures.sources import expand_sources
from multibox.spec.options import DISPLAY_THRESHOLD

__all__ = ["BenchmarkRequest", "benchmark"]

PICTURES = 64  # at most, spread over the data
ALL_OF_THEM = "torchvision"

Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to time; checked on construction.

    Args:
        models: shipped models' names or model files.
        engines: names from `multibox.inference.engines.table`; those that are installed and open a model when empty.
        data: a folder of pictures, a data set, or None for a made-up picture.
        batches: pictures given to the network at once.
        threads: to compute with; as many as this process may use when empty.
        conf: scores above it are post-processed.
        against: detectors of torchvision to time beside, keys of `TORCHVISION`; "torchvision" stands for all.
        seconds: for each contender, about.
        remember: keep which engine was the fastest, for engine=auto.

    Raises:
        OptionError: a value that is unknown or out of range.
    """

    models: tuple[str, ...] = (DEFAULT_MODEL,)
    engines: tuple[str, ...] = ()
    data: str | None = None
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()
    conf: float = DISPLAY_THRESHOLD
    against: tuple[str, ...] = ()
    seconds: float = 5.0
    remember: bool = True

    def __post_init__(self) -> None:
        if not self.models:
            raise OptionError("models: name at least one")
        for engine in self.engines:
            engine_row(engine)  # an unknown one is refused before anything is timed
        for name in ("batches", "threads"):
            if any(value < 1 for value in getattr(self, name)):
                raise OptionError(f"{name} must be whole numbers from 1, got {getattr(self, name)}")
        if not self.batches:
            raise OptionError("batches: name at least one number of pictures")
        if not 0 <= self.conf < 1:
            raise OptionError(f"conf must be a number from 0 below 1, got {self.conf}")
        for name in self.against:
            if name not in (ALL_OF_THEM, *TORCHVISION):
                raise OptionError(f"against: unknown {name!r}; {did_you_mean(name, (ALL_OF_THEM, *TORCHVISION))}")
        if not self.seconds > 0:
            raise OptionError(f"seconds must be above 0, got {self.seconds}")


def benchmark(request: BenchmarkRequest, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Time a model; the result is plain values, which `multibox.benchmark.markdown` makes a page of.

    All contenders are open at the same time and take turns of a quarter of a second, or of one call that takes longer,
    on the same files, which have been read before. Ratios are medians over rounds, in each of which both had a turn.

    Raises:
        ModelFileError, MissingDependencyError: the model cannot be opened with an engine that was named.
        ContractError: no picture in the data can be read.
    """
    notes: list[str] = []
    with _files(request.data, notes) as paths:
        ours = _ours(request, notes, say)
        theirs: list[Contender] = []
        for name in TORCHVISION if ALL_OF_THEM in request.against else request.against:
            say(f"opening torchvision's {TORCHVISION[name]}")
            theirs += [Torchvision(name, threads=threads) for threads in sorted({o.threads for o in ours})]
        folders = [Folder(one, pictures=FOLDER_PICTURES) for one in ours]
        contenders: list[Contender] = [*ours, *folders, *theirs]
        timed = [Timed(contender) for contender in contenders]
        say(f"warming up {len(timed)} contenders")
        timed = warmed_up(timed, paths, notes)
        seconds = request.seconds * len(timed)
        say(f"timing, about {max(seconds, LEAST_ROUNDS * sum(entry.turn_s for entry in timed)):.0f} s")
        take_turns(timed, paths, seconds=seconds)
        say("starting fresh processes")
        starts = {
            (one.model, one.name, one.threads): fresh_process(
                str(one.detector.path), engine=one.name, threads=one.threads, picture=paths[0]
            )
            for one in ours
        }
    alive = {id(entry.contender): entry for entry in timed}
    rows = [
        row(one, alive[id(one)], alive.get(id(folder)), starts[one.model, one.name, one.threads])
        for one, folder in zip(ours, folders, strict=True)
        if id(one) in alive
    ]
    if not rows:
        raise ContractError("nothing could be timed: " + "; ".join(notes))
    return {
        "hardware": hardware_line(),
        "models": {
            one.model: {"name": one.detector.card.name, "input_hw": list(one.detector.card.preprocess.size_hw)}
            for one in ours
        },
        "data": request.data,
        "pictures": len(paths),
        "conf": request.conf,
        "rows": rows,
        "against": [
            comparison(alive[id(one)], counterparts(alive, ours, one.threads)) for one in theirs if id(one) in alive
        ],
        "auto": list(_remembered(request, ours, alive)) if request.remember else [],
        "notes": notes,
    }


# ------------------------------------------------------------------------------------------------ what is timed


def _ours(request: BenchmarkRequest, notes: list[str], say: Say) -> list[Ours]:
    found = []
    for model in request.models:
        fitting = _fitting(model)
        asked = [name for name in request.engines if name in fitting] or request.engines
        unasked = [name for name in fitting if engine_row(name).automatic]
        names = tuple(asked or [name for name in unasked if installed(name)] or unasked[:1] or ["onnxruntime"])
        opened = []
        for engine in names:
            for threads in request.threads or (usable_cpus(),):
                say(f"opening {model} with {engine}, {threads} threads")
                try:
                    detector = Detector(model, engine=engine, threads=threads)
                except MultiboxError as error:
                    if request.engines or len(names) == 1:
                        raise
                    notes.append(f"{model}, {engine} left out: {error}")
                    continue
                fixed = detector.engine.batch
                if fixed is not None and request.batches != (fixed,):
                    notes.append(f"{model} takes {fixed} at once: timed on as many, not filled up with copies")
                batches = request.batches if fixed is None else (fixed,)
                opened += [Ours(model, detector, batch=batch, conf=request.conf) for batch in batches]
        if not opened:
            raise OptionError(f"no engine that opens {model} works here: {'; '.join(notes)}")
        found += opened
    return found


def _fitting(model: str) -> list[str]:
    """Engines that open such a file; none for one that no engine opens, whose error says what is wrong."""
    suffix = Path(model).suffix.lower()
    return [
        row.name
        for row in ENGINES.values()
        if suffix in row.suffixes or (model in CATALOGUE and CATALOGUE[model].path(row.suffixes[0]).is_file())
    ]


@contextmanager
def _files(data: str | None, notes: list[str]) -> Iterator[list[Path]]:
    """Picture files that can be read; they have been, so they come from memory from now on."""
    if data is None:
        notes.append("a made-up picture of 640 × 480 in which there is nothing to find; give --data for real ones")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.jpg"
            _made_up_picture().save(path, quality=90)
            yield [path]
        return
    readable = []
    paths = _paths(data)
    for path in [paths[i] for i in evenly(len(paths), PICTURES)]:
        try:
            read_picture(path)
            readable.append(path)
        except ImageError as error:
            notes.append(f"left out: {error}")
    if not readable:
        raise ContractError(f"{data}: no picture that can be read; give a folder of pictures or a data set")
    yield readable


def _paths(data: str) -> list[Path]:
    """The pictures of a data set, or all in a folder."""
    from multibox.data import read_dataset

    try:
        dataset = read_dataset(data)
        return [Path(dataset.picture_path(index)) for index in range(len(dataset))]
    except MultiboxError:
        return [Path(source.location) for source in expand_sources([data]).sources if source.kind == "file"]


def _made_up_picture() -> Image.Image:
    """Smooth colours with some noise, which compress about as a photograph does."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse).astype(np.int16) + rng.normal(0, 6, (480, 640, 3)).astype(np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _remembered(request: BenchmarkRequest, ours: list[Ours], alive: dict[int, Timed]) -> Iterator[dict[str, Any]]:
    """Note the engines that "auto" could choose for each file, where there are two to choose from."""
    wanted = [
        one
        for one in ours
        if id(one) in alive and one.batch == (one.detector.engine.batch or 1) and one.threads == usable_cpus()
    ]
    for model in request.models:
        mine = [one for one in wanted if one.model == model]
        path = mine[0].detector.path if mine else None
        timings = {
            one.name: percentiles_ms([s.network for s in alive[id(one)].samples])["p50"]
            for one in mine
            if one.detector.path == path
        }
        if path is None or len(timings) < 2:
            continue
        file = note_timings(path, timings)
        candidates = tuple(name for name in _fitting(str(path)) if engine_row(name).automatic)
        engine = fastest_engine(path, candidates) if file else None
        yield {"model": model, "file": str(file) if file else None, "engine": engine}
