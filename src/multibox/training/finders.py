"""Short measurements before a run: which batch fits and is fast, and which learning rates work."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from multibox.errors import OptionError, did_you_mean
from multibox.training.config import TrainConfig
from multibox.training.console import peak_memory
from multibox.training.distributed import processes
from multibox.training.failures import TrainingError
from multibox.training.loop import Trainer
from multibox.training.optim import set_training
from multibox.training.preparation import prepared
from multibox.training.workers import received

__all__ = ["BatchRow", "RateRow", "find", "find_batch", "find_rate", "free_memory"]

LARGEST_BATCH = 1024
TIMED_STEPS = 3
MEMORY_SHARE = 0.8  # of what is free; the rest is for pictures, workers and validation
RATES = (1e-5, 1.0)
SWEEP_STEPS = 60
SMOOTHING = 0.9
DIVERGED = 3.0  # times the smallest smoothed loss


@dataclass(frozen=True)
class BatchRow:
    """One batch size: images a second of whole steps, and bytes of memory at their peak (NaN where unknown)."""

    batch: int
    images_per_second: float
    peak_bytes: float


@dataclass(frozen=True)
class RateRow:
    """One learning rate of a rising sweep, with the smoothed loss there."""

    rate: float
    loss: float


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had, infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024.0 * float(text.partition("MemAvailable:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return math.inf


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return peak_memory()


def find_batch(
    make: Callable[[int], AbstractContextManager[Trainer]], *, report: Callable[[BatchRow], None], first: int = 1
) -> list[BatchRow]:
    """Run a few steps at 1, 2, 4 … pictures until memory would not suffice or more is no faster.

    Args:
        make: gives a trainer for a batch size, which is closed when its context is left.
        report: told of each row as it comes.
        first: the smallest batch, a picture for each process.
    """
    rows: list[BatchRow] = []
    batch = first
    while batch <= LARGEST_BATCH:
        with make(batch) as trainer:
            others, pictures = trainer.processes, len(trainer.pictures)
            before, free = _peak(others.device), free_memory(others.device)
            seconds = math.inf
            with suppress(TrainingError, MemoryError, torch.OutOfMemoryError):
                seconds = _timed_steps(trainer)
        # All processes decide alike, or the one that goes on waits for the others for ever.
        if others.any(math.isinf(seconds)):
            if batch > others.world:
                break
            batch *= 2  # batch normalisation refuses single pictures
            continue
        seconds = others.sum([seconds])[0] / others.world
        rows.append(BatchRow(batch, batch / seconds, _peak(others.device)))
        report(rows[-1])
        growth = max(0.0, rows[-1].peak_bytes - before)
        if others.any(2 * growth > MEMORY_SHARE * free) or batch >= pictures:
            break
        if len(rows) > 2 and rows[-1].images_per_second < 1.02 * max(r.images_per_second for r in rows[:-2]):
            break
        batch *= 2
    return rows


def _timed_steps(trainer: Trainer) -> float:
    """Seconds of a step, after one that warms up."""
    set_training(trainer.detector, freeze_norm=trainer.config.model.freeze_norm)
    trainer.batches.start(0)
    batch = next(iter(trainer.loader))
    trainer.try_step(batch)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        trainer.try_step(batch)
        trainer.update()
    if trainer.processes.device.type == "cuda":
        torch.cuda.synchronize(trainer.processes.device)
    return (time.perf_counter() - started) / TIMED_STEPS


def find_rate(trainer: Trainer) -> list[RateRow]:
    """Raise the learning rate from 1e-5 to 1 while training, until the loss runs away (Smith, 2017, section 3.3).

    Raises:
        TrainingError: a step failed before there was anything to see.
    """
    set_training(trainer.detector, freeze_norm=trainer.config.model.freeze_norm)
    rows: list[RateRow] = []
    smooth, epoch, done = 0.0, 0, 0
    while done < SWEEP_STEPS:
        trainer.batches.start(epoch)
        for batch in received(trainer.loader, workers=trainer.config.data.workers):
            rate = RATES[0] * (RATES[1] / RATES[0]) ** (done / (SWEEP_STEPS - 1))
            try:
                loss = float(trainer.try_step(batch).total.detach())
                loss = trainer.processes.sum([loss])[0] / trainer.processes.world  # all decide alike
                trainer.update(rate)
            except TrainingError as error:
                if len(rows) < SWEEP_STEPS // 3:  # the loss has said nothing yet
                    raise TrainingError(f"the sweep broke off after {done} of {SWEEP_STEPS} steps: {error}") from None
                return rows
            done += 1
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * loss
            rows.append(RateRow(rate, smooth / (1 - SMOOTHING**done)))
            if rows[-1].loss > DIVERGED * min(row.loss for row in rows) or done == SWEEP_STEPS:
                return rows
        epoch += 1
    return rows


def suggested_rate(rows: list[RateRow]) -> float:
    """A third of the rate at which the smoothed loss is least; beyond it training soon diverges."""
    return min(rows, key=lambda row: row.loss).rate / 3


def find(what: str, config: TrainConfig) -> None:
    """Measure and print; nothing is kept.

    Raises:
        OptionError: neither "batch" nor "lr".
    """
    if what not in {"batch", "lr"}:
        raise OptionError(f"find={what!r}: {did_you_mean(what, ['batch', 'lr'])}")
    with tempfile.TemporaryDirectory() as name, processes(config.run.device) as others:
        folder = Path(name)
        say = print if others.writes else _nothing
        if what == "lr":
            with prepared(config, folder, others=others) as trainer:
                rows = find_rate(trainer)
            for row in rows[:: max(1, len(rows) // 20)]:
                say(f"lr {row.rate:9.2e}  loss {row.loss:8.4f}")
            say(f"suggested: lr0={suggested_rate(rows):.2g} (with batch={config.optim.batch})")
            return

        @contextmanager
        def make(batch: int) -> Iterator[Trainer]:
            # Without the cache: it would hold what a few steps read.
            smaller = replace(config, optim=replace(config.optim, batch=batch), data=replace(config.data, cache="none"))
            quiet = replace(smaller, run=replace(smaller.run, quiet=True))
            with prepared(quiet, folder, others=others) as trainer:
                yield trainer

        def report(row: BatchRow) -> None:
            memory = f"{row.peak_bytes / 1e9:6.2f} GB"
            say(f"batch {row.batch:5}  {row.images_per_second:8.1f} images/s  {memory}", flush=True)

        found = find_batch(make, report=report, first=others.world)
        if not found:
            raise TrainingError("not even one picture fits into memory; use a smaller imgsz or model")
        best = max(found, key=lambda row: row.images_per_second)
        say(f"fastest: batch={best.batch}; largest that was tried: batch={found[-1].batch}")


def _nothing(*_: Any, **__: Any) -> None:
    """Processes other than the first say nothing."""
