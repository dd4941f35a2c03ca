"""Offsets between boxes and anchors: what the network predicts in place of coordinates (SSD, section 2.2)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multibox.core.structures import Raw, Stage
from multibox.errors import ContractError
from multibox.spec.postprocess import DEFAULT_VARIANCES, MAX_LOG_SIZE, Activation, Variances

__all__ = [
    "DEFAULT_VARIANCES",
    "MAX_LOG_SIZE",
    "REJECTED_LOGIT",
    "SMALLEST_SIDE",
    "Variances",
    "decode",
    "encode",
    "fold",
    "stage_anchors",
]

SMALLEST_SIDE = 1e-6
"""Sides are taken to be at least this long (unit frame) when encoding: a thousandth of a pixel in a picture of
1000 pixels. Below lie only degenerate boxes, whose logarithm or quotient would not be finite."""


REJECTED_LOGIT = 80.0
"""Distance between background and the classes for a default box that a gate rejects: the softmax or sigmoid of it is
1.8e-35, which is a normal float32 number and below every threshold in use."""


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


def fold(
    raw: Raw,
    anchors_cxcywh: Float[Tensor, "anchors 4"],
    variances: Variances = DEFAULT_VARIANCES,
    *,
    gates: Sequence[float | None] = (),
    activation: Activation = "softmax",
    mean_scores: bool = False,
) -> Stage:
    """One stage of predictions against the default boxes, which says what all stages of `raw` say together.

    A single stage is returned as it is. Of a cascade, boxes are decoded through the stages and encoded against the
    default boxes; as every box, one grows to at most 62.5 times its default box (`MAX_LOG_SIZE`). Class scores are
    those of the last stage, or the mean of the stages that tell its classes. A gate sends the default boxes that it
    rejects to background (RefineDet, section 3.4: "negative anchor filtering").

    Args:
        raw: the stages.
        anchors_cxcywh: the default boxes, on the device of the stages.
        variances: scale of the offsets in every stage.
        gates: for each stage but the last, the least probability of an object with which a default box passes; None
            for a stage that rejects nothing. A gating stage has two scores for softmax (background, object), or one for
            sigmoid. Missing ones reject nothing.
        activation: of the class scores of the last stage.
        mean_scores: take the mean logits of all stages with as many scores as the last one. Each stage judges a box at
            its own place, so their errors differ (Cai and Vasconcelos, 2018, section 4.2, sum a cascade's scores too).

    Raises:
        ContractError: no stage, or a gate whose stage has scores of more than one class.
    """
    if not raw:
        raise ContractError("expected at least one stage of predictions, got none")
    last = raw[-1]
    if len(raw) == 1:
        return last
    boxes_cxcywh = decode(last.offsets, stage_anchors(raw, anchors_cxcywh, variances)[-1], variances)
    logits = last.logits
    if mean_scores:
        alike = [stage.logits for stage in raw if stage.logits.shape == logits.shape]
        logits = torch.stack(alike).mean(dim=0)
    for stage, gate in zip(raw[:-1], gates, strict=False):
        if gate is not None:
            logits = torch.where(_rejected(stage, gate)[..., None], _background(logits, activation), logits)
    return Stage(encode(boxes_cxcywh, anchors_cxcywh, variances), logits)


def _rejected(stage: Stage, gate: float) -> Bool[Tensor, "batch anchors"]:
    scores = stage.logits.shape[-1]
    if scores not in (1, 2):
        raise ContractError(f"a gate needs the scores of one class (1, or 2 with background), its stage has {scores}")
    logits = _at_least_float32(stage.logits)
    probability = logits.sigmoid()[..., 0] if scores == 1 else logits.softmax(dim=-1)[..., 1]
    return probability < gate


def _background(logits: Float[Tensor, "batch anchors scores"], activation: Activation) -> Float[Tensor, " scores"]:
    """One row of logits that says background."""
    row = logits.new_zeros(logits.shape[-1])
    if activation == "sigmoid":
        return row - REJECTED_LOGIT
    return torch.nn.functional.pad(row[1:], (1, 0), value=REJECTED_LOGIT)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
