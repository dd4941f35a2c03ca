"""Which anchor answers for which true object (SSD, section 2.2, "Matching strategy")."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from multibox.core.boxes import cxcywh_to_xyxy, ioa_matrix, iou_matrix
from multibox.core.structures import Target
from multibox.errors import OptionError

__all__ = ["DEFAULT_MATCHING", "MatchOptions", "Matches", "Strategy", "match", "pictures_at_once"]

Strategy = Literal["bipartite", "per_object"]

LEAST_OVERLAP = 1e-6
"""An object that overlaps every anchor less than this has no best anchor (as in the original training code)."""


@dataclass(frozen=True)
class MatchOptions:
    """How anchors are given to objects.

    Args:
        strategy: "bipartite" gives every object an anchor of its own, best pairs first. "per_object" gives every
            object its best anchor, so that of two objects with the same best anchor only the later one keeps it.
        positive_threshold: any other anchor whose best IoU is above this takes its best object.
        negative_threshold: an anchor without object is background when its best IoU is below this; from here up
            to the positive threshold it is neither. Equal thresholds leave only an IoU exactly there in between.
    """

    strategy: Strategy = "bipartite"
    positive_threshold: float = 0.5
    negative_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            known = ", ".join(get_args(Strategy))
            raise OptionError(f"strategy {self.strategy!r} is unknown; known: {known}")
        if not 0 <= self.negative_threshold <= self.positive_threshold <= 1:
            raise OptionError(
                "expected 0 <= negative_threshold <= positive_threshold <= 1, "
                f"got {self.negative_threshold} and {self.positive_threshold}"
            )


DEFAULT_MATCHING = MatchOptions()


class Matches(NamedTuple):
    """The part each anchor plays; an anchor that is neither positive nor negative is left out of the loss.

    `truth_index` is the row of the picture's `Target`, -1 where there is none.
    """

    truth_index: Int64[Tensor, "batch anchors"]
    positive: Bool[Tensor, "batch anchors"]
    negative: Bool[Tensor, "batch anchors"]


class _Overlaps(NamedTuple):
    """Best partners among objects and anchors; index 0 at IoU 0 where there is no overlap."""

    anchor_iou: Float[Tensor, "batch anchors"]
    anchor_truth: Int64[Tensor, "batch anchors"]
    truth_iou: Float[Tensor, "batch objects"]
    truth_anchor: Int64[Tensor, "batch objects"]


def match(
    anchors_cxcywh: Float[Tensor, "*batch anchors 4"],
    targets: Sequence[Target],
    *,
    options: MatchOptions = DEFAULT_MATCHING,
) -> Matches:
    """Gives the objects of each picture to anchors, the same for all pictures or, in a cascade, its own for each.

    Ignored objects get no anchor, and an anchor that lies inside one by more than the positive threshold is not
    background either.
    """
    assert targets, "a batch has at least one picture"
    batch, anchors = len(targets), anchors_cxcywh.shape[-2]
    dtype = torch.promote_types(anchors_cxcywh.dtype, torch.float32)
    anchors_xyxy = cxcywh_to_xyxy(anchors_cxcywh.to(dtype)).expand(batch, anchors, 4)
    ignore = pad_sequence([t.ignore for t in targets], batch_first=True)
    every_truth = pad_sequence([t.truth_unit_xyxy for t in targets], batch_first=True)
    # An empty box overlaps nothing, which is all that padding and the other kind of object must do.
    truth_xyxy = every_truth.masked_fill(ignore.unsqueeze(-1), 0.0)
    counts = [t.labels.numel() for t in targets]

    overlaps = _best_overlaps(truth_xyxy, anchors_xyxy, counts)
    forced = _per_object(overlaps)
    if options.strategy == "bipartite":
        forced = _bipartite(overlaps, truth_xyxy, anchors_xyxy)
    above = overlaps.anchor_iou > options.positive_threshold
    truth_index = torch.where(forced >= 0, forced, torch.where(above, overlaps.anchor_truth, -1))
    positive = truth_index >= 0
    negative = ~positive & (overlaps.anchor_iou < options.negative_threshold)
    if ignore.any():
        ignored_xyxy = every_truth.masked_fill(~ignore.unsqueeze(-1), 0.0)
        negative &= ~_inside(ignored_xyxy, anchors_xyxy, counts, threshold=options.positive_threshold)
    return Matches(truth_index, positive, negative)


def pictures_at_once(device: torch.device, batch: int) -> list[slice]:
    """The batch in pieces: all of it on an accelerator, where each call costs; one picture at a time on a CPU.

    One picture's [objects, anchors] stays in a CPU's cache; a whole batch's goes through memory at each step,
    two to five times slower.
    """
    step = 1 if device.type == "cpu" else batch
    return [slice(start, start + step) for start in range(0, batch, step)]


def _best_overlaps(
    truth_xyxy: Float[Tensor, "batch objects 4"],
    anchors_xyxy: Float[Tensor, "batch anchors 4"],
    counts: list[int],
) -> _Overlaps:
    batch, objects, _ = truth_xyxy.shape
    anchors = anchors_xyxy.shape[1]
    best = _Overlaps(
        anchor_iou=anchors_xyxy.new_zeros(batch, anchors),
        anchor_truth=anchors_xyxy.new_zeros(batch, anchors, dtype=torch.int64),
        truth_iou=anchors_xyxy.new_zeros(batch, objects),
        truth_anchor=anchors_xyxy.new_zeros(batch, objects, dtype=torch.int64),
    )
    for some in pictures_at_once(truth_xyxy.device, batch):
        most = max(counts[some])
        if most == 0:
            continue
        iou = iou_matrix(truth_xyxy[some, :most], anchors_xyxy[some])
        # Of equal overlaps, max returns the first.
        best.anchor_iou[some], best.anchor_truth[some] = iou.max(dim=1)
        best.truth_iou[some, :most], best.truth_anchor[some, :most] = iou.max(dim=2)
    return best


def _per_object(overlaps: _Overlaps) -> Int64[Tensor, "batch anchors"]:
    """Each object's best anchor, -1 elsewhere; the later of two objects takes an anchor both want."""
    truth = torch.arange(overlaps.truth_iou.shape[1], device=overlaps.truth_iou.device)
    wanted = torch.where(overlaps.truth_iou > LEAST_OVERLAP, truth, -1)
    forced = torch.full_like(overlaps.anchor_truth, -1)
    return forced.scatter_reduce_(1, overlaps.truth_anchor, wanted, reduce="amax")


def _bipartite(
    overlaps: _Overlaps,
    truth_xyxy: Float[Tensor, "batch objects 4"],
    anchors_xyxy: Float[Tensor, "batch anchors 4"],
) -> Int64[Tensor, "batch anchors"]:
    """Anchors given one to one, as if the pair of highest IoU were fixed again and again until none is left.

    Pairs are ranked by IoU, then by lower object, then by lower anchor, so no two rank equal. A pair that is
    the best of its object and the best of its anchor cannot be spoilt by any other choice: every pair in
    conflict with it ranks lower and would be looked at later. So all such pairs are fixed at once; what is left
    is the same problem on fewer objects, and since its best pair is always such a pair, each round fixes at
    least one. A handful of rounds is enough in practice, each on the objects still without an anchor.
    """
    forced = torch.full_like(overlaps.anchor_truth, -1)
    picture, truth = (overlaps.truth_iou > LEAST_OVERLAP).nonzero(as_tuple=True)
    anchor = overlaps.truth_anchor[picture, truth]
    mutual = overlaps.anchor_truth[picture, anchor] == truth
    while True:
        forced[picture[mutual], anchor[mutual]] = truth[mutual]
        picture, truth = picture[~mutual], truth[~mutual]
        if picture.numel() == 0:
            return forced
        iou = iou_matrix(truth_xyxy[picture, truth].unsqueeze(1), anchors_xyxy[picture]).squeeze(1)
        best_iou, anchor = iou.masked_fill_(forced[picture] >= 0, 0.0).max(dim=1)
        left = best_iou > LEAST_OVERLAP
        picture, truth, anchor, best_iou, iou = (x[left] for x in (picture, truth, anchor, best_iou, iou))
        mutual = ~_beaten(iou[:, anchor], best_iou, picture)


def _beaten(
    rival_iou: Float[Tensor, "rows rows"], best_iou: Float[Tensor, " rows"], picture: Int64[Tensor, " rows"]
) -> Bool[Tensor, " rows"]:
    """Whether another object of the same picture ranks higher at the anchor that each object wants.

    `rival_iou[r, s]` is the IoU of object r with the anchor wanted by s; rows are in the order of objects.
    """
    row = torch.arange(picture.numel(), device=picture.device)
    earlier = row.unsqueeze(1) < row
    higher = (rival_iou > best_iou) | ((rival_iou == best_iou) & earlier)
    return (higher & (picture.unsqueeze(1) == picture)).any(dim=0)


def _inside(
    ignored_xyxy: Float[Tensor, "batch objects 4"],
    anchors_xyxy: Float[Tensor, "batch anchors 4"],
    counts: list[int],
    *,
    threshold: float,
) -> Bool[Tensor, "batch anchors"]:
    """Whether more than `threshold` of an anchor's area lies in one ignored object.

    That holds wherever the IoU is above the threshold, since a union is never smaller than the anchor, and also
    for the small anchors inside a large crowd region, which an IoU would miss.
    """
    inside = torch.zeros(anchors_xyxy.shape[:2], dtype=torch.bool, device=anchors_xyxy.device)
    for some in pictures_at_once(ignored_xyxy.device, len(counts)):
        most = max(counts[some])
        if most:
            share = ioa_matrix(ignored_xyxy[some, :most], anchors_xyxy[some])
            inside[some] = (share > threshold).any(dim=1)
    return inside
