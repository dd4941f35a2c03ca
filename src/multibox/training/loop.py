"""The loop: batches in, weights out. One step is `Trainer._step`; everything else is when, and what is kept."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from multibox.core.loss import Focal, MultiboxLosses, at_least_one, multibox_loss
from multibox.core.matching import MatchOptions, match
from multibox.core.structures import Raw, Target
from multibox.data import Dataset
from multibox.errors import MultiboxError
from multibox.models.detector import Detector
from multibox.spec.anchors import anchors_digest
from multibox.training.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state
from multibox.training.config import TrainConfig
from multibox.training.distributed import Processes
from multibox.training.evaluate import evaluate
from multibox.training.failures import TrainingError, explained, nonfinite_error
from multibox.training.loader import (
    Batch,
    EpochBatches,
    TrainingPictures,
    make_loader,
    to_network,
)
from multibox.training.optim import Ema, learning_rate, make_optimizer, set_training
from multibox.training.plots import draw_batch
from multibox.training.workers import end_workers, received

__all__ = ["AUTOCAST", "EpochRow", "Observer", "Progress", "StepRecord", "Trainer"]

AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STOP_CHECK = 10  # steps after which several processes ask each other whether to stop
EVALUATION_BATCH = 16
SAMPLES = 3  # batches drawn


@dataclass
class Progress:
    """How far a run is; with the weights, all that a resumed run needs.

    Args:
        epoch: the epoch under way, from 0.
        step: its next batch.
        updates: how often the weights have moved.
        best: the best AP so far, and
        best_epoch: after which epoch.
        since_best: validations without a better one.
        history: a row for each finished epoch.
        skipped: pictures that could not be read, with the reason.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    best: float = -1.0
    best_epoch: int = -1
    since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    partial: list[float] = field(default_factory=lambda: [0.0] * 6)  # sums over the epoch under way, see `_record`


EpochRow = dict[str, Any]


@dataclass(frozen=True)
class StepRecord:
    """What one step was like: losses, matched default boxes, seconds of waiting for data and of the whole step."""

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


class Observer(Protocol):
    """Who wants to know: the display, the table, loggers."""

    def on_step(self, record: StepRecord) -> None:
        """After every step."""

    def on_epoch(self, row: EpochRow) -> None:
        """After every epoch, validated or not."""

    def on_note(self, text: str) -> None:
        """Something to tell the user."""

    def on_end(self) -> None:
        """After the last epoch, or when the run stops."""


class Trainer:
    """Trains one detector.

    Args:
        detector: on the CPU; moved to the device of `processes`.
        pictures: what is learnt.
        validation: what is validated on, or None.
        config: of the run.
        folder: the run folder.
        processes: this one and the others.
        fingerprint: of the data; a state is only restored onto the same.
        save_weights: writes a detector with metrics as a model file.
    """

    def __init__(
        self,
        detector: Detector,
        pictures: TrainingPictures,
        validation: Dataset | None,
        config: TrainConfig,
        *,
        folder: Path,
        processes: Processes,
        fingerprint: str,
        save_weights: Callable[[Path, Detector, dict[str, Any]], None],
    ) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        self.pictures, self.validation, self.fingerprint = pictures, validation, fingerprint
        self.observers: list[Observer] = []
        self._save_weights = save_weights
        device = processes.device
        self.detector = detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.anchors = self.detector.anchors_cxcywh()
        self.averaged = copy.deepcopy(self.detector).eval()
        self.optimizer = make_optimizer(self.detector, config.optim)
        self.ema = Ema(self.detector, config.optim.ema)
        self.network = self._network()
        self.autocast = AUTOCAST[config.run.amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.run.amp == "fp16")
        self.batches = EpochBatches(
            len(pictures), config.optim.batch, seed=config.run.seed, rank=processes.rank, world=processes.world
        )
        self.loader = make_loader(
            pictures, self.batches, workers=config.data.workers, pin=processes.device.type == "cuda"
        )
        self.progress = Progress()
        self.stop_requested = False
        self._saved_at, self._saved = time.monotonic(), "nothing was saved"

    def close(self) -> None:
        """End the processes that make batches; they start again when a batch is asked for."""
        end_workers(self.loader._iterator)
        self.loader._iterator = None

    @property
    def state_path(self) -> Path:
        """Where the state of the run is kept."""
        return self.folder / "weights" / "last.resume.safetensors"

    def _network(self) -> nn.Module:
        network: nn.Module = self.detector
        if self.config.run.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        if self.processes.world > 1:
            devices = [self.processes.device] if self.processes.device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(network, device_ids=devices)
        return network

    @property
    def rate(self) -> float:
        """The learning rate of the last update, before the factors of groups of weights."""
        group = self.optimizer.param_groups[-1]
        return float(group["lr"] / group["factor"]) if group["factor"] else 0.0

    @property
    def updates_per_epoch(self) -> int:
        """How often the weights move in an epoch."""
        return -(-len(self.batches) // self.config.optim.accumulate)

    def run(self) -> bool:
        """Train to the end, or until asked to stop; whether the end was reached.

        Raises:
            TrainingError: a step could not be computed, or a worker process ended.
        """
        try:
            if self.progress == Progress():
                self.save()  # so that a run can go on from the first moment
            return self._run()
        except (RuntimeError, MemoryError, MultiboxError) as error:
            found = explained(error, self.config.optim, saved=self._saved)
            if found is None:
                raise
            raise found from None
        finally:
            for observer in self.observers:
                observer.on_end()

    def _run(self) -> bool:
        while self.progress.epoch < self.config.optim.epochs and not self._patience_is_over:
            if not self._epoch() and self.progress.epoch < self.config.optim.epochs:
                self.save()
                return False
        if self._patience_is_over:
            since, best = self.progress.since_best, self.progress.best_epoch
            self.note(f"no better validation for {since} times; the best was after epoch {best}")
        return True

    @property
    def _patience_is_over(self) -> bool:
        return 0 < self.config.run.patience <= self.progress.since_best

    def _epoch(self) -> bool:
        """One epoch from wherever it stands, its validation and its save; False when asked to stop."""
        progress = self.progress
        set_training(self.detector, freeze_norm=self.config.model.freeze_norm)
        self.batches.start(progress.epoch, progress.step)
        self.optimizer.zero_grad()
        mark = time.perf_counter()
        for batch in received(self.loader, workers=self.config.data.workers):
            waited = time.perf_counter() - mark
            self._note_failures(batch)
            if progress.epoch == 0 and progress.step < SAMPLES:
                self._draw(batch)
            losses = self.try_step(batch)
            progress.step += 1
            moved = progress.step % self.config.optim.accumulate == 0 or progress.step == len(self.batches)
            if moved:
                self.update()
            self._record(losses, batch, waited, time.perf_counter() - mark)
            mark = time.perf_counter()
            if moved and progress.step < len(self.batches) and self._should_stop(progress.step):
                return False
            if moved and time.monotonic() - self._saved_at > self.config.run.save_every:
                self.save()
        self._finish_epoch()
        return not self._should_stop(0)

    def _draw(self, batch: Batch) -> None:
        """A look at what is learnt from."""
        if not (self.config.run.plots and self.processes.writes):
            return
        anchors = self.anchors.cpu()
        sheet = draw_batch(
            batch,
            match(anchors, batch.targets, options=self.matching),
            anchors,
            self.pictures.annotations.class_map,
        )
        sheet.save(self.folder / f"batch-{self.progress.step + 1}.jpg", quality=90)

    @property
    def matching(self) -> MatchOptions:
        """How default boxes are given to objects."""
        overlap = self.config.loss.match_iou
        return MatchOptions(positive_threshold=overlap, negative_threshold=overlap)

    def _should_stop(self, step: int) -> bool:
        if self.processes.world > 1 and step % STOP_CHECK:
            return False
        return self.processes.any(self.stop_requested)

    def losses(self, batch: Batch) -> MultiboxLosses:
        """Forward pass and loss of a batch."""
        device = self.processes.device
        pixels = batch.pixels.to(device, non_blocking=True)
        targets = [target.to(device, non_blocking=True) for target in batch.targets]
        with torch.autocast(device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            raw = self.network(to_network(pixels, self.detector.spec.preprocess))
        return self._loss(raw, targets, self.processes.positives)

    def _loss(self, raw: Raw, targets: list[Target], normaliser: Callable[[Tensor], Tensor]) -> MultiboxLosses:
        spec, options = self.detector.spec, self.config.loss
        return multibox_loss(
            raw,
            self.anchors,
            targets,
            activation=spec.postprocess.activation,
            negative_ratio=options.negative_ratio,
            matching=self.matching,
            variances=spec.variances,
            localization_weight=options.box_weight,
            focal=Focal(options.focal_gamma, options.focal_alpha) if options.class_loss == "focal" else None,
            box_loss=options.box_loss,
            normaliser=normaliser,
        )

    def try_step(self, batch: Batch) -> MultiboxLosses:
        """Losses and gradients of a batch.

        Raises:
            TrainingError: memory did not suffice, the loss is not finite, or the batch is too small.
        """
        try:
            return self._step(batch)
        except (RuntimeError, MemoryError, ValueError) as error:
            found = explained(error, self.config.optim, saved=self._saved)
            if found is None:
                raise
        raise found  # outside the handler, so that the failed step's tensors are released

    def _step(self, batch: Batch) -> MultiboxLosses:
        losses = self.losses(batch)
        total = losses.total
        if not torch.isfinite(total):
            raise self._nonfinite(batch)
        self.scaler.scale(total / self.config.optim.accumulate).backward()  # type: ignore[no-untyped-call]
        return losses

    def _nonfinite(self, batch: Batch) -> Exception:
        @torch.no_grad()
        def loss_of(part: Batch) -> float:
            self.detector.eval()  # batch normalisation refuses a single picture in training mode
            device = self.processes.device
            raw = self.detector(to_network(part.pixels.to(device), self.detector.spec.preprocess))
            return float(self._loss(raw, [target.to(device) for target in part.targets], at_least_one).total)

        step = self.progress.epoch * len(self.batches) + self.progress.step
        return nonfinite_error(batch, self.pictures.annotations, self.folder / "nonfinite", step=step, loss_of=loss_of)

    def update(self, rate: float | None = None) -> None:
        """Move the weights; the learning rate is the schedule's when left out."""
        if rate is None:
            rate = learning_rate(self.config.optim, step=self.progress.updates, steps_per_epoch=self.updates_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), self.config.optim.clip_norm or math.inf)
        if self.autocast is not torch.float16 and not torch.isfinite(norm):  # in fp16 the scaler skips the step
            raise TrainingError(
                f"the gradient of update {self.progress.updates} is not finite; no weight was changed by it; "
                "start anew with a smaller lr0, or with more precision (amp=none)"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.progress.updates += 1
        self.ema.update()

    def _record(self, losses: MultiboxLosses, batch: Batch, waited: float, seconds: float) -> None:
        positives = int(losses.positives)
        parts = (float(part.detach()) for part in (losses.classification, losses.localization))
        values = [*parts, positives, waited, seconds, len(batch.numbers)]
        progress = self.progress
        progress.partial = [a + b for a, b in zip(progress.partial, values, strict=True)]
        record = StepRecord(
            progress.epoch,
            progress.step,
            len(self.batches),
            values[0],
            values[1],
            positives,
            self.rate,
            waited,
            seconds,
            len(batch.numbers) * self.processes.world,
        )
        for observer in self.observers:
            observer.on_step(record)

    def _note_failures(self, batch: Batch) -> None:
        for path, reason in batch.failures:
            self._skip(path, reason)

    def _skip(self, path: str, reason: str, then: str = "another picture takes its place") -> None:
        if path not in self.progress.skipped:
            self.progress.skipped[path] = reason
            self.note(f"{path}: {reason}; {then}")

    def note(self, text: str) -> None:
        for observer in self.observers:
            observer.on_note(text)

    def _finish_epoch(self) -> None:
        progress, config = self.progress, self.config
        for skipped in self.processes.gather(progress.skipped):
            for path, reason in skipped.items():
                self._skip(path, reason)
        classification, localization, positives, waited, seconds, seen = self.processes.sum(progress.partial)
        steps = len(self.batches) * self.processes.world
        # Each process's part is its sum over the common divisor times their number, so their mean is the whole.
        row: EpochRow = {
            "epoch": progress.epoch + 1,
            "lr": self.rate,
            "loss": (classification + localization) / steps,
            "class_loss": classification / steps,
            "box_loss": localization / steps,
            "positives_per_picture": positives / max(1.0, seen),
            "images_per_second": seen / max(1e-9, seconds / self.processes.world),
            "waiting_share": waited / max(1e-9, seconds),
            "train_seconds": seconds / self.processes.world,
            "skipped": len(progress.skipped),
        }
        progress.epoch, progress.step, progress.partial = progress.epoch + 1, 0, [0.0] * len(progress.partial)
        last = progress.epoch == config.optim.epochs
        better = self.validation is None
        if self.validation is not None and (last or progress.epoch % config.run.val_every == 0):
            better = self._validate(row)
        progress.history.append(row)
        self.save(best=better)
        for observer in self.observers:
            observer.on_epoch(row)

    def _validate(self, row: EpochRow) -> bool:
        """Add the numbers of the averaged weights to the row; whether they are the best so far."""
        assert self.validation is not None
        started = time.perf_counter()
        self.averaged.load_state_dict(self.ema.state())
        result = evaluate(
            self.averaged,
            self.validation,
            processes=self.processes,
            batch=EVALUATION_BATCH,
            workers=self.config.data.workers,
        )
        number = 0.0
        if result is not None:
            numbers = result.numbers
            for path, reason in result.failures:
                self._skip(path, reason, "the validation goes without it")
            row.update(AP=numbers.ap, AP50=numbers.ap50, AP75=numbers.ap75)
            number = 0.0 if numbers.ap is None else numbers.ap
        row["val_seconds"] = time.perf_counter() - started
        number = self.processes.sum([number])[0]  # only the first process has it
        progress = self.progress
        if number > progress.best:
            progress.best, progress.best_epoch, progress.since_best = number, progress.epoch, 0
            return True
        progress.since_best += 1
        return False

    def save(self, *, best: bool = False) -> None:
        """Write the state and the averaged weights; after it, everything up to here survives."""
        self._saved_at = time.monotonic()
        if not self.processes.writes:
            return
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.detector.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.average.items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        if self.progress.step == 0 and self.progress.history:
            # Before the state, so that a run killed in between computes the epoch's end again.
            self.averaged.load_state_dict(self.ema.state())
            for name in ("last", "best") if best else ("last",):
                path = self.folder / "weights" / f"{name}.safetensors"
                self._save_weights(path, self.averaged, self.progress.history[-1])
        tensors["random.cpu"] = torch.get_rng_state()
        if self.processes.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.processes.device)
        state = {
            **vars(self.progress),
            "data_sha256": self.fingerprint,
            "anchors_sha256": anchors_digest(self.anchors.cpu().numpy()),
            "ema_updates": self.ema.updates,
            "scaler": self.scaler.state_dict(),
            "threads": torch.get_num_threads(),
        }
        save_state(self.state_path, tensors, state)
        self._saved = self._resumable()

    def _resumable(self) -> str:
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.step}"
        return f"saved in {where}; go on with: multibox train --resume {self.folder}"

    def restore(self) -> list[str]:
        """Go on from the saved state.

        Returns:
            What will make the result differ from that of a run without interruption, a line each.

        Raises:
            ModelFileError: there is none, or it is damaged.
            TrainingError: the data is not what it was.
        """
        tensors, state = load_state(self.state_path)
        if state.pop("data_sha256") != self.fingerprint:
            data = self.config.data.data
            raise TrainingError(f"{data} is not what {self.folder} was started with; restore it, or start a new run")
        if state.pop("anchors_sha256") != anchors_digest(self.anchors.cpu().numpy()):
            reason = "the default boxes are not those that"
            raise TrainingError(f"{reason} {self.folder} was started with; restore model= and anchors=, or start anew")

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.detector.load_state_dict(part("model."))
        for key, value in part("ema.").items():
            self.ema.average[key].copy_(value)
        restore_optimizer(self.optimizer, part("optimizer."))
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self.processes.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.processes.device)
        self.ema.updates = state.pop("ema_updates")
        scaler = state.pop("scaler")
        if scaler:
            self.scaler.load_state_dict(scaler)
        before, now = state.pop("threads", None), torch.get_num_threads()
        self.progress = Progress(**state)
        self._saved = self._resumable()
        last = max(0, self.progress.updates - 1)
        rate = learning_rate(self.config.optim, step=last, steps_per_epoch=self.updates_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if before in (None, now):
            return []
        return [
            f"saved by torch with {before} threads, now it has {now}: it rounds sums in another order, so the weights "
            "will not be those of a run without interruption to the last bit"
        ]


def is_number(value: Any) -> bool:
    """Whether a cell of a row is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
