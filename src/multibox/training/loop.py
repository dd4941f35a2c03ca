"""The loop: batches in, weights out. One step is `Trainer._step`; everything else is when, and what is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multibox.core.loss import Focal, MultiboxLosses, at_least_one, multibox_loss
from multibox.core.matching import MatchOptions
from multibox.core.structures import Raw, Target
from multibox.data import Dataset
from multibox.errors import MultiboxError
from multibox.models.network import DetectionNetwork
from multibox.spec.anchors import anchors_digest
from multibox.training.checkpoint import RunFiles, RunState
from multibox.training.config import TrainConfig
from multibox.training.distributed import Processes
from multibox.training.evaluate import evaluate
from multibox.training.failures import TrainingError, explained, nonfinite_error
from multibox.training.loader import Batch, EpochBatches, TrainingPictures, make_loader, to_network
from multibox.training.optim import averaged_weights, learning_rate, make_optimizer, set_training
from multibox.training.plots import save_batch_picture
from multibox.training.progress import Callback, EpochRow, Progress, StepRecord
from multibox.training.workers import received

__all__ = ["AUTOCAST", "Trainer"]

AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STOP_CHECK = 10  # steps after which several processes ask each other whether to stop
EVALUATION_BATCH = 16
DRAWN_BATCHES = 3


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
        knows_classes: whether the detector scores classes of the data already; then it is validated before the first
            step and is a candidate for the best, as epoch 0.
        save_weights: writes a detector with metrics as a model file.
    """

    def __init__(
        self,
        detector: DetectionNetwork,
        pictures: TrainingPictures,
        validation: Dataset | None,
        config: TrainConfig,
        *,
        folder: Path,
        processes: Processes,
        fingerprint: str,
        save_weights: Callable[[Path, DetectionNetwork, dict[str, Any]], None],
        knows_classes: bool = False,
    ) -> None:
        self.knows_classes = knows_classes
        self.config, self.folder, self.processes = config, folder, processes
        self.pictures, self.validation = pictures, validation
        self.callbacks: list[Callback] = []
        device = processes.device
        self.detector = detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.anchors = self.detector.anchors_cxcywh()
        self.averaged = averaged_weights(self.detector, config.optim.ema)
        self.optimizer = make_optimizer(self.detector, config.optim)
        network: nn.Module = torch.compile(self.detector) if config.run.compile else self.detector  # type: ignore[assignment]
        self.network = processes.shared(network)
        self.autocast = AUTOCAST[config.run.amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.run.amp == "fp16")
        state = RunState(self.detector, self.averaged, self.optimizer, self.scaler, device)
        identity = {
            f"{config.data.data} is not what": fingerprint,
            "the default boxes (model=, anchors=) are not those that": anchors_digest(self.anchors.cpu().numpy()),
        }
        self.files = RunFiles(folder, state, identity, save_weights, writes=processes.writes)
        self.batches = EpochBatches(
            len(pictures), config.optim.batch, seed=config.run.seed, rank=processes.rank, world=processes.world
        )
        self.loader = self._loader()
        self.progress = Progress()
        self.stop_requested = False

    def _loader(self) -> DataLoader[Any]:
        return make_loader(
            self.pictures, self.batches, workers=self.config.data.workers, pin=self.processes.device.type == "cuda"
        )

    def close(self) -> None:
        """End the processes that make batches; they start again when a batch is asked for."""
        self.loader = self._loader()  # the old one ends its processes when nothing refers to it

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
                self.files.save(self.progress)  # so that a run can go on from the first moment
                if self.knows_classes and self.validation is not None:
                    self._validate_start()
            return self._run()
        except (RuntimeError, MemoryError, MultiboxError) as error:
            found = explained(error, self.config.optim, saved=self.files.saved)
            if found is None:
                raise
            raise found from None
        finally:
            for callback in self.callbacks:
                callback.on_end()

    def _run(self) -> bool:
        while self.progress.epoch < self.config.optim.epochs and not self._patience_is_over:
            if not self._epoch() and self.progress.epoch < self.config.optim.epochs:
                self.files.save(self.progress)
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
        with closing(received(self.loader, workers=self.config.data.workers)) as batches:
            for batch in batches:
                waited = time.perf_counter() - mark
                for path, reason in batch.failures:
                    self._skip(path, reason)
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
                if moved and time.monotonic() - self.files.saved_at > self.config.run.save_every:
                    self.files.save(self.progress)
        self._finish_epoch()
        return not self._should_stop(0)

    def _draw(self, batch: Batch) -> None:
        """A look at what is learnt from."""
        progress, wanted = self.progress, self.config.run.plots and self.processes.writes
        if wanted and progress.epoch == 0 and progress.step < DRAWN_BATCHES:
            path = self.folder / f"batch-{progress.step + 1}.jpg"
            save_batch_picture(path, batch, self.anchors.cpu(), self.matching[0], self.pictures.annotations.class_map)

    @property
    def matching(self) -> list[MatchOptions]:
        """How default boxes are matched to objects, for each stage."""
        overlaps, stages = self.config.loss.match_iou, self.detector.spec.stages
        if not overlaps:
            return [stage.matching for stage in stages]
        overlaps = overlaps * len(stages) if len(overlaps) == 1 else overlaps
        return [MatchOptions(positive_threshold=overlap, negative_threshold=overlap) for overlap in overlaps]

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
            found = explained(error, self.config.optim, saved=self.files.saved)
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

    def _set_rate(self, updates: int, rate: float | None = None) -> None:
        if rate is None:
            rate = learning_rate(self.config.optim, step=updates, steps_per_epoch=self.updates_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]

    def update(self, rate: float | None = None) -> None:
        """Move the weights; the learning rate is the schedule's when left out."""
        self._set_rate(self.progress.updates, rate)
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
        self.averaged.update_parameters(self.detector)

    def _record(self, losses: MultiboxLosses, batch: Batch, waited: float, seconds: float) -> None:
        progress = self.progress
        record = StepRecord(
            progress.epoch,
            progress.step,
            len(self.batches),
            float(losses.classification.detach()),
            float(losses.localization.detach()),
            int(losses.positives),
            self.rate,
            waited,
            seconds,
            len(batch.numbers) * self.processes.world,
        )
        progress.add(record)
        for callback in self.callbacks:
            callback.on_step(record)

    def _skip(self, path: str, reason: str, then: str = "another picture takes its place") -> None:
        if path not in self.progress.skipped:
            self.progress.skipped[path] = reason
            self.note(f"{path}: {reason}; {then}")

    def note(self, text: str) -> None:
        """Tell the user something."""
        for callback in self.callbacks:
            callback.on_note(text)

    def _finish_epoch(self) -> None:
        progress, config = self.progress, self.config
        for skipped in self.processes.gather(progress.skipped):
            for path, reason in skipped.items():
                self._skip(path, reason)
        sums = dict(zip(progress.sums, self.processes.sum([*progress.sums.values()]), strict=True))
        row = progress.finish_epoch(sums, steps=len(self.batches), processes=self.processes.world, rate=self.rate)
        last = progress.epoch == config.optim.epochs
        better = self.validation is None
        if self.validation is not None and (last or progress.epoch % config.run.val_every == 0):
            better = self._validate(row)
        self._finish_row(row, best=better)

    def _validate_start(self) -> None:
        """Epoch 0: what the detector scores before it learns anything here."""
        row: EpochRow = {"epoch": 0}
        self._validate(row)
        self._finish_row(row, best=True)

    def _finish_row(self, row: EpochRow, *, best: bool) -> None:
        """Keep the row of an epoch with its weights, and tell of it."""
        self.progress.history.append(row)
        self.files.save(self.progress, best=best)
        for callback in self.callbacks:
            callback.on_epoch(row)

    def _validate(self, row: EpochRow) -> bool:
        """Add the numbers of the averaged weights to the row; whether they are the best so far."""
        assert self.validation is not None
        started = time.perf_counter()
        result = evaluate(
            self.files.state.averaged_detector,
            self.validation,
            processes=self.processes,
            batch=EVALUATION_BATCH,
        )
        number = 0.0
        if result is not None:
            numbers = result.numbers
            for error in result.validation.problems:
                self._skip(error.source, error.reason, "the validation goes without it")
            row.update(AP=numbers.ap, AP50=numbers.ap50, AP75=numbers.ap75)
            number = 0.0 if numbers.ap is None else numbers.ap
        row["val_seconds"] = time.perf_counter() - started
        return self.progress.validated(self.processes.sum([number])[0])  # only the first process has it

    def restore(self) -> list[str]:
        """Go on from the saved state; see `RunFiles.restore`."""
        self.progress, notes = self.files.restore()
        self._set_rate(max(0, self.progress.updates - 1))
        return notes
