"""Loggers of other projects; each is loaded only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multibox.errors import MissingDependencyError, MultiboxError, first_line
from multibox.training.config import TrainConfig
from multibox.training.console import COLUMNS
from multibox.training.loop import EpochRow, Observer, StepRecord, is_number

__all__ = ["make_loggers"]


def make_loggers(config: TrainConfig, folder: Path, *, warn: Callable[[str], None]) -> list[Observer]:
    """Those that were asked for. One that fails later is left out from then on, and `warn` is told.

    Raises:
        MissingDependencyError: a logger's package is not installed.
        MultiboxError: a logger cannot begin.
    """
    makers: dict[str, Callable[[], Observer]] = {
        "tensorboard": lambda: TensorBoard(folder),
        "wandb": lambda: WeightsAndBiases(config, folder),
        "mlflow": lambda: MlFlow(config, folder),
    }
    found: list[Observer] = []
    for name, make in makers.items():
        if not getattr(config.run, name):
            continue
        try:
            found.append(Guarded(make(), name, warn))
        except MultiboxError:
            raise
        except Exception as error:  # what the packages raise shares no base but Exception
            reason = first_line(error)
            raise MultiboxError(f"{name} cannot begin ({reason}); see to its settings, or drop {name}=true") from error
    return found


class Guarded:
    """A logger whose failure does not end the run it logs."""

    def __init__(self, logger: Observer, name: str, warn: Callable[[str], None]) -> None:
        self._logger: Observer | None = logger
        self._name, self._warn = name, warn

    def _tell(self, what: str, *given: Any) -> None:
        if self._logger is None:
            return
        try:
            getattr(self._logger, what)(*given)
        except Exception as error:  # see above
            self._logger = None
            self._warn(f"{self._name} fails ({first_line(error)}); training goes on without it")

    def on_step(self, record: StepRecord) -> None:
        """After every step."""
        self._tell("on_step", record)

    def on_epoch(self, row: EpochRow) -> None:
        """After every epoch."""
        self._tell("on_epoch", row)

    def on_note(self, text: str) -> None:
        """Something to tell the user."""
        self._tell("on_note", text)

    def on_end(self) -> None:
        """After the last epoch."""
        self._tell("on_end")


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependencyError(package, f"logging to {package}", package) from None


class _Numbers:
    """What all loggers do: numbers of steps and epochs by name. A step counts over the whole run."""

    def on_step(self, record: StepRecord) -> None:
        """Losses and learning rate."""
        step = record.epoch * record.steps + record.step
        values = {
            "step/class_loss": record.classification,
            "step/box_loss": record.localization,
            "step/learning_rate": record.learning_rate,
            "step/waiting_share": record.waited / max(1e-9, record.seconds),
        }
        self._write(values, step)

    def on_epoch(self, row: EpochRow) -> None:
        """Everything in the table."""
        self._write({f"epoch/{k}": float(row[k]) for k in COLUMNS[1:] if is_number(row.get(k))}, int(row["epoch"]))

    def on_note(self, text: str) -> None:
        """Notes are for the console."""

    def _write(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError


class TensorBoard(_Numbers):
    """Event files in the run folder; nothing leaves the machine."""

    def __init__(self, folder: Path) -> None:
        self._writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def on_end(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases(_Numbers):
    """Through its own package, with the user's own settings (WANDB_MODE=offline keeps it local)."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        from dataclasses import asdict

        wandb = _import("wandb", "wandb")
        self._run = wandb.init(project="multibox", name=folder.name, dir=str(folder), config=asdict(config))
        # Steps and epochs count separately, so each kind of number gets its own axis.
        for kind in ("step", "epoch"):
            self._run.define_metric(f"{kind}/number")
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/number")

    def _write(self, values: dict[str, float], step: int) -> None:
        kind = next(iter(values)).partition("/")[0]
        self._run.log({**values, f"{kind}/number": step})

    def on_end(self) -> None:
        """Finish the run."""
        self._run.finish()


class MlFlow(_Numbers):
    """To the tracking server of MLFLOW_TRACKING_URI, or the local folder MLflow uses without one."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        from multibox.training.config import leaves

        self._mlflow = _import("mlflow", "mlflow")
        self._mlflow.set_experiment("multibox")
        self._mlflow.start_run(run_name=folder.name)
        options = {leaf.name: getattr(getattr(config, leaf.section), leaf.name) for leaf in leaves().values()}
        self._mlflow.log_params(options)

    def _write(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)

    def on_end(self) -> None:
        """Finish the run."""
        self._mlflow.end_run()
