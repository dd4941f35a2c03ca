"""One process or many: what they agree on, and who may write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from multibox.devices import AUTO, resolve_device

__all__ = ["Processes", "processes"]


@dataclass(frozen=True)
class Processes:
    """One process among those of a run, as torchrun started them.

    Args:
        rank: 0 … world − 1; process 0 writes files.
        world: how many there are.
        device: its own.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def positives(self, count: Tensor) -> Tensor:
        """What the loss's sums are divided by: the matched anchors of all processes, at least 1, over their number.

        So the mean of all processes' gradients is that of one process with all pictures.
        """
        total = count.float()
        if self.world > 1:
            distributed.all_reduce(total)
        return total.clamp(min=1.0) / self.world

    def shared(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are the mean over all processes."""
        if self.world == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        shared = torch.tensor([int(flag)], device=self.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return bool(shared.item())

    def sum(self, values: list[float]) -> list[float]:
        """Element by element, over all processes."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        return [float(value) for value in shared]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in all of them, in the order of ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the other processes that torchrun started, if it did; NCCL on GPUs, gloo elsewhere.

    Raises:
        OptionError: a device that is not there.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1 and (device.startswith("cuda") or (device == AUTO and torch.cuda.is_available())):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = resolve_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Processes(0, 1, chosen)
        return
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, chosen)
    finally:
        distributed.destroy_process_group()
