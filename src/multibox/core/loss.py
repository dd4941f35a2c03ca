"""The MultiBox loss: what class each anchor shows, and where its object is (SSD, section 2.2, equations 1-3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from multibox.core.boxes import complete_iou, generalised_iou, xyxy_to_cxcywh
from multibox.core.codec import DEFAULT_VARIANCES, Variances, decode, encode, stage_anchors
from multibox.core.matching import DEFAULT_MATCHING, Matches, MatchOptions, match, pictures_at_once
from multibox.core.structures import Raw, Target
from multibox.errors import ContractError, OptionError
from multibox.spec.postprocess import Activation

__all__ = [
    "DEFAULT_MIN_NEGATIVES",
    "NEGATIVE_RATIO",
    "BoxLoss",
    "Focal",
    "MultiboxLosses",
    "at_least_one",
    "hard_negatives",
    "multibox_loss",
]

BoxLoss = Literal["smooth_l1", "giou", "ciou"]

NEGATIVE_RATIO = 3.0
"""Background anchors per matched anchor ("Hard negative mining")."""

DEFAULT_MIN_NEGATIVES = 3
"""Background anchors of a picture without objects: as many as one matched anchor brings. Without them such a
picture would teach nothing; with many more, a batch of empty pictures, whose sum is divided by one, would weigh
far more than a batch with objects."""

_NO_CLASS = -1


@dataclass(frozen=True)
class Focal:
    """Focal loss over every anchor in place of cross-entropy over mined ones (Lin et al., 2017, equation 5).

    Args:
        gamma: how much a class score that is right already is played down; 0 is plain cross-entropy.
        alpha: weight of an object's own class; all else has 1 - alpha.
    """

    gamma: float = 2.0
    alpha: float = 0.25


def at_least_one(positives: Int64[Tensor, ""]) -> Float[Tensor, ""]:
    """What the sums of a stage are divided by: its matched anchors, 1 where nothing is matched."""
    return positives.float().clamp(min=1.0)


class MultiboxLosses(NamedTuple):
    """Two scalars to add up (`total`) and, for the log, how many anchors were matched in all stages."""

    classification: Float[Tensor, ""]
    localization: Float[Tensor, ""]
    positives: Int64[Tensor, ""]

    @property
    def total(self) -> Tensor:
        """The value to minimise."""
        return self.classification + self.localization


def multibox_loss(
    raw: Raw,
    anchors_cxcywh: Float[Tensor, "anchors 4"],
    targets: Sequence[Target],
    *,
    activation: Activation = "softmax",
    negative_ratio: float = NEGATIVE_RATIO,
    min_negatives: int = DEFAULT_MIN_NEGATIVES,
    matching: MatchOptions | Sequence[MatchOptions] = DEFAULT_MATCHING,
    variances: Variances = DEFAULT_VARIANCES,
    localization_weight: float = 1.0,
    beta: float = 1.0,
    focal: Focal | None = None,
    box_loss: BoxLoss = "smooth_l1",
    normaliser: Callable[[Tensor], Tensor] = at_least_one,
) -> MultiboxLosses:
    """The loss of a batch, summed over its stages; each stage's sums are divided by its number of matched anchors.

    Classification is cross-entropy, over background and classes ("softmax") or per class ("sigmoid"), of the
    matched anchors and, in each picture, of the background anchors with the highest loss: `negative_ratio` for
    each matched one, `min_negatives` at least. Localization is smooth L1 (bent at `beta`, plain L1 when 0) of the
    matched anchors' offsets, times `localization_weight`. Computed in float32 whatever the network computes in;
    part of the graph even when nothing is matched.

    Each stage of a cascade is matched against its own anchors (`stage_anchors`), by the one rule `matching` or by the
    rule at its place in that sequence. A stage before the last may have scores of a single class where the last has
    several: it learns to tell objects of any class from background, as RefineDet's first stage does (Zhang et al.,
    2018, section 3.1).

    With `focal` (sigmoid only) classification takes every anchor that is matched or background, unmined. With
    `box_loss` "giou" or "ciou" localization is 1 - generalised or complete IoU of the decoded boxes. `normaliser`
    turns a stage's number of matched anchors into what its sums are divided by; several processes that share a batch
    agree there on one number.

    Raises:
        ContractError: shapes that do not agree, or a label that the network has no output for.
        OptionError: options out of range.
    """
    _check_options(activation=activation, negative_ratio=negative_ratio, min_negatives=min_negatives)
    if box_loss not in get_args(BoxLoss):
        raise OptionError(f"box_loss {box_loss!r} is unknown; known: {', '.join(get_args(BoxLoss))}")
    if focal is not None and activation != "sigmoid":
        raise OptionError("focal loss is for sigmoid scores; a softmax head needs mined negatives")
    _check_shapes(raw, anchors_cxcywh, targets)
    options = (matching,) * len(raw) if isinstance(matching, MatchOptions) else matching
    if len(options) != len(raw):
        raise OptionError(f"expected one matching for each of the {len(raw)} stages, got {len(options)}")
    background = int(activation == "softmax")
    _check_classes(raw, background)
    _check_labels(targets, class_count=raw[-1].logits.shape[-1] - background)

    stages = []
    all_anchors = stage_anchors(raw, anchors_cxcywh, variances)
    for stage, anchors, option in zip(raw, all_anchors, options, strict=True):
        matches = match(anchors, targets, options=option)
        expected = _expected(matches, anchors, targets, class_count=stage.logits.shape[-1] - background)
        if focal is None:
            negatives = hard_negatives(
                _background_loss(stage.logits, activation),
                matches,
                negative_ratio=negative_ratio,
                min_negatives=min_negatives,
            )
            chosen = (matches.positive | negatives).nonzero(as_tuple=True)
            classification = _class_loss(stage.logits[chosen], expected.labels[chosen], activation)
        else:
            chosen = (matches.positive | matches.negative).nonzero(as_tuple=True)
            classification = _focal_loss(stage.logits[chosen], expected.labels[chosen], focal)
        offsets = stage.offsets[expected.picture, expected.anchor].float()
        localization = _box_loss(offsets, expected, variances, box_loss, beta)
        positives = matches.positive.sum()
        divisor = normaliser(positives)
        stages.append(
            (
                classification / divisor,
                localization_weight * localization / divisor,
                positives,
            )
        )
    return MultiboxLosses(*(torch.stack(parts).sum(0) for parts in zip(*stages, strict=True)))


class _Expected(NamedTuple):
    """What the anchors should predict: a class each (`_NO_CLASS` without object), and a box each matched one."""

    labels: Int64[Tensor, "batch anchors"]
    picture: Int64[Tensor, " matched"]
    anchor: Int64[Tensor, " matched"]
    anchors_cxcywh: Float[Tensor, "matched 4"]
    truth_cxcywh: Float[Tensor, "matched 4"]


def _expected(
    matches: Matches,
    anchors_cxcywh: Float[Tensor, "*batch anchors 4"],
    targets: Sequence[Target],
    *,
    class_count: int,
) -> _Expected:
    truth_labels = torch.cat([t.labels for t in targets])
    truth_cxcywh = xyxy_to_cxcywh(torch.cat([t.truth_unit_xyxy for t in targets]))
    counts = truth_labels.new_tensor([t.labels.numel() for t in targets])
    first_row = counts.cumsum(0) - counts

    picture, anchor = matches.positive.nonzero(as_tuple=True)
    row = first_row[picture] + matches.truth_index[picture, anchor]
    labels = torch.full_like(matches.truth_index, _NO_CLASS)
    labels[picture, anchor] = truth_labels[row] if class_count > 1 else 0
    own_anchors = anchors_cxcywh.expand(*matches.positive.shape, 4)[picture, anchor]
    return _Expected(labels, picture, anchor, own_anchors, truth_cxcywh[row])


def hard_negatives(
    background_loss: Float[Tensor, "batch anchors"],
    matches: Matches,
    *,
    negative_ratio: float = NEGATIVE_RATIO,
    min_negatives: int = DEFAULT_MIN_NEGATIVES,
) -> Bool[Tensor, "batch anchors"]:
    """The background anchors to learn from: in each picture those that look least like background.

    As many as `negative_ratio` times its matched anchors and at least `min_negatives`, as far as there are.
    """
    wanted = (matches.positive.sum(dim=1) * negative_ratio).long().clamp(min=min_negatives)
    wanted = torch.minimum(wanted, matches.negative.sum(dim=1))
    chosen = torch.zeros_like(matches.negative)
    most = int(wanted.max())
    hardness = background_loss.masked_fill(~matches.negative, -torch.inf)
    hardest = hardness.topk(most, dim=1).indices
    return chosen.scatter_(1, hardest, torch.arange(most, device=wanted.device) < wanted.unsqueeze(1))


@torch.no_grad()
def _background_loss(
    logits: Float[Tensor, "batch anchors scores"], activation: Activation
) -> Float[Tensor, "batch anchors"]:
    """The classification loss each anchor would have as background. For ranking alone, hence without gradient."""
    pieces = []
    for some in pictures_at_once(logits.device, logits.shape[0]):
        scores = logits[some].float()
        if activation == "softmax":
            pieces.append(-F.log_softmax(scores, dim=-1)[..., 0])
        else:
            pieces.append(F.softplus(scores).sum(dim=-1))
    return torch.cat(pieces)


def _class_loss(
    logits: Float[Tensor, "chosen scores"], labels: Int64[Tensor, " chosen"], activation: Activation
) -> Float[Tensor, ""]:
    logits = logits.float()
    if activation == "softmax":
        # Column 0 is the background, classes follow; _NO_CLASS is -1, so one step moves both into place.
        return F.cross_entropy(logits, labels + 1, reduction="sum")
    classes = torch.arange(logits.shape[-1], device=logits.device)
    wanted = (labels.unsqueeze(1) == classes).float()
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")


def _focal_loss(
    logits: Float[Tensor, "chosen scores"], labels: Int64[Tensor, " chosen"], focal: Focal
) -> Float[Tensor, ""]:
    logits = logits.float()
    classes = torch.arange(logits.shape[-1], device=logits.device)
    wanted = labels.unsqueeze(1) == classes
    # The probability of the wrong answer is the sigmoid of the logit turned against what is wanted.
    against = torch.where(wanted, -logits, logits)
    # Its power through the logarithm: that of a probability of 0 has no finite slope when gamma is below 1.
    played_down = (focal.gamma * F.logsigmoid(against)).exp()
    weight = torch.where(wanted, focal.alpha, 1 - focal.alpha) * played_down
    return (weight * F.softplus(against)).sum()


def _box_loss(
    offsets: Float[Tensor, "matched 4"], expected: _Expected, variances: Variances, kind: BoxLoss, beta: float
) -> Float[Tensor, ""]:
    if kind == "smooth_l1":
        wanted = encode(expected.truth_cxcywh, expected.anchors_cxcywh, variances)
        return F.smooth_l1_loss(offsets, wanted, beta=beta, reduction="sum")
    measure = generalised_iou if kind == "giou" else complete_iou
    found_cxcywh = decode(offsets, expected.anchors_cxcywh, variances)
    return (1 - measure(found_cxcywh, expected.truth_cxcywh)).sum()


def _check_options(*, activation: str, negative_ratio: float, min_negatives: int) -> None:
    if activation not in get_args(Activation):
        raise OptionError(f"activation {activation!r} is unknown; known: {', '.join(get_args(Activation))}")
    if not negative_ratio >= 0 or min_negatives < 0:
        raise OptionError(
            f"negative_ratio and min_negatives must not be negative, got {negative_ratio} and {min_negatives}"
        )


def _check_shapes(raw: Raw, anchors_cxcywh: Tensor, targets: Sequence[Target]) -> None:
    if not raw:
        raise ContractError("expected at least one stage of predictions, got none")
    batch, anchors = len(targets), anchors_cxcywh.shape[0]
    if batch == 0:
        raise ContractError("expected one target for each picture of the batch, got none")
    for index, stage in enumerate(raw):
        for name, tensor, last in (("offsets", stage.offsets, 4), ("logits", stage.logits, stage.logits.shape[-1])):
            if tuple(tensor.shape) != (batch, anchors, last):
                raise ContractError(
                    f"{name} of stage {index}: expected [{batch}, {anchors}, {last}] "
                    f"(targets, anchors, values), got {list(tensor.shape)}"
                )
    device = raw[0].logits.device
    for index, target in enumerate(targets):
        if target.labels.device != device:
            raise ContractError(
                f"target of picture {index} is on {target.labels.device}, predictions are on {device}; "
                "use target.to(device)"
            )


def _check_classes(raw: Raw, background: int) -> None:
    scores = raw[-1].logits.shape[-1]
    for index, stage in enumerate(raw):
        if stage.logits.shape[-1] not in (scores, 1 + background):
            raise ContractError(
                f"logits of stage {index}: expected {scores} scores as the last stage has, or {1 + background} for "
                f"objects of any class, got {stage.logits.shape[-1]}"
            )


def _check_labels(targets: Sequence[Target], *, class_count: int) -> None:
    if not (torch.cat([t.labels for t in targets]) >= class_count).any():
        return
    picture, row = next((p, int(r)) for p, t in enumerate(targets) for r in (t.labels >= class_count).nonzero())
    target = targets[picture]
    raise ContractError(
        f"picture {picture}: box {row} {target.truth_unit_xyxy[row].tolist()} has label "
        f"{int(target.labels[row])}, but the network has {class_count} classes, 0 to {class_count - 1}"
    )
