"""What passes between a model, its loss and its post-processing."""

import copy
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from multibox.errors import ContractError

__all__ = ["Raw", "Stage", "Target"]

FARTHEST_OUTSIDE = 1.0
"""How far a truth box may reach beyond its picture, in pictures. A crop leaves boxes a little outside; boxes
farther away than a whole picture are pixels that were not divided by the picture's size."""

_NOT_GIVEN = torch.zeros(0, dtype=torch.bool)


class Stage(NamedTuple):
    """One round of predictions for a batch: what the network says about each anchor, before any decoding.

    `logits` hold one value per class, and with a softmax head the background's value before them.
    """

    offsets: Float[Tensor, "batch anchors 4"]
    logits: Float[Tensor, "batch anchors scores"]


Raw = tuple[Stage, ...]
"""A network's output: one stage, or several in a cascade, where the anchors of a stage are the decoded boxes
of the stage before."""


@dataclass(frozen=True, eq=False)
class Target:
    """The true objects of one picture, zero or more.

    Args:
        truth_unit_xyxy: float32 corners in fractions of the network input's width and height.
        labels: int64 classes from 0, background not counted.
        ignore: objects that must be neither learnt nor taken for background (crowds, difficult ones);
            none when left out.

    Raises:
        ContractError: a wrong shape, dtype or device; a box that is not finite, has no area or is not in the
            unit frame; a negative label.
    """

    truth_unit_xyxy: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    ignore: Bool[Tensor, " objects"] = _NOT_GIVEN

    def __post_init__(self) -> None:
        if self.ignore is _NOT_GIVEN:
            object.__setattr__(self, "ignore", torch.zeros_like(self.labels, dtype=torch.bool))
        _check_layout(self)
        _check_values(self)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Target":
        """The same target on `device`."""
        moved = copy.copy(self)  # not a second construction: its checks would wait for the device
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            object.__setattr__(moved, field.name, tensor.to(device, non_blocking=non_blocking))
        return moved


def _check_layout(target: Target) -> None:
    count = target.labels.numel()
    expected = {
        "truth_unit_xyxy": ((count, 4), torch.float32),
        "labels": ((count,), torch.int64),
        "ignore": ((count,), torch.bool),
    }
    for name, (shape, dtype) in expected.items():
        tensor: Tensor = getattr(target, name)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ContractError(
                f"{name}: expected {dtype} of shape {list(shape)} ({count} labels), "
                f"got {tensor.dtype} of shape {list(tensor.shape)}"
            )
        if tensor.device != target.labels.device:
            raise ContractError(f"{name} is on {tensor.device}, labels are on {target.labels.device}")


def _check_values(target: Target) -> None:
    unit_xyxy = target.truth_unit_xyxy
    in_frame = (unit_xyxy >= -FARTHEST_OUTSIDE) & (unit_xyxy <= 1 + FARTHEST_OUTSIDE)
    problems = {
        "is not finite": ~unit_xyxy.isfinite().all(dim=1),
        "has no area; expected x1 < x2 and y1 < y2": ~(unit_xyxy[:, :2] < unit_xyxy[:, 2:]).all(dim=1),
        "is not in the unit frame; divide pixels by the picture's width and height": ~in_frame.all(dim=1),
    }
    for problem, broken in problems.items():
        if broken.any():
            index = int(broken.nonzero()[0])
            raise ContractError(f"truth box {index} {unit_xyxy[index].tolist()} {problem}")
    if (target.labels < 0).any():
        index = int((target.labels < 0).nonzero()[0])
        raise ContractError(
            f"label {int(target.labels[index])} of truth box {index}: labels start at 0, without background"
        )
