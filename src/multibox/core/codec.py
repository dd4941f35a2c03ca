"""Offsets between boxes and anchors: what the network predicts in place of coordinates (SSD, section 2.2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from multibox.core.structures import Raw
from multibox.spec.postprocess import DEFAULT_VARIANCES, MAX_LOG_SIZE, Variances

__all__ = [
    "DEFAULT_VARIANCES",
    "MAX_LOG_SIZE",
    "SMALLEST_SIDE",
    "Variances",
    "decode",
    "encode",
    "stage_anchors",
]

SMALLEST_SIDE = 1e-6
"""Sides are taken to be at least this long (unit frame) when encoding: a thousandth of a pixel in a picture of
1000 pixels. Below lie only degenerate boxes, whose logarithm or quotient would not be finite."""


def encode(
    unit_cxcywh: Float[Tensor, "*#batch 4"],
    anchors_cxcywh: Float[Tensor, "*#batch 4"],
    variances: Variances = DEFAULT_VARIANCES,
) -> Float[Tensor, "*#batch 4"]:
    """Offsets that lead from each anchor to its box: centre shift in anchor sides, logarithm of the size ratio.

    `variances` divide them so that the four are of like spread. Finite for every finite box (`SMALLEST_SIDE`).
    """
    box, anchor = _at_least_float32(unit_cxcywh), _at_least_float32(anchors_cxcywh)
    spread = box.new_tensor(variances)
    anchor_wh = anchor[..., 2:].clamp(min=SMALLEST_SIDE)
    shift = (box[..., :2] - anchor[..., :2]) / anchor_wh
    growth = (box[..., 2:].clamp(min=SMALLEST_SIDE) / anchor_wh).log()
    return torch.cat([shift / spread[:2], growth / spread[2:]], dim=-1)


def decode(
    offsets: Float[Tensor, "*#batch 4"],
    anchors_cxcywh: Float[Tensor, "*#batch 4"],
    variances: Variances = DEFAULT_VARIANCES,
) -> Float[Tensor, "*#batch 4"]:
    """Boxes (`unit_cxcywh`) that `offsets` point to from their anchors; undoes `encode`.

    A box grows to at most exp(MAX_LOG_SIZE) = 62.5 times its anchor, because an untrained network's exponent
    would otherwise overflow.
    """
    offset, anchor = _at_least_float32(offsets), _at_least_float32(anchors_cxcywh)
    spread = offset.new_tensor(variances)
    centre = anchor[..., :2] + offset[..., :2] * spread[:2] * anchor[..., 2:]
    wh = anchor[..., 2:] * (offset[..., 2:] * spread[2:]).clamp(max=MAX_LOG_SIZE).exp()
    return torch.cat([centre, wh], dim=-1)


def stage_anchors(
    raw: Raw, anchors_cxcywh: Float[Tensor, "anchors 4"], variances: Variances = DEFAULT_VARIANCES
) -> list[Float[Tensor, "*batch anchors 4"]]:
    """The anchors that each stage starts from: the given ones, then the boxes of the stage before, per picture.

    They carry no gradient: a stage learns to improve on its anchors, not to move them for the next stage.
    """
    anchors = [anchors_cxcywh]
    for stage in raw[:-1]:
        anchors.append(decode(stage.offsets.detach(), anchors[-1], variances))
    return anchors


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
