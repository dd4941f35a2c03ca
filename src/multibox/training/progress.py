"""How far a run is, and who is told of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from multibox.errors import first_line

__all__ = ["Callback", "EpochRow", "GuardedCallback", "Progress", "StepRecord", "is_number"]

EpochRow = dict[str, Any]
"""The numbers of one epoch by the names in `console.COLUMNS`; AP and its kind are absent without a validation."""

SUMMED = ("classification", "localization", "positives", "waited", "seconds", "pictures")


@dataclass(frozen=True)
class StepRecord:
    """What one step was like.

    Args:
        epoch: from 0.
        step: the number of the batch in its epoch, from 1.
        steps: batches in an epoch.
        classification: part of the loss, of this process's pictures.
        localization: the other part.
        positives: matched default boxes.
        learning_rate: of the last update.
        waited: seconds until the batch was there.
        seconds: of the whole step, waiting included.
        pictures: of the batch, over all processes.
    """

    epoch: int
    step: int
    steps: int
    classification: float
    localization: float
    positives: int
    learning_rate: float
    waited: float
    seconds: float
    pictures: int


@dataclass
class Progress:
    """How far a run is; with the weights, all that a resumed run needs.

    Args:
        epoch: the epoch under way, from 0.
        step: its next batch.
        updates: how often the weights have moved.
        best: the best AP so far.
        best_epoch: after which epoch that was.
        since_best: validations without a better one.
        history: a row for each finished epoch.
        skipped: pictures that could not be read, with the reason.
        sums: numbers of the steps of the epoch under way, added up.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    best: float = -1.0
    best_epoch: int = -1
    since_best: int = 0
    history: list[EpochRow] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0.0))

    def add(self, record: StepRecord) -> None:
        """Add a step to the sums of its epoch."""
        for name in SUMMED:
            self.sums[name] += getattr(record, name)

    def finish_epoch(self, sums: dict[str, float], *, steps: int, processes: int, rate: float) -> EpochRow:
        """Begin the next epoch; the row of the finished one, which is not in the history yet.

        Args:
            sums: those of all processes, added up.
            steps: batches in the epoch.
            processes: how many there are.
            rate: the learning rate of the last update.
        """
        self.epoch, self.step, self.sums = self.epoch + 1, 0, dict.fromkeys(SUMMED, 0.0)
        # Each process's loss is its sum over the common divisor times their number, so their mean is the whole.
        classification, localization = (sums[name] / (steps * processes) for name in SUMMED[:2])
        seen, seconds = sums["pictures"] / processes, sums["seconds"] / processes
        return {
            "epoch": self.epoch,
            "lr": rate,
            "loss": classification + localization,
            "class_loss": classification,
            "box_loss": localization,
            "positives_per_picture": sums["positives"] / max(1.0, seen),
            "images_per_second": seen / max(1e-9, seconds),
            "waiting_share": sums["waited"] / max(1e-9, sums["seconds"]),
            "train_seconds": seconds,
            "skipped": len(self.skipped),
        }

    def validated(self, ap: float) -> bool:
        """Note the AP of the epoch that has just ended; whether it is the best so far."""
        if ap > self.best:
            self.best, self.best_epoch, self.since_best = ap, self.epoch, 0
            return True
        self.since_best += 1
        return False


class Callback:
    """Is told of a run while it goes. Override what is of interest; docs/training.md has an example."""

    def on_step(self, record: StepRecord) -> None:
        """After every step."""

    def on_epoch(self, row: EpochRow) -> None:
        """After every epoch, validated or not."""

    def on_note(self, text: str) -> None:
        """When there is something to tell the user."""

    def on_end(self) -> None:
        """After the last epoch, or when the run stops."""


class GuardedCallback(Callback):
    """A callback whose failure does not end the run: it is left out from then on, and `warn` is told."""

    def __init__(self, callback: Callback, warn: Callable[[str], None]) -> None:
        self._callback: Callback | None = callback
        self._name, self._warn = type(callback).__name__, warn

    def _tell(self, event: str, *given: Any) -> None:
        if self._callback is None:
            return
        try:
            getattr(self._callback, event)(*given)
        except Exception as error:  # what other people's code raises shares no base but Exception
            self._callback = None
            self._warn(f"{self._name} fails ({first_line(error)}); training goes on without it")

    def on_step(self, record: StepRecord) -> None:
        """Pass it on."""
        self._tell("on_step", record)

    def on_epoch(self, row: EpochRow) -> None:
        """Pass it on."""
        self._tell("on_epoch", row)

    def on_note(self, text: str) -> None:
        """Pass it on."""
        self._tell("on_note", text)

    def on_end(self) -> None:
        """Pass it on."""
        self._tell("on_end")


def is_number(value: Any) -> bool:
    """Whether a cell of a row is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
