"""Default boxes ("anchors"): how a model's specification becomes one box per cell, ratio and level.

Anchors depend only on the specification, the input size and the sizes of the feature maps, so they are computed here
in NumPy (float64, rounded once to float32) and are the same bits for training, export and every engine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError

__all__ = ["AnchorSpec", "anchors_digest", "ssd_anchors", "ssd_scales", "tf_anchors", "tinyssd_anchors"]

Clip = Literal["none", "cxcywh", "wh", "xyxy"]
Reference = Literal["shorter_side", "height"]
ShapesWh = tuple[tuple[float, float], ...]
SizeHw = tuple[int, int]


@dataclass(frozen=True)
class AnchorSpec:
    """The boxes at one cell of each level, and where cells lie.

    Args:
        levels: for each level, finest first, the (width, height) of every box at a cell, in the order of the head's
            channels, as a fraction of the reference side of the input.
        reference: the side that fractions refer to, "shorter_side" (SSD and TensorFlow's rule: a 1:1 box is square in
            pixels) or "height" (D2L's rule, which scales widths by height / width). On a square input both agree.
        steps: distance of cell centres in input pixels, one per level, as fixed by the original SSD for its own input
            size `nominal_size_hw`; without steps, and at every other input size, cells divide the input evenly.
        nominal_size_hw: the input size the steps belong to; required with steps.
        offset: position of the centre within a cell, 0.5 = the middle.
        clip: "none"; "cxcywh" limits centre and size to [0, 1] as several PyTorch ports do; "wh" the size alone
            (torchvision); "xyxy" the corners.
    """

    levels: tuple[ShapesWh, ...]
    reference: Reference = "shorter_side"
    steps: tuple[float, ...] | None = None
    nominal_size_hw: SizeHw | None = None
    offset: float = 0.5
    clip: Clip = "none"

    def __post_init__(self) -> None:
        if not self.levels or any(not level for level in self.levels):
            raise ContractError("anchors need at least one level and at least one box on every level")
        for number, level in enumerate(self.levels):
            for shape in level:
                if len(shape) != 2 or not all(math.isfinite(side) and side > 0 for side in shape):
                    raise ContractError(f"anchor level {number}: (width, height) must be positive, got {shape}")
        if not math.isfinite(self.offset):
            raise ContractError(f"anchor offset must be finite, got {self.offset}")
        if self.nominal_size_hw is not None:
            _check_sizes("nominal_size_hw", [self.nominal_size_hw])
        if self.steps is not None:
            if len(self.steps) != len(self.levels):
                raise ContractError(f"{len(self.levels)} anchor levels but {len(self.steps)} steps")
            if not all(math.isfinite(step) and step > 0 for step in self.steps):
                raise ContractError(f"anchor steps must be positive, got {self.steps}")
            if self.nominal_size_hw is None:
                raise ContractError("anchor steps are pixels of one input size: give nominal_size_hw as well")
        for name, allowed in (("clip", get_args(Clip)), ("reference", get_args(Reference))):
            if getattr(self, name) not in allowed:
                raise ContractError(f"anchor {name} must be one of {allowed}, got {getattr(self, name)!r}")

    @property
    def boxes_per_cell(self) -> tuple[int, ...]:
        """Number of boxes at a cell, per level."""
        return tuple(len(level) for level in self.levels)

    def generate(self, feature_sizes_hw: Sequence[SizeHw], size_hw: SizeHw) -> NDArray[np.float32]:
        """All default boxes, [A, 4] float32 unit cxcywh: by level, row, column, then box at the cell.

        Args:
            feature_sizes_hw: measured (height, width) of each level's feature map.
            size_hw: input size in pixels.

        Raises:
            ContractError: the number of maps is not the number of levels, or a size is not positive.
        """
        _check_sizes("size_hw", [size_hw])
        _check_sizes("feature_sizes_hw", feature_sizes_hw)
        if len(feature_sizes_hw) != len(self.levels):
            raise ContractError(f"{len(self.levels)} anchor levels but {len(feature_sizes_hw)} feature maps")
        parts = [self._level(number, map_hw, size_hw) for number, map_hw in enumerate(feature_sizes_hw)]
        return _clip(np.concatenate(parts), self.clip).astype(np.float32)

    def _level(self, number: int, map_hw: SizeHw, size_hw: SizeHw) -> NDArray[np.float64]:
        height, width = size_hw
        side = min(height, width) if self.reference == "shorter_side" else height
        shapes = np.asarray(self.levels[number], dtype=np.float64) * side / (width, height)
        centres_y = self._centres(number, map_hw[0], height, axis=0)
        centres_x = self._centres(number, map_hw[1], width, axis=1)
        out = np.empty((*map_hw, len(shapes), 4))
        out[..., 0] = centres_x[None, :, None]
        out[..., 1] = centres_y[:, None, None]
        out[..., 2:] = shapes
        return out.reshape(-1, 4)

    def _centres(self, number: int, cells: int, pixels: int, *, axis: int) -> NDArray[np.float64]:
        positions = np.arange(cells, dtype=np.float64) + self.offset
        if self.steps is not None and self.nominal_size_hw is not None and self.nominal_size_hw[axis] == pixels:
            return positions * self.steps[number] / pixels
        return positions / cells

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "levels": [[list(shape) for shape in level] for level in self.levels],
            "reference": self.reference,
            "steps": None if self.steps is None else list(self.steps),
            "nominal_size_hw": None if self.nominal_size_hw is None else list(self.nominal_size_hw),
            "offset": self.offset,
            "clip": self.clip,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AnchorSpec:
        """Inverse of `to_dict`."""
        nominal, steps = data["nominal_size_hw"], data["steps"]
        return cls(
            levels=tuple(tuple((float(w), float(h)) for w, h in level) for level in data["levels"]),
            reference=data["reference"],
            steps=None if steps is None else tuple(float(s) for s in steps),
            nominal_size_hw=None if nominal is None else (int(nominal[0]), int(nominal[1])),
            offset=float(data["offset"]),
            clip=data["clip"],
        )


def _check_sizes(name: str, sizes_hw: Sequence[SizeHw]) -> None:
    for size_hw in sizes_hw:
        if len(size_hw) != 2 or min(size_hw) < 1:
            raise ContractError(f"{name} must be positive (height, width), got {size_hw}")


def _check_positive(name: str, values: Sequence[float]) -> None:
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ContractError(f"anchor {name} must be positive numbers, got {value:g}")


def _clip(anchors_cxcywh: NDArray[np.float64], clip: Clip) -> NDArray[np.float64]:
    if clip == "cxcywh":
        return np.clip(anchors_cxcywh, 0.0, 1.0)
    if clip == "wh":
        return np.concatenate([anchors_cxcywh[:, :2], np.clip(anchors_cxcywh[:, 2:], 0.0, 1.0)], axis=1)
    if clip == "xyxy":
        half = anchors_cxcywh[:, 2:] / 2
        low = np.clip(anchors_cxcywh[:, :2] - half, 0.0, 1.0)
        high = np.clip(anchors_cxcywh[:, :2] + half, 0.0, 1.0)
        return np.concatenate([(low + high) / 2, high - low], axis=1)
    return anchors_cxcywh


def anchors_digest(anchors_cxcywh: NDArray[np.float32]) -> str:
    """SHA-256 of the anchors' little-endian float32 bytes, stored with a model so that a drift cannot pass unseen."""
    return hashlib.sha256(np.ascontiguousarray(anchors_cxcywh, dtype="<f4").tobytes()).hexdigest()


def ssd_scales(first: int, low: int, high: int, *, levels: int) -> tuple[float, ...]:
    """The released SSD's box scales, levels + 1 fractions of the input side.

    The paper (section 2.2) spaces scales linearly from s_min to s_max. The released configuration does it in whole
    percent: the first level apart, then from `low` in steps of floor((high − low) / (levels − 2)), and one more step
    for the last level's larger square.

    Args:
        first: percent on the first level (10 for SSD300 on VOC, 7 on COCO; 7 and 4 for SSD512).
        low: percent on the second level (20 and 15; 15 and 10).
        high: the nominal largest percent (90).
        levels: number of feature maps (6 for SSD300, 7 for SSD512).
    """
    if levels < 3:
        raise ContractError(f"the released rule spaces scales over at least 3 levels, got {levels}")
    step = (high - low) // (levels - 2)
    return (first / 100, *((low + step * k) / 100 for k in range(levels)))


def ssd_anchors(
    scales: Sequence[float],
    ratios: Sequence[Sequence[float]],
    *,
    steps: Sequence[float] | None = None,
    nominal_size_hw: SizeHw | None = None,
    clip: Clip = "none",
) -> AnchorSpec:
    """The SSD rule: at scale s_k a square of side s_k, one of side sqrt(s_k · s_{k+1}), then r and 1/r for each ratio.

    Args:
        scales: levels + 1 fractions of the input side.
        ratios: per level the width : height ratios besides 1 (``(2,)`` gives 4 boxes, ``(2, 3)`` gives 6).
        steps: see `AnchorSpec`.
        nominal_size_hw: see `AnchorSpec`.
        clip: see `AnchorSpec`; the original code does not clip.

    Source: paper section 2.2; order of boxes as in the released PriorBox layer.
    """
    if len(scales) != len(ratios) + 1:
        raise ContractError(
            f"{len(scales)} scales make {len(scales) - 1} levels, but ratios are given for {len(ratios)}; "
            "give ratios for each level, and one scale more than levels"
        )
    _check_positive("scales", scales)
    levels = []
    for scale, following, level_ratios in zip(scales[:-1], scales[1:], ratios, strict=True):
        between = math.sqrt(scale * following)
        shapes = [(scale, scale), (between, between)]
        _check_positive("ratios", level_ratios)
        for ratio in level_ratios:
            root = math.sqrt(ratio)
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        levels.append(tuple(shapes))
    return AnchorSpec(
        tuple(levels),
        steps=None if steps is None else tuple(float(s) for s in steps),
        nominal_size_hw=nominal_size_hw,
        clip=clip,
    )


def tf_anchors(
    *,
    levels: int = 6,
    min_scale: float = 0.2,
    max_scale: float = 0.95,
    ratios: Sequence[float] = (1.0, 2.0, 0.5, 3.0, 0.3333),
    reduce_boxes_in_lowest_layer: bool = True,
) -> AnchorSpec:
    """The TensorFlow Object Detection API's SSD rule.

    Scales are linear from min_scale to max_scale, with 1.0 after the last. A level holds each ratio at s_k, then the
    square of side sqrt(s_k · s_{k+1}) **last**. The lowest level, when reduced, holds a square of side 0.1 and the
    ratios 2 and 1/2 at s_0. The third ratio really is 0.3333, not 1/3. Boxes are not clipped.

    Source: the anchor table stored in the COCO-trained SSDLite-MobileNetV2 graph.
    """
    if levels < 2:
        raise ContractError(f"scales from min_scale to max_scale need at least 2 levels, got {levels}")
    _check_positive("scales", (min_scale, max_scale))
    _check_positive("ratios", ratios)
    scales = [min_scale + (max_scale - min_scale) * k / (levels - 1) for k in range(levels)] + [1.0]
    out: list[ShapesWh] = []
    for k in range(levels):
        if k == 0 and reduce_boxes_in_lowest_layer:
            pairs = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        else:
            pairs = [(scales[k], ratio) for ratio in ratios]
            pairs.append((math.sqrt(scales[k] * scales[k + 1]), 1.0))
        out.append(tuple((scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for scale, ratio in pairs))
    return AnchorSpec(tuple(out))


def tinyssd_anchors(
    sizes: Sequence[Sequence[float]] = ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)),
    ratios: Sequence[float] = (1.0, 2.0, 0.5),
) -> AnchorSpec:
    """The rule of Dive into Deep Learning: every size at the first ratio, then the first size at the other ratios.

    That is n + m − 1 boxes at a cell for n sizes and m ratios; widths are relative to the input's height.

    Source: Dive into Deep Learning, chapters on anchor boxes and on single shot detection.
    """
    if not len(ratios) or not all(len(level_sizes) for level_sizes in sizes):
        raise ContractError("anchors need at least one ratio, and at least one size on every level")
    _check_positive("ratios", ratios)
    levels = []
    for level_sizes in sizes:
        pairs = [(size, ratios[0]) for size in level_sizes] + [(level_sizes[0], ratio) for ratio in ratios[1:]]
        levels.append(tuple((size * math.sqrt(ratio), size / math.sqrt(ratio)) for size, ratio in pairs))
    return AnchorSpec(tuple(levels), reference="height")
