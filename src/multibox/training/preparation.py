"""What a run needs before its first step: the data, the network it starts from, the options that suit both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multibox import __version__
from multibox.data import Dataset
from multibox.devices import describe_device
from multibox.errors import MultiboxError, OptionError
from multibox.models.network import DetectionNetwork
from multibox.pictures.read import picture_size_hw
from multibox.spec.anchors import AnchorSpec
from multibox.training.checkpoint import writing
from multibox.training.config import TrainConfig, merge, to_toml
from multibox.training.distributed import Processes, processes
from multibox.training.loader import TrainingPictures, open_cache
from multibox.training.loop import Trainer
from multibox.training.optim import freeze, freeze_norms
from multibox.training.precision import described_precision, with_precision
from multibox.training.sample import Transform
from multibox.training.splits import fingerprint, read_training_data
from multibox.training.transfer import Start, start_from
from multibox.training.workers import worker_losses_deferred
from multibox.weights.store import make_card, save_detector

__all__ = ["Say", "prepared", "speaker", "suited"]

Say = Callable[[str], None]


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
        say = speaker(config, others)
        folder = Path(others.gather(str(folder))[0])  # all processes use that of the first
        learnt, validated = read_training_data(config, say)
        start = _start(config, learnt, say)
        config = with_precision(suited(config, start, learnt, say), others.device, start.detector)
        say(f"device: {describe_device(others.device)}, {described_precision(config.run.amp, others.device)}")
        _check(config, start.detector, validated)
        if config.model.freeze:
            frozen = freeze(start.detector, config.model.freeze, trained=start.trained_backbone)
            say(f"frozen: {', '.join(frozen) or 'nothing, because the backbone has random weights'}")
            config = merge(config, {"freeze": len(frozen)})
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
            knows_classes=bool(start.carried),
        )
        stack.callback(trainer.close)
        yield trainer


def _check(config: TrainConfig, detector: DetectionNetwork, validated: Dataset | None) -> None:
    """Refuse options that contradict the data or the model."""
    if config.run.patience and validated is None:
        raise OptionError("patience needs a validation, and no picture is left for it; drop patience or val_fraction=0")
    rules, stages = len(config.loss.match_iou), len(detector.spec.stages)
    if rules not in (0, 1, stages):
        raise OptionError(f"match_iou has {rules} numbers for a model of {stages} stage(s); give one, or one for each")
    if config.loss.class_loss == "focal" and detector.spec.postprocess.activation != "sigmoid":
        raise OptionError("focal loss is for sigmoid scores, and this model has a softmax head; use class_loss=mined")


def suited(config: TrainConfig, start: Start, learnt: Dataset, say: Say) -> TrainConfig:
    """The configuration with the learning rate and the length that suit how much is new and how much data there is.

    Args:
        config: its known_lr0, known_epochs and least_updates are what may take the place of lr0 and epochs.
        start: the detector and the classes that it scores already.
        learnt: the pictures to learn from.
        say: told what took the place of what.
    """
    optim, changes = config.optim, dict[str, Any]()
    if len(start.carried) == len(learnt.class_map):
        if optim.known_lr0 is not None:
            changes["lr0"] = optim.known_lr0
        if optim.known_epochs is not None:
            changes["epochs"] = optim.known_epochs
        if changes:
            say(f"the model scores every class already: {_listed(changes)}")
    length = changes.get("epochs", optim.epochs)
    updates = -(-len(learnt) // (optim.batch * optim.accumulate))
    if length * updates < optim.least_updates:
        changes["epochs"] = -(-optim.least_updates // updates)
        say(f"{length} epochs of {updates} updates are few: epochs={changes['epochs']}")
    # What is decided is written down plainly, so that a resumed run decides nothing anew.
    return merge(config, {**changes, "known_lr0": None, "known_epochs": None, "least_updates": 0})


def _listed(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in options.items())


def speaker(config: TrainConfig, others: Processes) -> Say:
    def say(text: str) -> None:
        if others.writes and not config.run.quiet:
            print(text, file=sys.stderr, flush=True)

    return say


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
        builder_arguments=options.builder_arguments(),
        backbone=options.backbone,
    )
    start = build()
    if options.anchors != "keep":
        start = build(anchors=_anchors(options.anchors, learnt, start.detector, say))
    nms_iou = options.nms_iou
    if nms_iou is None and len(start.carried) < len(learnt.class_map):
        nms_iou = options.new_nms_iou
    if nms_iou is not None:
        spec = start.detector.spec
        start.detector.spec = replace(spec, postprocess=replace(spec.postprocess, nms_iou=nms_iou))
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
