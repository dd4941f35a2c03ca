"""From raw predictions to detections on tensors; the rules are those of `multibox.spec.postprocess.PostprocessSpec`."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torchvision.ops import nms

from multibox.core.boxes import clip_xyxy, cxcywh_to_xyxy
from multibox.core.codec import decode
from multibox.core.structures import Stage
from multibox.errors import ContractError
from multibox.spec.postprocess import FIRST_PREFIX, PREFIX_GROWTH, PostprocessSpec, Variances, class_columns

__all__ = ["PictureDetections", "postprocess"]


class PictureDetections(NamedTuple):
    """What was found in one picture, best first: boxes within the unit frame, scores, labels from 0."""

    unit_xyxy: Float32[Tensor, "found 4"]
    scores: Float32[Tensor, " found"]
    labels: Int64[Tensor, " found"]


@torch.no_grad()
def postprocess(
    stage: Stage,
    anchors_cxcywh: Float[Tensor, "anchors 4"],
    *,
    variances: Variances,
    spec: PostprocessSpec,
    classes: Iterable[int] | None = None,
) -> list[PictureDetections]:
    """The detections of each picture of a batch, from one stage against the default boxes (a cascade's: `fold`).

    `classes` are the only ones to look at, all when left out.

    Raises:
        ContractError: shapes that do not agree, a value that is not finite, a class that does not exist.
    """
    _check(stage, anchors_cxcywh, least_scores=2 if spec.activation == "softmax" else 1)
    wanted = class_columns(classes, stage.logits.shape[-1] - (spec.activation == "softmax"))
    columns = None if wanted is None else torch.from_numpy(wanted).to(stage.logits.device)
    boxes_cxcywh = decode(stage.offsets, anchors_cxcywh, variances).float()
    return [
        _one_picture(logits.float(), unit_cxcywh, spec=spec, columns=columns)
        for logits, unit_cxcywh in zip(stage.logits, boxes_cxcywh, strict=True)
    ]


def _one_picture(
    logits: Float32[Tensor, "anchors scores"],
    unit_cxcywh: Float32[Tensor, "anchors 4"],
    *,
    spec: PostprocessSpec,
    columns: Int64[Tensor, " wanted"] | None,
) -> PictureDetections:
    scores = logits.softmax(dim=-1)[:, 1:].contiguous() if spec.activation == "softmax" else logits.sigmoid()
    if columns is not None:
        scores = scores[:, columns]
    threshold = float(np.float32(spec.score_threshold))  # in the type of the scores, as in the NumPy twin
    prefix = FIRST_PREFIX
    while True:
        # Greedy decisions about the best candidates do not depend on the ones that follow.
        flat = _best_first(scores, threshold=threshold, count=prefix)
        complete = flat.numel() < prefix
        anchor, column = flat // max(1, scores.shape[1]), flat % max(1, scores.shape[1])
        label = column if columns is None else columns[column]
        if spec.top_k is not None and spec.top_k < anchor.numel():
            few = _rank_in_class(label) < spec.top_k
            flat, anchor, label = flat[few], anchor[few], label[few]
        unit_xyxy = cxcywh_to_xyxy(unit_cxcywh[anchor])
        if spec.clip == "before_nms":
            unit_xyxy = clip_xyxy(unit_xyxy)
        kept = _keep(unit_xyxy, None if spec.class_agnostic else label, nms_iou=spec.nms_iou)
        if complete or kept.numel() >= spec.max_detections:
            kept = kept[: spec.max_detections]
            return PictureDetections(clip_xyxy(unit_xyxy[kept]), scores.flatten()[flat[kept]], label[kept])
        prefix *= PREFIX_GROWTH


def _best_first(scores: Float32[Tensor, "anchors classes"], *, threshold: float, count: int) -> Int64[Tensor, " best"]:
    """Places in the flattened scores of the `count` highest above `threshold`, falling; equal ones in order.

    The `count`-th best of the anchors' best scores is a lower bound for the `count`-th best score, and it comes
    from a list as short as the anchors. Only the few scores up to this bound need sorting.
    """
    above = scores > threshold
    if count < scores.shape[0] and scores.shape[1]:
        above &= scores >= scores.amax(dim=1).topk(count).values[-1]
    flat = above.flatten().nonzero().squeeze(1)
    values = scores.flatten()[flat]
    if values.numel() > count:
        bar = values.topk(count).values[-1]
        higher, level = (values > bar).nonzero().squeeze(1), (values == bar).nonzero().squeeze(1)
        best = torch.cat([higher, level[: count - higher.numel()]])
        flat, values = flat[best], values[best]
    return flat[values.argsort(descending=True, stable=True)]


def _rank_in_class(labels: Int64[Tensor, " candidates"]) -> Int64[Tensor, " candidates"]:
    """How many earlier entries have the same label."""
    grouped, by_class = labels.sort(stable=True)
    place = torch.arange(labels.numel(), device=labels.device)
    return torch.empty_like(labels).scatter_(0, by_class, place - torch.searchsorted(grouped, grouped))


def _keep(
    sorted_xyxy: Float32[Tensor, "candidates 4"],
    groups: Int64[Tensor, " candidates"] | None,
    *,
    nms_iou: float,
) -> Int64[Tensor, " kept"]:
    """Rows that suppression keeps of boxes in falling score order; only equal groups suppress each other.

    Groups are moved apart so that one call handles all of them. In float32 a shift of 80 frames would round
    coordinates to 2^-17, several thousandths of a pixel, and turn close decisions; in float64 it is 2^-46.
    """
    moved = sorted_xyxy.double()
    if groups is not None and groups.numel():
        frame = moved.max() - moved.min() + 1
        moved = moved + (groups * frame).unsqueeze(1)
    falling = torch.arange(len(moved), 0, -1, device=moved.device, dtype=moved.dtype)
    kept: Tensor = nms(moved, falling, nms_iou)
    return kept


def _check(stage: Stage, anchors_cxcywh: Tensor, *, least_scores: int) -> None:
    offsets, logits = stage
    batch, anchors = offsets.shape[0], anchors_cxcywh.shape[0]
    if tuple(offsets.shape) != (batch, anchors, 4) or anchors == 0:
        raise ContractError(f"offsets: expected [{batch}, {anchors or 'anchors'}, 4], got {list(offsets.shape)}")
    if tuple(logits.shape[:-1]) != (batch, anchors) or logits.shape[-1] < least_scores:
        raise ContractError(f"logits: expected [{batch}, {anchors}, at least {least_scores}], got {list(logits.shape)}")
    _check_finite(stage)


def _check_finite(stage: Stage) -> None:
    for name, tensor in zip(Stage._fields, stage, strict=True):
        if tensor.numel() == 0 or all(limit.isfinite() for limit in torch.aminmax(tensor)):
            continue
        broken = [int(n) for n in (~tensor.isfinite()).flatten(1).sum(dim=1)]
        pictures = ", ".join(f"{n} in picture {b}" for b, n in enumerate(broken) if n)
        raise ContractError(
            f"{sum(broken)} of {tensor.numel()} {name} are not finite ({pictures}); the network or its input is broken"
        )
