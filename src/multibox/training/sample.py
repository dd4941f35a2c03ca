"""A picture with its objects, as the steps of augmentation hand it on; what a user's own step may return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError

__all__ = ["Sample", "Transform", "check_sample", "clipped", "require_sample", "select"]

FRAME_TOLERANCE = 1.0  # pixels that a box may reach outside its picture in `check_sample`


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with its objects, before or after augmentation. Nothing here changes a sample's arrays.

    Args:
        rgb: [h, w, 3] uint8, upright.
        boxes_xyxy: [N, 4] float32, pixels of `rgb`.
        labels: [N] int64.
        ignore: [N] bool, objects that are neither learnt nor background (crowds, what became too small).
    """

    rgb: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]


Transform = Callable[[Sample, np.random.Generator], Sample]
"""A user's own augmentation: applied to the original picture, before `augment`; its result goes to `check_sample`."""


def clipped(sample: Sample) -> Sample:
    """The sample with its boxes clipped to the picture, without objects that lie entirely outside of it."""
    height, width = sample.rgb.shape[:2]
    boxes = sample.boxes_xyxy
    inside = (boxes[:, 2:] > 0).all(axis=1) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    return select(sample, inside, np.clip(boxes, 0, np.array([width, height, width, height], np.float32)))


def check_sample(sample: Sample, *, source: str) -> None:
    """Check what a user's transform returned, boxes within the picture (up to a pixel) included.

    Annotations may reach outside their picture: give the transform a `clipped` sample.

    Args:
        sample: the returned value.
        source: what returned it, for the message: "transform 'blur'".

    Raises:
        ContractError: not a sample, a wrong shape or dtype, or a box that is not in the picture; it names `source`.
    """
    require_sample(sample, f"{source} returned a sample that")
    height, width = sample.rgb.shape[:2]
    low, high = -FRAME_TOLERANCE, np.array([width, height] * 2) + FRAME_TOLERANCE
    outside = ((sample.boxes_xyxy < low) | (sample.boxes_xyxy > high)).any(axis=1)
    if outside.any():
        i = int(np.argmax(outside))
        raise ContractError(
            f"{source} returned a sample whose box {i} is outside the picture of {width}×{height} pixels: "
            f"{sample.boxes_xyxy[i].tolist()}; boxes_xyxy must be in pixels of the returned rgb"
        )


def require_sample(sample: Sample, subject: str) -> None:
    """Raise ContractError, which begins with `subject`, unless the arrays are as `Sample` says."""
    if not isinstance(sample, Sample):
        raise ContractError(f"{subject} is a {type(sample).__name__}, not a multibox.training.sample.Sample")
    for name, shape, dtype in (
        ("rgb", (None, None, 3), np.uint8),
        ("boxes_xyxy", (None, 4), np.float32),
        ("labels", (None,), np.int64),
        ("ignore", (None,), np.bool_),
    ):
        values = getattr(sample, name)
        if not isinstance(values, np.ndarray):
            raise ContractError(f"{subject} has no array as {name} but a {type(values).__name__}")
        fits = len(shape) == values.ndim and all(e in (None, a) for e, a in zip(shape, values.shape, strict=True))
        if values.dtype != dtype or not fits:
            wanted = ["N" if side is None else side for side in shape]
            raise ContractError(
                f"{subject} has {name} of {values.dtype} {list(values.shape)}; it must be {np.dtype(dtype)} {wanted}"
            )
    if 0 in sample.rgb.shape:
        raise ContractError(f"{subject} has a picture without pixels: {list(sample.rgb.shape)}")
    boxes_xyxy = sample.boxes_xyxy
    if not len(boxes_xyxy) == len(sample.labels) == len(sample.ignore):
        lengths = f"{len(boxes_xyxy)} boxes, {len(sample.labels)} labels and {len(sample.ignore)} ignore flags"
        raise ContractError(f"{subject} has {lengths}; these must be equally many")
    good = np.isfinite(boxes_xyxy).all(axis=1) & (boxes_xyxy[:, :2] <= boxes_xyxy[:, 2:]).all(axis=1)
    if not good.all():
        i = int(np.argmin(good))
        raise ContractError(
            f"{subject} has a box that is not x1 <= x2, y1 <= y2 in finite numbers: box {i} is {boxes_xyxy[i].tolist()}"
        )


def select(
    sample: Sample,
    kept: NDArray[np.bool_],
    boxes_xyxy: NDArray[np.float32] | None = None,
    *,
    rgb: NDArray[np.uint8] | None = None,
) -> Sample:
    """The objects `kept` ([N] bool), with other boxes or another picture where given."""
    boxes_xyxy = sample.boxes_xyxy if boxes_xyxy is None else boxes_xyxy
    rgb = sample.rgb if rgb is None else rgb
    return Sample(rgb, boxes_xyxy[kept], sample.labels[kept], sample.ignore[kept])
