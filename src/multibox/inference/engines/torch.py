"""Torch engines, for `.safetensors` files: eager, and compiled by torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.devices import resolve_device
from multibox.errors import MissingDependencyError, OptionError, first_line
from multibox.spec.card import ModelCard

__all__ = ["CompiledEngine", "EagerEngine", "TorchEngine", "open_network", "torch_threads"]

FloatArray = NDArray[np.float32]


_one_number = threading.RLock()  # of threads, for the whole process


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads within the block.

    torch has one number for the whole process, so blocks of several threads run one after the other: else one would
    compute with another's number, and the last to leave would leave a wrong one behind.
    """
    import torch

    with _one_number:
        before = torch.get_num_threads()
        if before == count:
            yield
            return
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class TorchEngine:
    """Runs a network in memory.

    Args:
        network: a `multibox.models` network, in evaluation mode, on the device.
        card: what is known about it.
        device: a torch device name.
        threads: for torch to compute with in `run`; as many as it has set when left out. The process's own number is
            left as it was: it would change the last bits of what others compute, a training for one.
    """

    name = "torch"
    batch: int | None = None

    def __init__(self, network: Any, card: ModelCard, *, device: str = "cpu", threads: int | None = None) -> None:
        import torch

        from multibox.models.folded import FoldedNetwork

        self.card, self.device = card, device
        self.threads = threads or torch.get_num_threads()
        self._torch = torch
        self._network = FoldedNetwork(network)

    def run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Network input [B, 3, H, W] -> offsets [B, A, 4] and logits [B, A, K], the stages folded."""
        torch = self._torch
        with torch_threads(self.threads), torch.inference_mode(), self._full_float32():
            # Depthwise convolutions run faster on the CPU in this memory order.
            batch = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
            offsets, logits = self._forward(batch)
            return offsets.float().cpu().numpy(), logits.float().cpu().numpy()

    def _full_float32(self) -> AbstractContextManager[None]:
        """On CUDA, convolutions in float32 as everywhere else: cuDNN would round their inputs to TF32's 10 bits."""
        cudnn = self._torch.backends.cudnn
        if not self.device.startswith("cuda"):
            return nullcontext()
        kept: AbstractContextManager[None] = cudnn.flags(
            enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
        )
        return kept

    def _forward(self, batch: Any) -> tuple[Any, Any]:
        stage = self._network(batch)
        return stage.offsets, stage.logits

    def concurrent(self, workers: int) -> None:
        """None: each thread that calls torch would bring all of torch's own threads along."""


class EagerEngine(TorchEngine):
    """Runs a `.safetensors` file written by multibox.

    Args:
        path: the model file.
        device: a torch device name, or "auto".
        threads: as for `TorchEngine`.

    Raises:
        MissingDependencyError: torch is not installed.
        ModelFileError: missing, damaged, or not written by multibox.
        OptionError: no such device.
    """

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        torch, device = _torch_for(device, purpose=f"running {path.name}")
        from multibox.weights.store import load_detector

        network, card = load_detector(path, device=device)
        super().__init__(network.to(memory_format=torch.channels_last), card, device=device, threads=threads)


def is_foreign(path: Path) -> bool:
    """Whether an importer knows a file."""
    from multibox.weights.foreign.table import recognised

    return recognised(path) is not None


def open_network(
    model: str | Path, *, device: str, threads: int | None, builder_arguments: Mapping[str, Any]
) -> TorchEngine:
    """The engine for a model that no engine opens as a file: foreign weights, or a network that is built anew.

    Raises:
        ModelFileError, OptionError, ContractError: as `multibox.weights.opening.open_model` and `EagerEngine` do.
    """
    torch, device = _torch_for(device, purpose=f"running {model}")
    from multibox.weights.opening import open_model

    network, card = open_model(model, **builder_arguments)
    network = network.to(device).to(memory_format=torch.channels_last)
    return TorchEngine(network, card, device=device, threads=threads)


def _torch_for(device: str, *, purpose: str) -> tuple[Any, str]:
    """The package, and the device that the name stands for.

    Raises:
        MissingDependencyError: torch or safetensors is not installed.
        OptionError: no such device.
    """
    try:
        import safetensors  # noqa: F401
        import torch
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", purpose, "train") from None
    return torch, str(resolve_device(device))


class CompiledEngine(EagerEngine):
    """As `EagerEngine`, but through `torch.compile`, which takes a minute at opening, and once more when the number of
    pictures at once changes. It needs a C++ compiler on a CPU, and gains most on a GPU.

    Raises:
        OptionError: also when torch cannot compile here.
    """

    name = "torch-compile"

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        super().__init__(path, device=device, threads=threads)
        self._compiled = self._torch.compile(super()._forward)
        try:
            self.run(np.zeros((1, 3, *self.card.preprocess.size_hw), np.float32))
        except Exception as error:  # whatever the compilers raise
            reason = f"engine {self.name!r} does not work here ({first_line(error)})"
            raise OptionError(f"{reason}; use engine=torch") from error

    def _forward(self, batch: Any) -> tuple[Any, Any]:
        offsets, logits = self._compiled(batch)
        return offsets, logits
