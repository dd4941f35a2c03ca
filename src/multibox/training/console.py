"""What a run shows while it goes: a line for each epoch, and on a terminal a live display."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multibox.training.progress import Callback, EpochRow, StepRecord

__all__ = ["COLUMNS", "ConsoleLines", "LiveDisplay", "Table", "make_console", "peak_memory"]

COLUMNS = (
    "epoch",
    "lr",
    "loss",
    "class_loss",
    "box_loss",
    "positives_per_picture",
    "AP",
    "AP50",
    "AP75",
    "images_per_second",
    "waiting_share",
    "train_seconds",
    "val_seconds",
    "skipped",
)
SMOOTHING = 0.95
TENTHS = 10
LONG_SILENCE = 20.0  # seconds


def peak_memory() -> float:
    """The most bytes of memory that this process has held so far; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def epoch_line(row: EpochRow, epochs: int) -> str:
    """One epoch in one line; epoch 0 is the start, which has learnt nothing here."""
    score = "" if row.get("AP50") is None else f"  AP50 {row['AP50']:.4f}  AP {row['AP']:.4f}"
    if row.get("loss") is None:
        return f"epoch {row['epoch']}/{epochs}  the start, before the first step{score}"
    losses = f"loss {row['loss']:.3f} (class {row['class_loss']:.3f}, box {row['box_loss']:.3f})"
    speed = f"{row['images_per_second']:.1f} images/s, {row['waiting_share']:.0%} waiting for data"
    return f"epoch {row['epoch']}/{epochs}  {losses}{score}  {speed}"


class ConsoleLines(Callback):
    """Progress on standard error, for logs and pipes: about a line for each tenth of the run.

    Of many epochs, most have no line; long epochs have lines within.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._tenth = 0
        self._began = False
        self._said_at = time.monotonic()

    def on_step(self, record: StepRecord) -> None:
        """A line where a tenth of the run ends within an epoch."""
        done = record.epoch * record.steps + record.step
        if not self._began:
            self._began, self._tenth = True, 10 * (done - 1) // (self.epochs * record.steps)
        tenth = 10 * done // (self.epochs * record.steps)
        recent = time.monotonic() - self._said_at < LONG_SILENCE
        if recent or record.step == record.steps or tenth == self._tenth:
            return
        self._tenth = tenth
        speed = record.pictures / max(1e-9, record.seconds)
        loss = record.classification + record.localization
        where = f"epoch {record.epoch + 1}/{self.epochs}, step {record.step}/{record.steps}"
        self._say(f"{where}  loss {loss:.3f}  {speed:.1f} images/s")

    def on_epoch(self, row: EpochRow) -> None:
        """Its line; of more than twenty epochs, that of the first and of each that ends a tenth."""
        tenth = TENTHS * row["epoch"] // self.epochs
        if self.epochs <= 2 * TENTHS or row["epoch"] < 2 or tenth > self._tenth:
            self._say(epoch_line(row, self.epochs))
        self._tenth = max(tenth, self._tenth)

    def on_note(self, text: str) -> None:
        """As it is."""
        self._say(text)

    def _say(self, text: str) -> None:
        self._said_at = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class LiveDisplay(Callback):
    """A bar with losses, speed, waiting share, memory and time left, above it the lines of finished epochs."""

    def __init__(self, epochs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.epochs = epochs
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: Any = None
        self._smooth: list[float] | None = None

    def on_step(self, record: StepRecord) -> None:
        """Move the bar."""
        done = record.epoch * record.steps + record.step
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=self.epochs * record.steps, completed=done - 1, state="")
        new = [record.classification, record.localization, record.waited, record.seconds, record.pictures]
        old = self._smooth or new
        self._smooth = [SMOOTHING * a + (1 - SMOOTHING) * b for a, b in zip(old, new, strict=True)]
        classes, boxes, waited, seconds, pictures = self._smooth
        state = (
            f"loss {classes + boxes:.3f} (class {classes:.3f}, box {boxes:.3f})  {pictures / seconds:.1f} images/s  "
            f"{waited / seconds:.0%} waiting  lr {record.learning_rate:.2g}  {peak_memory() / 1e9:.1f} GB"
        )
        self._progress.update(
            self._task, completed=done, description=f"epoch {record.epoch + 1}/{self.epochs}", state=state
        )

    def on_epoch(self, row: EpochRow) -> None:
        """Its line, above the bar."""
        self._console.print(epoch_line(row, self.epochs), highlight=False, markup=False)

    def on_note(self, text: str) -> None:
        """Above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def on_end(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


def make_console(epochs: int) -> ConsoleLines | LiveDisplay:
    """The live display on a terminal with rich installed, lines elsewhere."""
    if sys.stderr.isatty():
        try:
            return LiveDisplay(epochs)
        except ImportError:
            pass
    return ConsoleLines(epochs)


class Table(Callback):
    """`results.csv`: a row for each epoch, complete whenever the run stops."""

    def __init__(self, path: Path, history: Sequence[EpochRow] = ()) -> None:
        self.path = path
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(self._cells(row) for row in history)

    @staticmethod
    def _cells(row: EpochRow) -> list[Any]:
        return [row.get(name, "") if row.get(name) is not None else "" for name in COLUMNS]

    def on_epoch(self, row: EpochRow) -> None:
        """Add its row."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(self._cells(row))
