"""A whole run: data, model, run folder, loop, and what is left at the end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multibox import __version__
from multibox.data import Dataset
from multibox.errors import MissingDependencyError, MultiboxError, OptionError
from multibox.files import atomic_write
from multibox.models.network import DetectionNetwork
from multibox.pictures.read import picture_size_hw
from multibox.spec.anchors import AnchorSpec
from multibox.training.augmentation import Transform
from multibox.training.checkpoint import writing
from multibox.training.config import TrainConfig, from_toml, merge, to_toml
from multibox.training.console import Table, make_console
from multibox.training.distributed import Processes, processes
from multibox.training.loader import TrainingPictures, open_cache
from multibox.training.loop import Trainer
from multibox.training.optim import freeze, freeze_norms
from multibox.training.plots import draw_curves
from multibox.training.precision import with_precision
from multibox.training.progress import Callback, GuardedCallback
from multibox.training.splits import fingerprint, read_training_data
from multibox.training.tensorboard import TensorBoard
from multibox.training.transfer import Start, start_from
from multibox.training.workers import worker_losses_deferred
from multibox.weights.store import make_card, save_detector

__all__ = ["CONFIG_NAME", "TrainResult", "resume", "train"]

CONFIG_NAME = "config.toml"


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        folder: the run folder.
        finished: False when it was stopped; `resume(folder)` goes on.
        history: a row of numbers for each epoch.
        best_epoch: the epoch whose weights are in `weights/best.safetensors`.
        skipped: pictures that could not be read, with the reason.
    """

    folder: Path
    finished: bool
    history: tuple[dict[str, Any], ...]
    best_epoch: int
    skipped: dict[str, str]

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


@contextmanager
def prepared(
    config: TrainConfig, folder: Path, transforms: Sequence[Transform] = (), *, others: Processes | None = None
) -> Iterator[Trainer]:
    """A trainer with its data and model, before anything is written into the folder.

    Args:
        config: every option.
        folder: the run folder.
        transforms: own augmentations.
        others: the processes of the run, where they have joined already.
    """
    torch.manual_seed(config.run.seed)
    with ExitStack() as stack:
        stack.enter_context(_determinism(config.run.deterministic))
        stack.enter_context(worker_losses_deferred())
        others = others or stack.enter_context(processes(config.run.device))
        if config.optim.batch % others.world:
            raise OptionError(f"batch={config.optim.batch} is not a multiple of the {others.world} processes")
        say = _speaker(config, others)
        folder = Path(others.gather(str(folder))[0])  # all processes use that of the first
        learnt, validated = read_training_data(config, say)
        start = _start(config, learnt, say)
        config = with_precision(config, others.device, start.detector)
        _check(config, start.detector, validated)
        if config.model.freeze:
            say(f"frozen: {', '.join(freeze(start.detector, config.model.freeze))}")
        if config.model.freeze_norm:
            freeze_norms(start.detector)
        cache_path = folder / f"pictures-{others.rank}.cache"
        stack.callback(cache_path.unlink, missing_ok=True)
        cache = open_cache(
            config.data.cache,
            config.data.cache_gb,
            workers=config.data.workers,
            path=cache_path,
            sizes_hw=_sizes_hw(learnt) if config.data.cache == "disk" else None,
        )
        pictures = TrainingPictures(
            learnt,
            start.detector.spec.preprocess,
            config.augment,
            config.run.seed,
            tuple(transforms),
            ignore_difficult=config.data.difficult == "ignore",
            cache=cache,
        )
        trainer = Trainer(
            start.detector,
            pictures,
            validated,
            config,
            folder=folder,
            processes=others,
            fingerprint=fingerprint(learnt, validated),
            save_weights=_weights_writer(config, start, learnt, validated),
        )
        stack.callback(trainer.close)
        yield trainer


def _run(
    config: TrainConfig, folder: Path, transforms: Sequence[Transform], callbacks: Sequence[Callback], *, resumed: bool
) -> TrainResult:
    with prepared(config, folder, transforms) as trainer:
        others, folder = trainer.processes, trainer.folder
        say = _speaker(config, others)
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
        if not finished:
            say(f"stopped and {trainer.files.saved}")
        best = progress.best_epoch if progress.best_epoch >= 0 else progress.epoch
        return TrainResult(folder, finished, tuple(progress.history), best, dict(progress.skipped))


Say = Callable[[str], None]


def _check(config: TrainConfig, detector: DetectionNetwork, validated: Dataset | None) -> None:
    """Refuse options that contradict the data or the model."""
    if config.run.patience and validated is None:
        raise OptionError("patience needs a validation, and no picture is left for it; drop patience or val_fraction=0")
    rules, stages = len(config.loss.match_iou), len(detector.spec.stages)
    if rules not in (0, 1, stages):
        raise OptionError(f"match_iou has {rules} numbers for a model of {stages} stage(s); give one, or one for each")
    if config.loss.class_loss == "focal" and detector.spec.postprocess.activation != "sigmoid":
        raise OptionError("focal loss is for sigmoid scores, and this model has a softmax head; use class_loss=mined")


def _speaker(config: TrainConfig, others: Processes) -> Say:
    def say(text: str) -> None:
        if others.writes and not config.run.quiet:
            print(text, file=sys.stderr, flush=True)

    return say


def _callbacks(config: TrainConfig, folder: Path, trainer: Trainer, given: Sequence[Callback]) -> list[Callback]:
    found: list[Callback] = [Table(folder / "results.csv", trainer.progress.history)]
    if not config.run.quiet:
        found.append(make_console(config.optim.epochs))
    others = [*given, TensorBoard(folder)] if config.run.tensorboard else given
    return [*found, *(GuardedCallback(callback, trainer.note) for callback in others)]


def _sizes_hw(dataset: Dataset) -> NDArray[np.int32]:
    """[P, 2] (height, width) of the pictures, 0 where unreadable."""
    sizes = np.zeros((len(dataset), 2), np.int32)
    for i in range(len(dataset)):
        try:
            sizes[i] = picture_size_hw(dataset.picture_path(i))
        except MultiboxError:
            continue
    return sizes


def _start(config: TrainConfig, learnt: Dataset, say: Say) -> Start:
    options = config.model
    size_hw = options.size_hw()
    build = partial(
        start_from,
        options.model,
        learnt.class_map,
        size_hw=size_hw,
        nms_iou=options.nms_iou,
        builder_arguments=options.builder_arguments(),
    )
    start = build()
    if options.anchors != "keep":
        start = build(anchors=_anchors(options.anchors, learnt, start.detector, say))
    say(f"model: {start.source}")
    for row in start.table:
        say(f"  {row.part}: {row.fate} ({row.tensors} tensors, {row.values:,} values)")
    return start


def _anchors(choice: str, learnt: Dataset, detector: DetectionNetwork, say: Say) -> AnchorSpec:
    from multibox.doctor.anchors import load_anchor_spec, propose_anchors

    if choice != "fit":
        return load_anchor_spec(Path(choice))
    proposal = propose_anchors(
        learnt,
        _sizes_hw(learnt),
        detector.spec.anchors,
        feature_sizes_hw=tuple(detector.feature_sizes_hw()),
        size_hw=detector.spec.preprocess.size_hw,
    )
    for note in proposal.notes:
        say(f"  {note}")
    return proposal.spec


def _weights_writer(
    config: TrainConfig, start: Start, learnt: Dataset, validated: Dataset | None
) -> Callable[[Path, DetectionNetwork, dict[str, Any]], None]:
    name = f"{start.source} on {Path(config.data.data).resolve().name}"
    recipe: dict[str, Any] = {
        "config": to_toml(config),
        "data_sha256": fingerprint(learnt, validated),
        "multibox": __version__,
    }
    recipe |= {"pictures": len(learnt), "objects": learnt.num_boxes, "torch": torch.__version__}

    def write(path: Path, detector: DetectionNetwork, row: dict[str, Any]) -> None:
        metrics = {key: row[key] for key in ("AP", "AP50", "AP75") if row.get(key) is not None}
        if metrics and validated is not None:
            metrics |= {"epoch": row["epoch"], "validated_on": f"{len(validated)} pictures"}
        card = make_card(
            detector,
            learnt.class_map,
            name=name,
            licence=start.licence,
            source=f"trained by multibox {__version__} from {start.source}",
            training=recipe,
            metrics=metrics,
        )
        with writing(path):
            save_detector(path, detector, card)

    return write


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


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
