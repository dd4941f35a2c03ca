"""Boxes as tensors: their two orders, their areas and how much they overlap.

Everything here works in float32 at least: in half precision an area of fewer than some ten pixels is no number
to divide by.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "area_xyxy",
    "clip_xyxy",
    "complete_iou",
    "cxcywh_to_xyxy",
    "generalised_iou",
    "ioa_matrix",
    "iou_matrix",
    "xyxy_to_cxcywh",
]


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Corners of boxes given by centre and size, in the same unit."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Centre and size of boxes given by their corners, in the same unit."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area_xyxy(boxes_xyxy: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Area in squared units; 0 for a box whose corners are swapped."""
    side = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return side[..., 0] * side[..., 1]


def clip_xyxy(
    boxes_xyxy: Float[Tensor, "*batch 4"], size_wh: tuple[float, float] = (1.0, 1.0)
) -> Float[Tensor, "*batch 4"]:
    """Boxes cut off at the borders of a picture of `size_wh`, which is the whole unit frame when left out."""
    width, height = size_wh
    x, y = boxes_xyxy[..., 0::2].clamp(0, width), boxes_xyxy[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def iou_matrix(
    a_xyxy: Float[Tensor, "*#batch n 4"], b_xyxy: Float[Tensor, "*#batch m 4"]
) -> Float[Tensor, "*#batch n m"]:
    """Intersection over union of every box of `a_xyxy` with every box of `b_xyxy`, in float32 at least.

    Equal boxes give exactly 1 however small they are, a box without area gives 0 with everything. Leading axes
    broadcast.
    """
    a, b = _columns(a_xyxy).unsqueeze(-1), _columns(b_xyxy).unsqueeze(-2)
    overlap = _intersection(a, b)
    union = (_area(a) + _area(b)).sub_(overlap)
    return _divide_(overlap, union)


def ioa_matrix(
    a_xyxy: Float[Tensor, "*#batch n 4"], b_xyxy: Float[Tensor, "*#batch m 4"]
) -> Float[Tensor, "*#batch n m"]:
    """The part of every box of `b_xyxy` that lies inside each box of `a_xyxy`, in float32 at least."""
    a, b = _columns(a_xyxy).unsqueeze(-1), _columns(b_xyxy).unsqueeze(-2)
    return _divide_(_intersection(a, b), _area(b))


def _columns(boxes_xyxy: Tensor) -> Tensor:
    """[4, *batch, n]: each coordinate in one piece of memory, several times faster to combine than a stride of 4."""
    dtype = torch.promote_types(boxes_xyxy.dtype, torch.float32)
    columns: Tensor = boxes_xyxy.to(dtype).movedim(-1, 0).contiguous()
    return columns


def _area(columns: Tensor) -> Tensor:
    x1, y1, x2, y2 = columns
    area: Tensor = (x2 - x1).clamp_(min=0) * (y2 - y1).clamp_(min=0)
    return area


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    return width.mul_(height)


def _divide_(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole` in the memory of `part`, with 0 / 0 = 0.

    The smallest positive number of the type is a safe floor for `whole`: nothing positive lies below it, so it
    replaces zeros alone. (A floor such as 1e-5 would bend every small box: 3 pixels of 300 are an area of 1e-4.)
    """
    limits = torch.finfo(part.dtype)
    floor = limits.smallest_normal * limits.eps
    quotient: Tensor = part.div_(whole.clamp(min=floor))
    return quotient


def generalised_iou(
    found_cxcywh: Float[Tensor, "boxes 4"], truth_cxcywh: Float[Tensor, "boxes 4"]
) -> Float[Tensor, " boxes"]:
    """IoU less the share of the common hull that neither box covers, in -1 ... 1 (Rezatofighi et al., 2019)."""
    iou, union, hull_wh = _pairwise(found_cxcywh, truth_cxcywh)
    hull = hull_wh.prod(dim=-1).clamp(min=_TINY)
    return iou - (hull - union) / hull


def complete_iou(
    found_cxcywh: Float[Tensor, "boxes 4"], truth_cxcywh: Float[Tensor, "boxes 4"]
) -> Float[Tensor, " boxes"]:
    """IoU less the distance of the centres and the difference in aspect (Zheng et al., 2020, equation 11)."""
    iou, _, hull_wh = _pairwise(found_cxcywh, truth_cxcywh)
    distance = (found_cxcywh[:, :2] - truth_cxcywh[:, :2]).square().sum(dim=-1)
    diagonal = hull_wh.square().sum(dim=-1).clamp(min=_TINY)
    angles = [torch.atan2(box[:, 2], box[:, 3].clamp(min=_TINY)) for box in (truth_cxcywh, found_cxcywh)]
    aspect = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect).clamp(min=_TINY)
    return iou - distance / diagonal - weight * aspect


_TINY = 1e-9  # of a unit area: far below a pixel, and far above float32's rounding to zero


def _pairwise(a_cxcywh: Tensor, b_cxcywh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, union and the hull's sides, row by row."""
    a, b = cxcywh_to_xyxy(a_cxcywh), cxcywh_to_xyxy(b_cxcywh)
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = area_xyxy(a) + area_xyxy(b) - shared
    hull_wh = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    return shared / union.clamp(min=_TINY), union, hull_wh
