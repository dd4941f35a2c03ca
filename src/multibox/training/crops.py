"""Which part of a picture a variant of it shows: SSD's zoom-out and crop, decided before a pixel is computed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.spec.preprocess import Preprocess
from multibox.training.options import AugmentOptions

__all__ = ["Rect", "sample_crop", "zoom_out"]

FloatArray = NDArray[np.float64]
ASPECT_RANGE = (0.5, 2.0)


class Rect(NamedTuple):
    """Whole pixels x1 <= x < x2, y1 <= y < y2."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.y2 - self.y1, self.x2 - self.x1

    def relative_to(self, x: int, y: int) -> Rect:
        return Rect(self.x1 - x, self.y1 - y, self.x2 - x, self.y2 - y)

    def framed(self, spec: Preprocess) -> Rect:
        """With what the model's letterbox leaves beside it: the proportions of the input, to a whole pixel."""
        if spec.resize == "stretch":
            return self
        (height, width), (network_h, network_w) = self.size_hw, spec.size_hw
        more_x = max(0, round(height * network_w / network_h) - width)
        more_y = max(0, round(width * network_h / network_w) - height)
        left, above = (more_x // 2, more_y // 2) if spec.resize == "letterbox" else (0, 0)
        return Rect(self.x1 - left, self.y1 - above, self.x2 + more_x - left, self.y2 + more_y - above)

    def pixels(self, rows: NDArray[Any]) -> NDArray[Any]:
        return rows[self.y1 : self.y2, self.x1 : self.x2]


def zoom_out(
    rng: np.random.Generator, options: AugmentOptions, size_hw: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size (height, width) of the canvas and where (x, y) on it the picture begins, in whole pixels."""
    if rng.random() >= options.zoom_out:
        return size_hw, (0, 0)
    ratio = rng.uniform(1.0, options.zoom_out_max)
    height, width = int(size_hw[0] * ratio), int(size_hw[1] * ratio)
    x, y = rng.integers(0, [width - size_hw[1], height - size_hw[0]], endpoint=True).tolist()
    return (height, width), (x, y)


def sample_crop(
    rng: np.random.Generator, options: AugmentOptions, canvas_hw: tuple[int, int], guides_xyxy: FloatArray
) -> Rect:
    """One crop of the canvas, by the rule of the released Caffe code (sampler.cpp).

    Each sampler tries `crop_trials` crops and takes the first whose IoU with at least one of the objects
    `guides_xyxy` [N, 4] (pixels of the canvas) is large enough. One of the samplers that found one is chosen; the
    whole canvas and the random crop always find one.
    """
    overlaps = np.array(options.crop_overlaps) if len(guides_xyxy) else np.zeros(0)
    candidates = _candidates(rng, len(overlaps) * options.crop_trials + 1, options.crop_min_scale, canvas_hw)
    found = [np.array([0, 0, canvas_hw[1], canvas_hw[0]]), candidates[-1]]
    if len(overlaps):
        best_iou = _best_iou(candidates[:-1], guides_xyxy).reshape(len(overlaps), options.crop_trials)
        good = best_iou >= overlaps[:, None]
        rows = np.flatnonzero(good.any(axis=1))
        found.extend(candidates[rows * options.crop_trials + good[rows].argmax(axis=1)])
    return Rect(*found[rng.integers(len(found))].tolist())


def _candidates(
    rng: np.random.Generator, count: int, min_scale: float, canvas_hw: tuple[int, int]
) -> NDArray[np.int64]:
    """[count, 4] random crops of the canvas as xyxy in whole pixels."""
    draws = rng.random((4, count))
    scale = min_scale + draws[0] * (1.0 - min_scale)
    aspect = ASPECT_RANGE[0] + draws[1] * (ASPECT_RANGE[1] - ASPECT_RANGE[0])
    root = np.sqrt(np.clip(aspect, scale**2, scale**-2))
    size_wh = np.array([[canvas_hw[1]], [canvas_hw[0]]])
    crop_wh = np.clip(np.rint(np.stack([scale * root, scale / root]) * size_wh), 1, size_wh)
    start_xy = np.floor(draws[2:] * (size_wh - crop_wh + 1))
    return np.concatenate([start_xy, start_xy + crop_wh]).T.astype(np.int64)


def _best_iou(crops_xyxy: NDArray[np.int64], boxes_xyxy: FloatArray) -> FloatArray:
    """[K, 4] and [N, 4], N > 0 -> [K]: each crop's largest IoU with a box."""
    x1, y1, x2, y2 = crops_xyxy.T[:, :, None].astype(np.float64)
    left, top, right, bottom = boxes_xyxy.T
    shared = np.maximum(np.minimum(x2, right) - np.maximum(x1, left), 0)
    shared *= np.maximum(np.minimum(y2, bottom) - np.maximum(y1, top), 0)
    areas = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)
    best: FloatArray = (shared / (areas - shared)).max(axis=1)
    return best
