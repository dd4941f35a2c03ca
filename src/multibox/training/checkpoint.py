"""What a run leaves in its folder while it goes: weights, and the state from which it can go on. Nothing is pickled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from multibox.errors import ModelFileError, MultiboxError, first_line
from multibox.files import atomic_write
from multibox.models.network import DetectionNetwork
from multibox.training.progress import EpochRow, Progress

__all__ = ["RunFiles", "RunState", "load_state", "save_state", "writing"]

STATE_KEY = "multibox_training"
FORMAT_VERSION = 2


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in the user's terms that a file of the run cannot be written.

    Raises:
        MultiboxError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
        raise MultiboxError(f"{path}: {reason}; what was saved before is untouched, free some space") from None


def save_state(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON values into one file.

    Args:
        path: ends in `.safetensors`.
        tensors: of any dtype and device.
        state: JSON values.

    Raises:
        MultiboxError: it cannot be written; the old file is untouched.
    """
    from safetensors.torch import save

    flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    header = json.dumps({"format": FORMAT_VERSION, **state}, sort_keys=True, allow_nan=True)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(flat, metadata={STATE_KEY: header}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `save_state`.

    Raises:
        ModelFileError: not such a file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        remedy = (
            "give the run folder whose weights/ holds the state of a run, or start anew with its config.toml as recipe"
        )
        raise ModelFileError(str(path), "no such file", remedy)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(STATE_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
        state = json.loads(header or "")
    except (SafetensorError, OSError, ValueError) as error:
        reason = f"holds no state of a training run ({first_line(error)})"
        raise ModelFileError(str(path), reason, "start the training anew from weights/best.safetensors") from None
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT_VERSION:
        raise ModelFileError(str(path), "was written by another version", "resume with that one, or start anew")
    return tensors, state


@dataclass(frozen=True)
class RunState:
    """What changes while a run goes, besides its `Progress`.

    Args:
        network: whose weights move.
        averaged: their running average.
        optimizer: over the parameters of `network`.
        scaler: of the gradients under fp16.
        device: that all are on; its random numbers are saved too.
    """

    network: DetectionNetwork
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device

    @property
    def averaged_detector(self) -> DetectionNetwork:
        """What is validated and saved."""
        assert isinstance(self.averaged.module, DetectionNetwork)
        return self.averaged.module

    def packed(self, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything as tensors and JSON values, for `save_state`."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.averaged.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors, {"progress": asdict(progress), "scaler": self.scaler.state_dict()}

    def unpack(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> Progress:
        """Inverse of `packed`; the progress is returned, the rest takes its place."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("model."))
        self.averaged.load_state_dict(part("average."))
        memory: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer.").items():
            number, _, name = key.partition(".")
            memory.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": memory, "param_groups": groups})
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        return Progress(**state["progress"])


class RunFiles:
    """The files that a run writes while it goes; only the first of several processes writes.

    Args:
        folder: of the run.
        state: what is saved.
        identity: what the state belongs to: a digest of each thing, by the beginning of the message that says that it
            is another one.
        save_weights: writes a detector with the numbers of an epoch as a model file.
        writes: whether this process writes.
    """

    def __init__(
        self,
        folder: Path,
        state: RunState,
        identity: dict[str, str],
        save_weights: Callable[[Path, DetectionNetwork, EpochRow], None],
        *,
        writes: bool,
    ) -> None:
        self.folder, self.state, self.identity, self.writes = folder, state, identity, writes
        self._save_weights = save_weights
        self.saved_at, self.saved = time.monotonic(), "nothing was saved"

    @property
    def path(self) -> Path:
        """Where the state is kept."""
        return self.folder / "weights" / "last.resume.safetensors"

    def save(self, progress: Progress, *, best: bool = False) -> None:
        """Write the state, and after an epoch the averaged weights; everything up to here survives then.

        Args:
            progress: of the run.
            best: whether the averaged weights are the best so far.

        Raises:
            MultiboxError: a file cannot be written; the old ones are untouched.
        """
        self.saved_at = time.monotonic()
        if not self.writes:
            return
        if progress.step == 0 and progress.history:
            # Before the state, so that a run killed in between computes the epoch's end again.
            for name in ("last", "best") if best else ("last",):
                path = self.folder / "weights" / f"{name}.safetensors"
                self._save_weights(path, self.state.averaged_detector, progress.history[-1])
        tensors, state = self.state.packed(progress)
        save_state(self.path, tensors, {**state, "identity": self.identity, "threads": torch.get_num_threads()})
        self._note_saved(progress)

    def restore(self) -> tuple[Progress, list[str]]:
        """The saved progress; everything else of the saved state takes its place.

        Returns:
            The progress, and what will make the result differ from that of a run without interruption, a line each.

        Raises:
            ModelFileError: there is no saved state, or it is damaged.
            MultiboxError: it belongs to something else.
        """
        if self.writes:
            for partial in self.folder.rglob(".*.partial*"):  # of files that were being written when the run was killed
                partial.unlink()
        tensors, state = load_state(self.path)
        for name, digest in self.identity.items():
            if state["identity"].get(name) != digest:
                raise MultiboxError(f"{name} {self.folder} was started with; restore them, or start a new run")
        progress = self.state.unpack(tensors, state)
        self._note_saved(progress)
        before, now = state["threads"], torch.get_num_threads()
        if before == now:
            return progress, []
        return progress, [
            f"saved by torch with {before} threads, now it has {now}: it rounds sums in another order, so the weights "
            "will not be those of a run without interruption to the last bit"
        ]

    def _note_saved(self, progress: Progress) -> None:
        where = f"epoch {progress.epoch + 1}, step {progress.step}"
        self.saved = f"saved in {where}; go on with: multibox train --resume {self.folder}"
