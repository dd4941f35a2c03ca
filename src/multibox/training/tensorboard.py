"""TensorBoard as a callback; others are written alike (docs/training.md)."""

from __future__ import annotations

from pathlib import Path

from multibox.errors import MissingDependencyError, MultiboxError, first_line
from multibox.training.progress import Callback, EpochRow, StepRecord, is_number

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Event files in the run folder; nothing leaves the machine. A step counts over the whole run.

    Raises:
        MissingDependencyError: its package is not installed.
        MultiboxError: it cannot begin.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependencyError("tensorboard", "logging to tensorboard", "tensorboard") from None
        try:
            self._writer = SummaryWriter(str(folder / "tensorboard"))
        except OSError as error:
            raise MultiboxError(
                f"tensorboard cannot begin ({first_line(error)}); free some space, or drop tensorboard=true"
            ) from error

    def on_step(self, record: StepRecord) -> None:
        """Losses, learning rate, and the share of the time spent waiting for data."""
        values = {
            "class_loss": record.classification,
            "box_loss": record.localization,
            "learning_rate": record.learning_rate,
            "waiting_share": record.waited / max(1e-9, record.seconds),
        }
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, record.epoch * record.steps + record.step)

    def on_epoch(self, row: EpochRow) -> None:
        """Every number of the row."""
        for name, value in row.items():
            if name != "epoch" and is_number(value):
                self._writer.add_scalar(f"epoch/{name}", value, row["epoch"])

    def on_end(self) -> None:
        """Write what is left."""
        self._writer.close()
