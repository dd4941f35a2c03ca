"""A whole run: data, model, run folder, loop, and what is left at the end."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from multibox import __version__
from multibox.data import DataError, Dataset, read_dataset
from multibox.data.records import ImageRecord
from multibox.errors import MissingDependencyError, MultiboxError, OptionError
from multibox.files import atomic_write
from multibox.models.detector import Detector
from multibox.pictures.read import picture_size_hw
from multibox.spec.anchors import AnchorSpec
from multibox.spec.classes import ClassMap
from multibox.training.augmentation import Transform
from multibox.training.checkpoint import writing
from multibox.training.config import TrainConfig, from_toml, to_toml
from multibox.training.console import Table, make_console
from multibox.training.distributed import Processes, processes
from multibox.training.loader import TrainingPictures, open_cache
from multibox.training.loop import Observer, Trainer
from multibox.training.optim import freeze, freeze_norms
from multibox.training.plots import draw_curves
from multibox.training.transfer import Start, start_from
from multibox.training.workers import losses_wait
from multibox.weights.store import make_card, save_detector

__all__ = ["CONFIG_NAME", "TrainResult", "resume", "train"]

CONFIG_NAME = "config.toml"
LEAST_HELD_OUT = 1
HOLD_OUT_STREAM = 2  # first word of the random stream; see `loader`


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

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


def train(config: TrainConfig, *, folder: Path, transforms: Sequence[Transform] = ()) -> TrainResult:
    """Train a detector.

    Args:
        config: every option; `config.data.data` and `config.model.model` say what is trained on what.
        folder: an existing, empty run folder.
        transforms: own augmentations, applied to every decoded picture before the built-in ones. They must be
            importable functions when workers are spawned, and given again to `resume`.

    Raises:
        OptionError: options that contradict each other, the model or the data.
        DataError: data that cannot be read, or nothing to learn in it.
        TrainingError: a step that could not be computed; the state before it is saved.
    """
    return _run(config, folder, transforms, resumed=False)


def resume(folder: Path, *, transforms: Sequence[Transform] = (), **options: Any) -> TrainResult:
    """Go on with a run where it was last saved, as if it had never stopped.

    Args:
        folder: of the run.
        transforms: those that the run was started with.
        options: `device`, `workers`, `cache`, `cache_gb`, `quiet` or `save_every` in place of the run's own; nothing
            that would change the result.

    Raises:
        OptionError: an option that would change the result.
        ModelFileError: there is no saved state.
        DataError: the data is not what the run was started with.
    """
    from multibox.training.config import merge

    path = folder / CONFIG_NAME
    if not path.is_file():
        raise OptionError(f"{folder} is no run folder (it has no {CONFIG_NAME}); give the folder that training made")
    harmless = {"device", "workers", "cache", "cache_gb", "quiet", "save_every"}
    for key in options:
        if key not in harmless:
            raise OptionError(f"{key} cannot be changed in a resumed run, only {', '.join(sorted(harmless))}")
    return _run(merge(from_toml(path), options), folder, transforms, resumed=True)


@contextmanager
def prepared(config: TrainConfig, folder: Path, transforms: Sequence[Transform] = ()) -> Iterator[Trainer]:
    """A trainer with its data and model, before anything is written into the folder."""
    torch.manual_seed(config.run.seed)
    with _determinism(config.run.deterministic), processes(config.run.device) as others, losses_wait():
        if config.optim.batch % others.world:
            raise OptionError(f"batch={config.optim.batch} is not a multiple of the {others.world} processes")
        say = _speaker(config, others)
        folder = Path(others.gather(str(folder))[0])  # all processes use that of the first
        learnt, validated = _data(config, say)
        start = _start(config, learnt, say)
        config = _with_precision(config, others.device, start.detector)
        _check(config, start.detector, validated)
        if config.model.freeze:
            say(f"frozen: {', '.join(freeze(start.detector, config.model.freeze))}")
        if config.model.freeze_norm:
            freeze_norms(start.detector)
        cache_path = folder / f"pictures-{others.rank}.cache"
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
        try:
            trainer = Trainer(
                start.detector,
                pictures,
                validated,
                config,
                folder=folder,
                processes=others,
                fingerprint=_fingerprint(learnt, validated),
                save_weights=_weights_writer(config, start, learnt, validated),
            )
            try:
                yield trainer
            finally:
                trainer.close()
        finally:
            cache_path.unlink(missing_ok=True)


def _run(config: TrainConfig, folder: Path, transforms: Sequence[Transform], *, resumed: bool) -> TrainResult:
    with prepared(config, folder, transforms) as trainer:
        others, progress, folder = trainer.processes, trainer.progress, trainer.folder
        say = _speaker(config, others)
        if resumed:
            for path in folder.rglob(".*.partial*"):  # of files that were being written when it was killed
                path.unlink()
            notes = trainer.restore()
            progress = trainer.progress
            for line in (f"resumed at epoch {progress.epoch + 1}, step {progress.step}", *notes):
                say(line)
        elif others.writes:
            with writing(folder / CONFIG_NAME):
                atomic_write(folder / CONFIG_NAME, to_toml(trainer.config))
        if others.writes:
            trainer.observers += _observers(config, folder, trainer)
        with _stopping(trainer, say):
            finished = trainer.run()
        if others.writes and config.run.plots and trainer.progress.history:
            try:
                draw_curves(trainer.progress.history, folder / "results.png")
            except MissingDependencyError as error:
                say(f"no curves: {error}")
        if not finished:
            where = f"epoch {progress.epoch + 1}, step {progress.step}"
            say(f"stopped and saved in {where}; go on with: multibox train --resume {folder}")
        best = progress.best_epoch if progress.best_epoch >= 0 else progress.epoch
        return TrainResult(folder, finished, tuple(progress.history), best, dict(progress.skipped))


Say = Callable[[str], None]


def _with_precision(config: TrainConfig, device: torch.device, detector: Detector) -> TrainConfig:
    """The configuration with amp=auto decided, so that a resumed run computes as it began.

    Raises:
        OptionError: bf16 where it computes wrongly.
    """
    broken = device.type == "cpu" and _reads_single_cells(detector)
    if config.run.amp == "bf16" and broken:
        raise OptionError(
            "amp=bf16 gives wrong gradients on processors where a depthwise convolution reads a map of 1 × 1, as in "
            "this model at this imgsz; use amp=none, or imgsz=300 or more"
        )
    if config.run.amp != "auto":
        return config
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return replace(config, run=replace(config.run, amp="bf16" if fast and not broken else "none"))


def _reads_single_cells(detector: Detector) -> bool:
    """Whether a level is made from one of a single cell by depthwise convolution.

    On x86 processors torch (2.15) gives another bfloat16 weight gradient of that convolution each time, as if nothing
    had been written to its memory.
    """
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in detector.modules())
    return depthwise and sum(height * width == 1 for height, width in detector.feature_sizes_hw()) > 1


def _check(config: TrainConfig, detector: Detector, validated: Dataset | None) -> None:
    """Refuse options that contradict the data or the model."""
    if config.run.patience and validated is None:
        raise OptionError("patience needs a validation, and no picture is left for it; drop patience or val_fraction=0")
    if config.loss.class_loss == "focal" and detector.spec.postprocess.activation != "sigmoid":
        raise OptionError("focal loss is for sigmoid scores, and this model has a softmax head; use class_loss=mined")


def _speaker(config: TrainConfig, others: Processes) -> Say:
    import sys

    def say(text: str) -> None:
        if others.writes and not config.run.quiet:
            print(text, file=sys.stderr, flush=True)

    return say


def _observers(config: TrainConfig, folder: Path, trainer: Trainer) -> list[Observer]:
    from multibox.training.loggers import make_loggers

    found: list[Observer] = [Table(folder / "results.csv", trainer.progress.history)]
    if not config.run.quiet:
        found.append(make_console(config.optim.epochs))
    found += make_loggers(config, folder, warn=trainer.note)
    return found


def _data(config: TrainConfig, say: Say) -> tuple[Dataset, Dataset | None]:
    options = config.data
    if not options.data:
        raise OptionError("no data: give a data set to train on")
    dataset = read_dataset(options.data, format=options.format or None, images=options.images or None)
    say(f"reading {dataset.origin}")
    for line in dataset.findings.summary():
        say(f"  {line}")
    if options.classes:
        dataset = _only_classes(dataset, options.classes)
    learnt, validated, how = _splits(config, dataset)
    say(f"learning from {_size(learnt)}; validating on {'nothing' if validated is None else _size(validated)} ({how})")
    if not learnt.num_boxes:
        raise DataError(options.data, "has no object to learn from", "check its annotations and split=")
    return learnt, validated


def _size(dataset: Dataset) -> str:
    return f"{len(dataset)} pictures, {dataset.num_boxes} objects"


def _splits(config: TrainConfig, dataset: Dataset) -> tuple[Dataset, Dataset | None, str]:
    options = config.data
    for name in ("split", "val_split"):
        text = getattr(options, name)
        if text and not _names_in(text):
            raise OptionError(f"{name}={text!r} names no split; leave it out, or take of {', '.join(dataset.splits)}")
    wanted = _indices(dataset, options.split) if options.split else None
    if options.val_split == "none":
        learnt = _named(dataset, "train") if wanted is None else wanted
        learnt = np.arange(len(dataset)) if learnt is None else learnt
        return dataset.select(learnt), None, "as asked"
    if options.val_split:
        held, how = _indices(dataset, options.val_split), f"split {options.val_split}"
    else:
        named = _named(dataset, "val")
        free = None if named is None or wanted is None else np.setdiff1d(named, wanted)
        if named is not None and (free is None or len(free)):
            held, how = named if free is None else free, "split val"
        else:
            pool = wanted if wanted is not None else _named(dataset, "train")
            held = _held_out(np.arange(len(dataset)) if pool is None else pool, config)
            how = f"{len(held)} pictures held out of those to learn from"
    if wanted is not None and (options.val_split or not how.endswith("learn from")):
        learnt = wanted
    else:
        train_split = wanted if wanted is not None else _named(dataset, "train")
        learnt = np.setdiff1d(np.arange(len(dataset)) if train_split is None else train_split, held)
    shared = np.intersect1d(learnt, held)
    if len(shared):
        how += f"; {len(shared)} of them are also learnt from, so the numbers say nothing about new pictures"
    if not len(learnt):
        raise DataError(
            options.data, "leaves no picture to learn from", "choose other splits, or a smaller val_fraction"
        )
    return dataset.select(learnt), dataset.select(held) if len(held) else None, how


def _names_in(text: str) -> list[str]:
    """The names in "a, b"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _indices(dataset: Dataset, names: str) -> NDArray[np.int64]:
    return np.unique(np.concatenate([dataset.split_indices(name) for name in _names_in(names)]))


def _named(dataset: Dataset, name: str) -> NDArray[np.int64] | None:
    try:
        return dataset.split_indices(name)
    except DataError:
        return None


def _held_out(pool: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int64]:
    if config.data.val_fraction == 0 or len(pool) < 2:
        return np.zeros(0, np.int64)
    count = min(len(pool) - 1, max(LEAST_HELD_OUT, round(len(pool) * config.data.val_fraction)))
    chosen = np.random.default_rng((config.run.seed, HOLD_OUT_STREAM)).permutation(pool)[:count]
    return np.sort(chosen)


def _only_classes(dataset: Dataset, text: str) -> Dataset:
    names = [text] if text in dataset.class_map.names else _names_in(text)  # a name with a comma can be given alone
    if not names:
        raise OptionError(f"classes={text!r} names no class; leave it out for all classes")
    chosen = dataset.class_map.select(names)
    kept = ClassMap(tuple(dataset.class_map.names[i] for i in chosen), tuple(dataset.class_map.ids[i] for i in chosen))
    new_label = np.full(len(dataset.class_map), -1)
    new_label[list(chosen)] = np.arange(len(chosen))

    def records() -> Iterator[ImageRecord]:
        for record in dataset:
            labels = new_label[record.labels]
            keep = labels >= 0
            yield replace(
                record,
                boxes_xyxy=record.boxes_xyxy[keep],
                labels=labels[keep],
                crowd=record.crowd[keep],
                difficult=record.difficult[keep],
                truncated=record.truncated[keep],
                occluded=record.occluded[keep],
                area=record.area[keep],
            )

    smaller = Dataset.from_records(records(), kept, root=dataset.root)
    smaller.findings, smaller.origin = dataset.findings, dataset.origin
    return smaller


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
    start = start_from(options.model, learnt.class_map, size_hw=size_hw, nms_iou=options.nms_iou)
    if options.anchors != "keep":
        spec = _anchors(options.anchors, learnt, start.detector, say)
        start = start_from(options.model, learnt.class_map, size_hw=size_hw, nms_iou=options.nms_iou, anchors=spec)
    say(f"model: {start.source}")
    for row in start.table:
        say(f"  {row.part}: {row.fate} ({row.tensors} tensors, {row.values:,} values)")
    return start


def _anchors(choice: str, learnt: Dataset, detector: Detector, say: Say) -> AnchorSpec:
    from multibox.doctor.anchor_search import load_anchor_spec, propose_anchors

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


def _fingerprint(learnt: Dataset, validated: Dataset | None) -> str:
    """Digest of the annotations and file names; the pictures themselves are not read."""
    digest = hashlib.sha256()
    for part in (learnt, validated):
        if part is None:
            continue
        columns = part.columns
        digest.update("\0".join(part.class_map.names).encode())
        digest.update("\0".join(columns.paths[i] for i in range(len(part))).encode())
        for values in (columns.offsets, columns.boxes_xyxy, columns.labels, columns.flags):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _weights_writer(
    config: TrainConfig, start: Start, learnt: Dataset, validated: Dataset | None
) -> Callable[[Path, Detector, dict[str, Any]], None]:
    name = f"{start.source} on {Path(config.data.data).resolve().name}"
    recipe: dict[str, Any] = {
        "config": to_toml(config),
        "data_sha256": _fingerprint(learnt, validated),
        "multibox": __version__,
    }
    recipe |= {"pictures": len(learnt), "objects": learnt.num_boxes, "torch": torch.__version__}

    def write(path: Path, detector: Detector, row: dict[str, Any]) -> None:
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
