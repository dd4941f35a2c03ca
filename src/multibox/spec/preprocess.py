"""From a picture to the network's input, and the geometry that leads back.

One specification, stored in every model file; one implementation, used by training, validation, prediction, the export
check and the server.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, OptionError, did_you_mean
from multibox.spec.resize import Coordinates, Interpolation, resize_affine

__all__ = ["Geometry", "Preprocess", "imagenet_preprocess", "parse_size_hw"]

LARGEST_INPUT_SIDE = 4096  # pixels

Resize = Literal["stretch", "letterbox", "letterbox_corner", "pad_corner"]
ColourOrder = Literal["RGB", "BGR"]
Triple = tuple[float, float, float]
FloatArray = NDArray[np.float32]
LARGEST_SIDE = 16384  # of a network's input; far above any, and far below what memory could not hold
ONE, HALF_BELOW = (1.0, 1.0, 1.0), (-0.5, -0.5, -0.5)


IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _corner_scale(width: float, height: float) -> FloatArray:
    return np.array([width, height, width, height], dtype=np.float32)


@dataclass(frozen=True)
class Geometry:
    """How one picture was laid into the network's input; each axis has its own factor, and an offset in a letterbox.

    Args:
        picture_size_hw: (height, width) of the upright picture in pixels.
        network_size_hw: (height, width) of the network's input in pixels.
        place_xyxy: where the picture lies in the network's input, in pixels of the input, fractions included; None
            where it fills it.
    """

    picture_size_hw: tuple[int, int]
    network_size_hw: tuple[int, int]
    place_xyxy: tuple[float, float, float, float] | None = None

    def to_picture(self, unit_xyxy: FloatArray) -> FloatArray:
        """Unit xyxy [N, 4] of the network's input -> xyxy pixels of the upright picture.

        A box that reaches into the padding of a letterbox reaches outside the picture.
        """
        factor, shift = self._factor_and_shift()
        boxes_xyxy = unit_xyxy * factor
        return (boxes_xyxy if shift is None else boxes_xyxy - shift).astype(np.float32, copy=False)

    def to_unit(self, boxes_xyxy: FloatArray) -> FloatArray:
        """Inverse of `to_picture`."""
        factor, shift = self._factor_and_shift()
        return ((boxes_xyxy if shift is None else boxes_xyxy + shift) / factor).astype(np.float32, copy=False)

    def _factor_and_shift(self) -> tuple[FloatArray, FloatArray | None]:
        """Picture = unit · factor − shift."""
        height, width = self.picture_size_hw
        if self.place_xyxy is None:
            return _corner_scale(width, height), None
        x1, y1, x2, y2 = self.place_xyxy
        across, down = width / (x2 - x1), height / (y2 - y1)  # pixels of the picture in one of the input
        network_height, network_width = self.network_size_hw
        return _corner_scale(network_width * across, network_height * down), _corner_scale(x1 * across, y1 * down)


@dataclass(frozen=True)
class Preprocess:
    """Everything done to an upright 8-bit RGB picture before the network sees it.

    The picture is resized to `size_hw` without antialiasing, then each value x of a channel becomes (x − mean) · scale.

    Args:
        size_hw: (height, width) of the network's input.
        coordinates: where output pixel i samples the input. "half_pixel": (i + 0.5) · in / out − 0.5, as torch's
            `interpolate(align_corners=False)` does; "asymmetric": i · in / out, as TensorFlow 1's resize does.
            (The terms are those of ONNX's Resize.)
        colour_order: order of the network's channels.
        mean: per channel of `colour_order`, in 0 … 255.
        scale: per channel of `colour_order`.
        resize: "stretch" to the size of the input. "letterbox": keep the proportions, lay the picture into the middle
            of the input and fill the rest; sides are rounded to whole pixels. "letterbox_corner": the same in the top
            left corner. "pad_corner": first fill up the picture at its right or bottom to the proportions of the
            input, then stretch.
        interpolation: "bilinear", or "nearest": the input pixel floor((i + 0.5) · in / out) for "half_pixel", floor(i ·
            in / out) for "asymmetric".
        rounding: whether the resized picture is rounded to whole numbers, halves up, before mean and scale, as it is
            where an 8-bit picture is resized into an 8-bit picture (OpenCV, Pillow).
        fill: values beside the picture, per channel of `colour_order`, in 0 … 255, before mean and scale; whole numbers
            for "pad_corner".

    Raises:
        ContractError: a value that is none of these.
    """

    size_hw: tuple[int, int]
    coordinates: Coordinates = "half_pixel"
    colour_order: ColourOrder = "RGB"
    mean: Triple = (0.0, 0.0, 0.0)
    scale: Triple = (1.0, 1.0, 1.0)
    resize: Resize = "stretch"
    interpolation: Interpolation = "bilinear"
    rounding: bool = False
    fill: Triple = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if len(self.size_hw) != 2 or any(
            type(side) is not int or not 1 <= side <= LARGEST_SIDE for side in self.size_hw
        ):
            raise ContractError(
                f"size_hw must be two integers (height, width) of 1 … {LARGEST_SIDE}, got {self.size_hw}"
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ContractError(f"preprocessing {name} must be one of {allowed}, got {getattr(self, name)!r}")
        if type(self.rounding) is not bool:
            raise ContractError(f"preprocessing rounding must be true or false, got {self.rounding!r}")
        for name in ("mean", "scale", "fill"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise ContractError(f"preprocessing {name} must be three finite numbers, got {values}")
        if 0.0 in self.scale:
            raise ContractError(f"preprocessing scale must not be zero, got {self.scale}")
        whole = self.resize == "pad_corner"
        if not all(0 <= value <= 255 and (value == int(value) or not whole) for value in self.fill):
            wanted = "whole numbers" if whole else "numbers"
            raise ContractError(f"preprocessing fill must be three {wanted} of 0 … 255, got {self.fill}")
        if self.resize == "stretch" and any(self.fill):
            raise ContractError("preprocessing fill has no place where the picture is stretched; leave it out")

    def __call__(self, rgb: NDArray[np.uint8]) -> tuple[FloatArray, Geometry]:
        """Network input [3, H, W] float32 and the geometry, from an upright picture [h, w, 3] uint8 RGB."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise ContractError(f"expected a picture [h, w, 3] uint8 RGB, got {rgb.dtype} {list(rgb.shape)}")
        geometry = self.geometry((rgb.shape[0], rgb.shape[1]))
        # The picture is RGB until the last step.
        mean, scale, fill = (self.in_rgb(values) for values in (self.mean, self.scale, self.fill))
        place = geometry.place_xyxy
        if place is None:
            planes = self._resized(rgb, self.size_hw, scale, mean)
        elif self.resize == "pad_corner":
            extent_hw = _padded_size(geometry.picture_size_hw, self.size_hw)
            planes = self._resized(_bordered(rgb, fill), self.size_hw, scale, mean, extent_hw)
        else:
            x1, y1, x2, y2 = (int(side) for side in place)
            planes = np.empty((3, *self.size_hw), np.float32)
            planes[:] = (_column(fill) - _column(mean)) * _column(scale)
            planes[:, y1:y2, x1:x2] = self._resized(rgb, (y2 - y1, x2 - x1), scale, mean)
        return (planes if self.colour_order == "RGB" else np.ascontiguousarray(planes[::-1])), geometry

    def _resized(
        self,
        rgb: NDArray[np.uint8],
        size_hw: tuple[int, int],
        scale: Triple,
        mean: Triple,
        extent_hw: tuple[int, int] | None = None,
    ) -> FloatArray:
        rule = size_hw, self.coordinates, self.interpolation
        if not self.rounding:
            return resize_affine(rgb, *rule, scale, mean, extent_hw)
        planes = resize_affine(rgb, *rule, ONE, HALF_BELOW, extent_hw)
        np.floor(planes, out=planes)
        planes -= _column(mean)
        planes *= _column(scale)
        return planes

    def in_rgb(self, values: Triple) -> Triple:
        """Values per channel of `colour_order`, for R, G and B."""
        return values if self.colour_order == "RGB" else (values[2], values[1], values[0])

    def geometry(self, picture_size_hw: tuple[int, int]) -> Geometry:
        """How a picture of a size (height, width) is laid into the network's input."""
        if self.resize == "stretch":
            return Geometry(picture_size_hw, self.size_hw)
        (height, width), (network_h, network_w) = picture_size_hw, self.size_hw
        if self.resize == "pad_corner":
            padded_h, padded_w = _padded_size(picture_size_hw, self.size_hw)
            return Geometry(
                picture_size_hw, self.size_hw, (0.0, 0.0, network_w * width / padded_w, network_h * height / padded_h)
            )
        factor = min(network_h / height, network_w / width)
        inner_h, inner_w = max(1, round(height * factor)), max(1, round(width * factor))
        y1 = (network_h - inner_h) // 2 if self.resize == "letterbox" else 0
        x1 = (network_w - inner_w) // 2 if self.resize == "letterbox" else 0
        return Geometry(picture_size_hw, self.size_hw, (x1, y1, x1 + inner_w, y1 + inner_h))

    def describe(self) -> str:
        """The resizing in words, for people."""
        height, width = self.size_hw
        ways = {
            "stretch": f"stretched to {height} × {width}",
            "letterbox": f"laid into the middle of {height} × {width} in its proportions",
            "letterbox_corner": f"laid into the top left corner of {height} × {width} in its proportions",
            "pad_corner": f"filled up at its right or bottom, then stretched to {height} × {width}",
        }
        rounded = ", rounded to bytes" if self.rounding else ""
        rule = f"{self.interpolation} ({self.coordinates.replace('_', '-')} coordinates)"
        return f"{ways[self.resize]}, {rule}{rounded}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; it also names what is fixed, so that another reader of the file need not guess."""
        return {
            "size_hw": list(self.size_hw),
            "coordinates": self.coordinates,
            "colour_order": self.colour_order,
            "mean": list(self.mean),
            "scale": list(self.scale),
            "resize": self.resize,
            "interpolation": self.interpolation,
            "antialias": False,
            "rounding": self.rounding,
            "value_range": [0, 255],
            "layout": "NCHW",
            "exif": "applied",
            **({} if self.resize == "stretch" else {"fill": list(self.fill)}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocess:
        """Inverse of `to_dict`.

        Raises:
            ContractError: an unknown key, or a fixed property that this version does not implement.
        """
        known = {f.name for f in fields(cls)}
        required = {"size_hw", "coordinates", "colour_order", "mean", "scale"}
        if data.get("resize", "stretch") == "stretch":
            known.remove("fill")
        else:
            required.add("fill")
        for key in sorted(required - set(data)):
            raise ContractError(f"preprocessing lacks {key!r}; without it the network's input would be a guess")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
        spec = cls(**values)
        fixed = spec.to_dict()
        for key, value in data.items():
            if key not in fixed:
                raise ContractError(f"unknown preprocessing key {key!r}; {did_you_mean(key, fixed)}")
            if key not in known and value != fixed[key]:
                raise ContractError(f"preprocessing {key}={value!r} is not supported, only {fixed[key]!r}")
        return spec


_CHOICES = {
    "coordinates": get_args(Coordinates),
    "colour_order": get_args(ColourOrder),
    "resize": get_args(Resize),
    "interpolation": get_args(Interpolation),
}


def imagenet_preprocess(size_hw: Sequence[int], *, rounding: bool = False) -> Preprocess:
    """How torchvision's and timm's networks were trained on ImageNet: mean and deviation of each colour in 0 … 1."""
    (r, g, b), (red, green, blue) = IMAGENET_MEAN, IMAGENET_DEVIATION
    return Preprocess(
        (int(size_hw[0]), int(size_hw[1])),
        mean=(255 * r, 255 * g, 255 * b),
        scale=(1 / (255 * red), 1 / (255 * green), 1 / (255 * blue)),
        rounding=rounding,
    )


def _column(values: Triple) -> FloatArray:
    """[3, 1, 1], to be used with planes."""
    return np.array(values, np.float32)[:, None, None]


def _padded_size(picture_size_hw: tuple[int, int], network_size_hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture filled up to the proportions of the network's input, in whole pixels."""
    (height, width), (network_h, network_w) = picture_size_hw, network_size_hw
    return max(height, round(width * network_h / network_w)), max(width, round(height * network_w / network_h))


def _bordered(rgb: NDArray[np.uint8], fill: Triple) -> NDArray[np.uint8]:
    """The picture with one more row and column of the fill, of which as many as needed can be made."""
    height, width = rgb.shape[:2]
    bordered = np.empty((height + 1, width + 1, 3), np.uint8)
    bordered[:] = fill
    bordered[:height, :width] = rgb
    return bordered


def parse_size_hw(size: int | str | Sequence[int]) -> tuple[int, int]:
    """(height, width) from 320, "320", "320,480", "256x512" or a pair.

    Raises:
        OptionError: none of these, or a side out of range.
    """
    text = size.lower() if isinstance(size, str) else ",".join(map(str, (size,) if isinstance(size, int) else size))
    sides = re.fullmatch(r"\s*([0-9]{1,4})(?:\s*[x×,]\s*([0-9]{1,4}))?\s*", text)
    if sides is None or not all(0 < int(side or 1) <= LARGEST_INPUT_SIDE for side in sides.groups()):
        limit = f"up to {LARGEST_INPUT_SIDE}"
        raise OptionError(f"imgsz={size!r}: write one side (320) or height x width (256x512), {limit}")
    return int(sides[1]), int(sides[2] or sides[1])
