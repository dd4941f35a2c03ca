"""Augmentation of one picture with its objects, as SSD does it: colours, zoom-out, crop, resize, flip.

The geometry is decided first, so that each output pixel is computed once and the large canvas of a zoom-out is never
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.errors import ContractError
from multibox.spec.preprocess import Preprocess
from multibox.spec.resize import packed_pixels
from multibox.training.crops import Rect, sample_crop, zoom_out
from multibox.training.options import AugmentOptions
from multibox.training.photometric import distort
from multibox.training.sample import Sample, clipped, require_sample, select

__all__ = ["augment", "mosaic", "resized"]

FloatArray = NDArray[np.float64]
BLACK = (0.0, 0.0, 0.0)
MOSAIC_CENTRE = (0.35, 0.65)
FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


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
    require_sample(sample, "augment got a sample that")
    sample, size_hw = clipped(sample), spec.size_hw
    height, width = sample.rgb.shape[:2]
    canvas_hw, at_xy = zoom_out(rng, options, (height, width))
    crop = Rect(0, 0, canvas_hw[1], canvas_hw[0])
    if rng.random() < options.crop:
        guides_xyxy = sample.boxes_xyxy[~sample.ignore] + np.array([*at_xy, *at_xy])
        crop = sample_crop(rng, options, canvas_hw, guides_xyxy)
    crop = crop.relative_to(*at_xy).framed(spec)
    flips = (rng.random() < options.flip_vertical, rng.random() < options.flip)
    resample = FILTERS[rng.integers(len(FILTERS))] if rng.random() < options.interpolation else None

    visible = Rect(max(crop.x1, 0), max(crop.y1, 0), min(crop.x2, width), min(crop.y2, height))
    if visible.x1 >= visible.x2 or visible.y1 >= visible.y2:
        return select(sample, np.zeros(len(sample.labels), np.bool_), rgb=_filled(spec))
    x1, x2 = _placed(visible.x1, visible.x2, crop.x1, crop.x2, size_hw[1])
    y1, y2 = _placed(visible.y1, visible.y2, crop.y1, crop.y2, size_hw[0])
    place = Rect(x1, y1, x2, y2)
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
    require_sample(sample, "resized got a sample that")
    sample = clipped(sample)
    height, width = sample.rgb.shape[:2]
    planes, geometry = _to_bytes(spec)(sample.rgb)
    place = Rect(*geometry.place_xyxy or (0, 0, spec.size_hw[1], spec.size_hw[0]))  # with fractions after "pad_corner"
    rgb = np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0))
    return _mapped(sample, Rect(0, 0, width, height), place, spec.size_hw, rgb=rgb)


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
        require_sample(given, f"mosaic got a sample (number {number}) that")
        sample = clipped(given)
        below, right = divmod(number, 2)
        room_y, room_x = (height - centre_y if below else centre_y), (width - centre_x if right else centre_x)
        if room_y < 1 or room_x < 1:
            continue
        seen_h, seen_w = size_hw if spec.resize == "stretch" else sample.rgb.shape[:2]
        scale = min(room_y / seen_h, room_x / seen_w)
        part_h, part_w = min(max(round(scale * seen_h), 1), room_y), min(max(round(scale * seen_w), 1), room_x)
        y1, x1 = centre_y - (0 if below else part_h), centre_x - (0 if right else part_w)
        place = Rect(x1, y1, x1 + part_w, y1 + part_h)
        whole = Rect(0, 0, sample.rgb.shape[1], sample.rgb.shape[0])
        place.pixels(rgb)[...] = np.asarray(_resize(_crop(sample.rgb, whole), place.size_hw, spec, None))
        parts.append(_mapped(sample, whole, place, size_hw, rgb=rgb))
    return Sample(
        rgb=rgb,
        boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        ignore=np.concatenate([part.ignore for part in parts]),
    )


def _placed(start: int, stop: int, crop_start: int, crop_stop: int, side: int) -> tuple[int, int]:
    """Where a visible range of picture pixels lies along one axis of the output: whole pixels, at least one."""
    factor = side / (crop_stop - crop_start)
    first = min(round((start - crop_start) * factor), side - 1)
    return first, max(round((stop - crop_start) * factor), first + 1)


def _crop(rgb: NDArray[np.uint8], part: Rect) -> NDArray[np.uint8]:
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
    visible: Rect,
    place: Rect,
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
    return mapped if kept.all() else select(mapped, kept)


def _widened(boxes_xyxy: FloatArray, size_hw: tuple[int, int]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """[N, 4] with sides of less than a pixel made a pixel around their centre, inside the frame; [N] where so."""
    small: NDArray[np.bool_] = np.less(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 1)
    centre = np.clip((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, 0.5, np.array(size_hw[::-1]) - 0.5)
    pixel = np.concatenate([centre - 0.5, centre + 0.5], axis=1)
    return np.where(np.tile(small, 2), pixel, boxes_xyxy), np.any(small, axis=1)
