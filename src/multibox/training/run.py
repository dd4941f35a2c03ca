"""A whole run: data, model, run folder, loop, and what is left at the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.errors import MissingDependencyError, OptionError
from multibox.evaluation import validate
from multibox.evaluation.results import measure, write_results
from multibox.files import atomic_write
from multibox.inference import Detector
from multibox.training.checkpoint import writing
from multibox.training.config import TrainConfig, from_toml, merge, to_toml
from multibox.training.console import Table, make_console
from multibox.training.loop import Trainer
from multibox.training.plots import draw_curves
from multibox.training.preparation import Say, prepared, speaker
from multibox.training.progress import Callback, GuardedCallback
from multibox.training.sample import Transform
from multibox.training.tensorboard import TensorBoard

__all__ = ["CONFIG_NAME", "TrainResult", "resume", "train"]

CONFIG_NAME = "config.toml"
REPORT_FOLDER = "val"


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        folder: the run folder.
        finished: False when it was stopped; `resume(folder)` goes on.
        history: a row of numbers for each epoch.
        best_epoch: the epoch whose weights are in `weights/best.safetensors`; 0 is the start.
        skipped: pictures that could not be read, with the reason.
        config: every option, with what the run decided for itself.
        lost: what of the annotations could not be read, in words; "" for nothing.
    """

    folder: Path
    finished: bool
    history: tuple[dict[str, Any], ...]
    best_epoch: int
    skipped: dict[str, str]
    config: TrainConfig
    lost: str

    @property
    def best(self) -> Path:
        """The model file to use."""
        return self.folder / "weights" / "best.safetensors"


def train(
    config: TrainConfig, *, folder: Path, transforms: Sequence[Transform] = (), callbacks: Sequence[Callback] = ()
) -> TrainResult:
    """Train a detector.

    Args:
        config: every option; `config.data.data` and `config.model.model` say what is trained on what.
        folder: an existing, empty run folder.
        transforms: own augmentations, applied to every decoded picture before the built-in ones. They must be
            importable functions when workers are spawned, and given again to `resume`.
        callbacks: told of every step and epoch, in the first of several processes; one that fails is left out.

    Raises:
        OptionError: options that contradict each other, the model or the data.
        DataError: data that cannot be read, or nothing to learn in it.
        TrainingError: a step that could not be computed; the state before it is saved.
    """
    return _run(config, folder, transforms, callbacks, resumed=False)


def resume(
    folder: Path, *, transforms: Sequence[Transform] = (), callbacks: Sequence[Callback] = (), **options: Any
) -> TrainResult:
    """Go on with a run where it was last saved, as if it had never stopped.

    Args:
        folder: of the run.
        transforms: those that the run was started with.
        callbacks: as in `train`.
        options: `device`, `workers`, `cache`, `cache_gb`, `quiet` or `save_every` in place of the run's own; nothing
            that would change the result.

    Raises:
        OptionError: an option that would change the result.
        ModelFileError: there is no saved state.
        DataError: the data is not what the run was started with.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise OptionError(f"{folder} is no run folder (it has no {CONFIG_NAME}); give the folder that training made")
    harmless = {"device", "workers", "cache", "cache_gb", "quiet", "save_every"}
    for key in options:
        if key not in harmless:
            raise OptionError(f"{key} cannot be changed in a resumed run, only {', '.join(sorted(harmless))}")
    return _run(merge(from_toml(path), options), folder, transforms, callbacks, resumed=True)


def _run(
    config: TrainConfig, folder: Path, transforms: Sequence[Transform], callbacks: Sequence[Callback], *, resumed: bool
) -> TrainResult:
    with prepared(config, folder, transforms) as trainer:
        others, folder = trainer.processes, trainer.folder
        say = speaker(config, others)
        if resumed:
            notes = trainer.restore()
            for line in (f"resumed at epoch {trainer.progress.epoch + 1}, step {trainer.progress.step}", *notes):
                say(line)
        elif others.writes:
            with writing(folder / CONFIG_NAME):
                atomic_write(folder / CONFIG_NAME, to_toml(trainer.config))
        if others.writes:
            trainer.callbacks += _callbacks(config, folder, trainer, callbacks)
        with _stopping(trainer, say):
            finished = trainer.run()
        progress = trainer.progress
        if others.writes and config.run.plots and progress.history:
            try:
                draw_curves(progress.history, folder / "results.png")
            except MissingDependencyError as error:
                say(f"no curves: {error}")
        if finished and others.writes and config.run.plots and trainer.validation is not None:
            _report(folder, trainer, say)
        if not finished:
            say(f"stopped and {trainer.files.saved}")
        lost = trainer.pictures.annotations.findings.loss()
        best = progress.best_epoch if progress.best_epoch >= 0 else progress.epoch
        return TrainResult(
            folder, finished, tuple(progress.history), best, dict(progress.skipped), trainer.config, lost
        )


def _report(folder: Path, trainer: Trainer, say: Say) -> None:
    """What `multibox val` says of the best weights, in the run folder's `val`."""
    assert trainer.validation is not None
    detector = Detector(folder / "weights" / "best.safetensors", engine="torch", device=str(trainer.processes.device))
    validation = validate(detector, trainer.validation, name=f"{folder.name}: the best weights on the validation")
    place = folder / REPORT_FOLDER
    with writing(place):
        place.mkdir(exist_ok=True)
        write_results(place, measure(validation), origin=trainer.validation.origin, say=say)
    say(f"report of the best weights: {place / 'report.html'}")


def _callbacks(config: TrainConfig, folder: Path, trainer: Trainer, given: Sequence[Callback]) -> list[Callback]:
    found: list[Callback] = [Table(folder / "results.csv", trainer.progress.history)]
    if not config.run.quiet:
        found.append(make_console(trainer.config.optim.epochs))
    others = [*given, TensorBoard(folder)] if config.run.tensorboard else given
    return [*found, *(GuardedCallback(callback, trainer.note) for callback in others)]


@contextmanager
def _stopping(trainer: Trainer, say: Say) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the step under way; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _: Any) -> None:
        if trainer.stop_requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        trainer.stop_requested = True
        say(f"{signal.Signals(number).name}: saving after this step")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
