"""Augmentation of one picture with its objects, as SSD does it: colours, zoom-out, crop, resize, flip.

The geometry is decided first, so that each output pixel is computed once and the large canvas of a zoom-out is never
made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.errors import ContractError
from multibox.spec.preprocess import Preprocess
from multibox.spec.resize import packed_pixels
from multibox.training.options import AugmentOptions
from multibox.training.photometric import distort

__all__ = ["Sample", "Transform", "augment", "check_sample", "clipped", "mosaic", "resized"]

FloatArray = NDArray[np.float64]
FRAME_TOLERANCE = 1.0  # pixels that a box may reach outside its picture in `check_sample`
ASPECT_RANGE = (0.5, 2.0)
BLACK = (0.0, 0.0, 0.0)
MOSAIC_CENTRE = (0.35, 0.65)
FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


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


class _Rect(NamedTuple):
    """Whole pixels x1 <= x < x2, y1 <= y < y2."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.y2 - self.y1, self.x2 - self.x1

    def relative_to(self, x: int, y: int) -> _Rect:
        return _Rect(self.x1 - x, self.y1 - y, self.x2 - x, self.y2 - y)

    def framed(self, spec: Preprocess) -> _Rect:
        """With what the model's letterbox leaves beside it: the proportions of the input, to a whole pixel."""
        if spec.resize == "stretch":
            return self
        (height, width), (network_h, network_w) = self.size_hw, spec.size_hw
        more_x = max(0, round(height * network_w / network_h) - width)
        more_y = max(0, round(width * network_h / network_w) - height)
        left, above = (more_x // 2, more_y // 2) if spec.resize == "letterbox" else (0, 0)
        return _Rect(self.x1 - left, self.y1 - above, self.x2 + more_x - left, self.y2 + more_y - above)

    def pixels(self, rows: NDArray[Any]) -> NDArray[Any]:
        return rows[self.y1 : self.y2, self.x1 : self.x2]


def augment(
    sample: Sample,
    rng: np.random.Generator,
    options: AugmentOptions,
    spec: Preprocess,
) -> Sample:
    """A random variant of a sample, as network input before mean and scale.

    Zoom-out, crop, resize, colours, flip. The original distorts colours first; here it happens on the fewer pixels of
    the resized picture, and only where the picture is, so that the fill keeps its colour as in the original.

    Objects whose centre lies in the crop are kept and clipped to it. One that is then less than a pixel wide or high
    is widened to a pixel and marked as ignored. Ignored objects do not guide the crop.

    Where the model keeps the proportions of a picture, a crop keeps its own: it is extended to those of the input, by
    what the picture shows there.

    Args:
        sample: any picture; parts of boxes outside of it are cut off, boxes entirely outside are dropped.
        rng: the only source of chance: the same state gives the same bytes.
        options: how much.
        spec: size of the result and the model's rule of resizing. The colour around a zoomed-out picture is the mean
            that it subtracts, or the fill of its letterbox.

    Raises:
        ContractError: `sample` breaks its contract: shapes, dtypes, boxes that are not finite or have swapped corners.
    """
    _require(sample, "augment got a sample that")
    sample, size_hw = clipped(sample), spec.size_hw
    height, width = sample.rgb.shape[:2]
    canvas_hw, at_xy = _zoom_out(rng, options, (height, width))
    crop = _Rect(0, 0, canvas_hw[1], canvas_hw[0])
    if rng.random() < options.crop:
        guides_xyxy = sample.boxes_xyxy[~sample.ignore] + np.array([*at_xy, *at_xy])
        crop = _sample_crop(rng, options, canvas_hw, guides_xyxy)
    crop = crop.relative_to(*at_xy).framed(spec)
    flips = (rng.random() < options.flip_vertical, rng.random() < options.flip)
    resample = FILTERS[rng.integers(len(FILTERS))] if rng.random() < options.interpolation else None

    visible = _Rect(max(crop.x1, 0), max(crop.y1, 0), min(crop.x2, width), min(crop.y2, height))
    if visible.x1 >= visible.x2 or visible.y1 >= visible.y2:
        return _select(sample, np.zeros(len(sample.labels), np.bool_), rgb=_filled(spec))
    x1, x2 = _placed(visible.x1, visible.x2, crop.x1, crop.x2, size_hw[1])
    y1, y2 = _placed(visible.y1, visible.y2, crop.y1, crop.y2, size_hw[0])
    place = _Rect(x1, y1, x2, y2)
    rgb = np.empty((*size_hw, 3), np.uint8) if place.size_hw == size_hw else _filled(spec)
    unflipped = rgb[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
    image = _resize(_crop(sample.rgb, visible), place.size_hw, spec, resample)
    if rng.random() < options.photometric:
        image = distort(
            image,
            rng,
            brightness=options.brightness,
            contrast=options.contrast,
            saturation=options.saturation,
            hue=options.hue,
        )
    place.pixels(unflipped)[...] = np.asarray(image)
    return _mapped(sample, visible, place, size_hw, rgb=rgb, flips=flips)


def resized(sample: Sample, spec: Preprocess) -> Sample:
    """The whole picture as the model's own preprocessing lays it into its input, rounded to 8 bits; boxes follow.

    Boxes are treated as in `augment`, also those outside the picture and those that become too small.

    Raises:
        ContractError: `sample` breaks its contract.
    """
    _require(sample, "resized got a sample that")
    sample = clipped(sample)
    height, width = sample.rgb.shape[:2]
    planes, geometry = _to_bytes(spec)(sample.rgb)
    place = _Rect(*geometry.place_xyxy or (0, 0, spec.size_hw[1], spec.size_hw[0]))  # with fractions after "pad_corner"
    rgb = np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0))
    return _mapped(sample, _Rect(0, 0, width, height), place, spec.size_hw, rgb=rgb)


def mosaic(
    samples: Sequence[Sample],
    rng: np.random.Generator,
    spec: Preprocess,
) -> Sample:
    """Four samples in one picture of the size of `spec`, around a random centre within the middle third.

    Each sample gets the proportions in which the network would see it, is made as large as its quadrant permits, and
    laid against the centre. The rest is filled, and boxes are treated, as in `augment`. Made larger than the network's
    input, the result can be given to `augment`.

    Raises:
        ContractError: not four samples, or one that breaks its contract.
    """
    if len(samples) != 4:
        raise ContractError(f"a mosaic needs four samples, got {len(samples)}")
    size_hw, rgb = spec.size_hw, _filled(spec)
    height, width = size_hw
    share_yx = rng.uniform(*MOSAIC_CENTRE, 2)
    centre_y, centre_x = (round(share * side) for share, side in zip(share_yx, size_hw, strict=True))
    parts: list[Sample] = []
    for number, given in enumerate(samples):
        _require(given, f"mosaic got a sample (number {number}) that")
        sample = clipped(given)
        below, right = divmod(number, 2)
        room_y, room_x = (height - centre_y if below else centre_y), (width - centre_x if right else centre_x)
        if room_y < 1 or room_x < 1:
            continue
        seen_h, seen_w = size_hw if spec.resize == "stretch" else sample.rgb.shape[:2]
        scale = min(room_y / seen_h, room_x / seen_w)
        part_h, part_w = min(max(round(scale * seen_h), 1), room_y), min(max(round(scale * seen_w), 1), room_x)
        y1, x1 = centre_y - (0 if below else part_h), centre_x - (0 if right else part_w)
        place = _Rect(x1, y1, x1 + part_w, y1 + part_h)
        whole = _Rect(0, 0, sample.rgb.shape[1], sample.rgb.shape[0])
        place.pixels(rgb)[...] = np.asarray(_resize(_crop(sample.rgb, whole), place.size_hw, spec, None))
        parts.append(_mapped(sample, whole, place, size_hw, rgb=rgb))
    return Sample(
        rgb=rgb,
        boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        ignore=np.concatenate([part.ignore for part in parts]),
    )


def clipped(sample: Sample) -> Sample:
    """The sample with its boxes clipped to the picture, without objects that lie entirely outside of it."""
    height, width = sample.rgb.shape[:2]
    boxes = sample.boxes_xyxy
    inside = (boxes[:, 2:] > 0).all(axis=1) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    return _select(sample, inside, np.clip(boxes, 0, np.array([width, height, width, height], np.float32)))


def check_sample(sample: Sample, *, source: str) -> None:
    """Check what a user's transform returned, boxes within the picture (up to a pixel) included.

    Annotations may reach outside their picture: give the transform a `clipped` sample.

    Args:
        sample: the returned value.
        source: what returned it, for the message: "transform 'blur'".

    Raises:
        ContractError: not a sample, a wrong shape or dtype, or a box that is not in the picture; it names `source`.
    """
    _require(sample, f"{source} returned a sample that")
    height, width = sample.rgb.shape[:2]
    low, high = -FRAME_TOLERANCE, np.array([width, height] * 2) + FRAME_TOLERANCE
    outside = ((sample.boxes_xyxy < low) | (sample.boxes_xyxy > high)).any(axis=1)
    if outside.any():
        i = int(np.argmax(outside))
        raise ContractError(
            f"{source} returned a sample whose box {i} is outside the picture of {width}×{height} pixels: "
            f"{sample.boxes_xyxy[i].tolist()}; boxes_xyxy must be in pixels of the returned rgb"
        )


def _require(sample: Sample, subject: str) -> None:
    """Raise ContractError, which begins with `subject`, unless the arrays are as `Sample` says."""
    if not isinstance(sample, Sample):
        raise ContractError(f"{subject} is a {type(sample).__name__}, not a multibox.training.augmentation.Sample")
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


def _zoom_out(
    rng: np.random.Generator, options: AugmentOptions, size_hw: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size (height, width) of the canvas and where (x, y) on it the picture begins, in whole pixels."""
    if rng.random() >= options.zoom_out:
        return size_hw, (0, 0)
    ratio = rng.uniform(1.0, options.zoom_out_max)
    height, width = int(size_hw[0] * ratio), int(size_hw[1] * ratio)
    x, y = rng.integers(0, [width - size_hw[1], height - size_hw[0]], endpoint=True).tolist()
    return (height, width), (x, y)


def _sample_crop(
    rng: np.random.Generator, options: AugmentOptions, canvas_hw: tuple[int, int], guides_xyxy: FloatArray
) -> _Rect:
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
    return _Rect(*found[rng.integers(len(found))].tolist())


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


def _placed(start: int, stop: int, crop_start: int, crop_stop: int, side: int) -> tuple[int, int]:
    """Where a visible range of picture pixels lies along one axis of the output: whole pixels, at least one."""
    factor = side / (crop_stop - crop_start)
    first = min(round((start - crop_start) * factor), side - 1)
    return first, max(round((stop - crop_start) * factor), first + 1)


def _crop(rgb: NDArray[np.uint8], part: _Rect) -> NDArray[np.uint8]:
    """The pixels of a part: [h, w, 4] where the picture is stored as 4-byte pixels, for speed, otherwise [h, w, 3]."""
    if rgb.strides[1:] != (4, 1):
        return part.pixels(rgb)
    words = np.ascontiguousarray(part.pixels(packed_pixels(rgb)))
    return words.view(np.uint8).reshape(*words.shape, 4)


def _resize(
    pixels: NDArray[np.uint8], size_hw: tuple[int, int], spec: Preprocess, resample: Image.Resampling | None
) -> Image.Image:
    """A result of `_crop` stretched to a size by a filter, or by the model's rule, rounded, when `resample` is None."""
    height, width, depth = pixels.shape
    if resample is None and (height, width) != size_hw:
        planes, _ = _to_bytes(replace(spec, size_hw=size_hw, resize="stretch", fill=BLACK))(pixels[..., :3])
        return Image.merge("RGB", [Image.fromarray(plane) for plane in planes.astype(np.uint8)])
    if depth == 4:
        image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
    else:
        image = Image.fromarray(pixels)
    image = image if resample is None else image.resize((size_hw[1], size_hw[0]), resample)
    return image.convert("RGB")


def _to_bytes(spec: Preprocess) -> Preprocess:
    """Gives RGB values to which a half was added, so that cutting off what is behind the point rounds them."""
    fill = spec.in_rgb(spec.fill)
    return replace(spec, colour_order="RGB", mean=(-0.5,) * 3, scale=(1.0,) * 3, rounding=False, fill=fill)


def _filled(spec: Preprocess) -> NDArray[np.uint8]:
    """A picture of the size of the input, in the colour that is nothing to the model, rounded."""
    fill_rgb = spec.in_rgb(spec.mean if spec.resize == "stretch" else spec.fill)
    height, width = spec.size_hw
    row = np.tile(np.clip(np.rint(fill_rgb), 0, 255).astype(np.uint8), width)
    rgb = np.empty((height, width, 3), np.uint8)
    rgb.reshape(height, -1)[...] = row
    return rgb


def _mapped(
    sample: Sample,
    visible: _Rect,
    place: _Rect,
    size_hw: tuple[int, int],
    *,
    rgb: NDArray[np.uint8],
    flips: tuple[bool, bool] = (False, False),
) -> Sample:
    """The sample after the picture's pixels `visible` became the pixels `place` of `rgb`, then flipped (y, x)."""
    low, high = np.array(visible[:2] * 2), np.array(visible[2:] * 2)
    boxes_xyxy = sample.boxes_xyxy.astype(np.float64)
    centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    kept: NDArray[np.bool_] = np.all((centre >= low[:2]) & (centre <= high[:2]), axis=1)
    (place_h, place_w), (visible_h, visible_w) = place.size_hw, visible.size_hw
    factor = np.array([place_w / visible_w, place_h / visible_h] * 2)
    boxes_xyxy = (np.clip(boxes_xyxy, low, high) - low) * factor + np.array(place[:2] * 2)
    for axis, flipped in ((1, flips[0]), (0, flips[1])):
        if flipped:
            boxes_xyxy[:, [axis, axis + 2]] = size_hw[1 - axis] - boxes_xyxy[:, [axis + 2, axis]]
    boxes_xyxy = np.clip(boxes_xyxy, 0, np.array(size_hw[::-1] * 2))  # of what rounding errors left outside
    boxes_xyxy, small = _widened(boxes_xyxy, size_hw)
    mapped = Sample(rgb, boxes_xyxy.astype(np.float32), sample.labels, np.logical_or(sample.ignore, small))
    return mapped if kept.all() else _select(mapped, kept)


def _widened(boxes_xyxy: FloatArray, size_hw: tuple[int, int]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """[N, 4] with sides of less than a pixel made a pixel around their centre, inside the frame; [N] where so."""
    small: NDArray[np.bool_] = np.less(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 1)
    centre = np.clip((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, 0.5, np.array(size_hw[::-1]) - 0.5)
    pixel = np.concatenate([centre - 0.5, centre + 0.5], axis=1)
    return np.where(np.tile(small, 2), pixel, boxes_xyxy), np.any(small, axis=1)


def _select(
    sample: Sample,
    kept: NDArray[np.bool_],
    boxes_xyxy: NDArray[np.float32] | None = None,
    *,
    rgb: NDArray[np.uint8] | None = None,
) -> Sample:
    boxes_xyxy = sample.boxes_xyxy if boxes_xyxy is None else boxes_xyxy
    rgb = sample.rgb if rgb is None else rgb
    return Sample(rgb, boxes_xyxy[kept], sample.labels[kept], sample.ignore[kept])
