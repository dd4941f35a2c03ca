"""From a picture to the network's input, and the geometry that leads back.

One specification, stored in every model file; one implementation, used by training, validation, prediction, the export
check and the server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, did_you_mean

__all__ = ["Geometry", "Preprocess"]

Coordinates = Literal["half_pixel", "asymmetric"]
ColourOrder = Literal["RGB", "BGR"]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """How one picture was laid into the network's input; a stretch, so each axis has its own factor.

    Args:
        picture_size_hw: (height, width) of the upright picture in pixels.
        network_size_hw: (height, width) of the network's input in pixels.
    """

    picture_size_hw: tuple[int, int]
    network_size_hw: tuple[int, int]

    def to_picture(self, unit_xyxy: FloatArray) -> FloatArray:
        """Unit xyxy [N, 4] of the network's input -> xyxy pixels of the upright picture."""
        height, width = self.picture_size_hw
        return unit_xyxy * np.array([width, height, width, height], dtype=np.float32)

    def to_unit(self, boxes_xyxy: FloatArray) -> FloatArray:
        """Inverse of `to_picture`."""
        height, width = self.picture_size_hw
        return boxes_xyxy / np.array([width, height, width, height], dtype=np.float32)


@dataclass(frozen=True)
class Preprocess:
    """Everything done to an upright 8-bit RGB picture before the network sees it.

    The picture is stretched to `size_hw` by bilinear interpolation without antialiasing and without rounding, then
    each value x of a channel becomes (x − mean) · scale.

    Args:
        size_hw: (height, width) of the network's input.
        coordinates: where output pixel i samples the input. "half_pixel": (i + 0.5) · in / out − 0.5, as torch's
            `interpolate(align_corners=False)` does; "asymmetric": i · in / out, as TensorFlow 1's resize does.
            (The terms are those of ONNX's Resize.)
        colour_order: order of the network's channels.
        mean: per channel of `colour_order`, in 0 … 255.
        scale: per channel of `colour_order`.
    """

    size_hw: tuple[int, int]
    coordinates: Coordinates = "half_pixel"
    colour_order: ColourOrder = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.size_hw) != 2 or any(side < 1 for side in self.size_hw):
            raise ContractError(f"size_hw must be two positive integers (height, width), got {self.size_hw}")
        for name, allowed in (("coordinates", get_args(Coordinates)), ("colour_order", get_args(ColourOrder))):
            if getattr(self, name) not in allowed:
                raise ContractError(f"preprocessing {name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("mean", "scale"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise ContractError(f"preprocessing {name} must be three finite numbers, got {values}")
        if 0.0 in self.scale:
            raise ContractError(f"preprocessing scale must not be zero, got {self.scale}")

    def __call__(self, rgb: NDArray[np.uint8]) -> tuple[FloatArray, Geometry]:
        """Network input [3, H, W] float32 and the geometry, from an upright picture [h, w, 3] uint8 RGB."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise ContractError(f"expected a picture [h, w, 3] uint8 RGB, got {rgb.dtype} {list(rgb.shape)}")
        geometry = Geometry((rgb.shape[0], rgb.shape[1]), self.size_hw)
        resized = resize_bilinear(rgb, self.size_hw, coordinates=self.coordinates)
        if self.colour_order == "BGR":
            resized = resized[::-1]
        mean = np.array(self.mean, dtype=np.float32)[:, None, None]
        scale = np.array(self.scale, dtype=np.float32)[:, None, None]
        out = np.subtract(resized, mean)
        out *= scale
        return out, geometry

    def to_dict(self) -> dict[str, Any]:
        """JSON form; it also names what is fixed, so that another reader of the file need not guess."""
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()},
            "resize": "stretch",
            "interpolation": "bilinear",
            "antialias": False,
            "rounding": False,
            "value_range": [0, 255],
            "layout": "NCHW",
            "exif": "applied",
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocess:
        """Inverse of `to_dict`.

        Raises:
            ContractError: an unknown key, or a fixed property that this version does not implement.
        """
        known = {f.name for f in fields(cls)}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
        spec = cls(**values)
        fixed = spec.to_dict()
        for key, value in data.items():
            if key not in fixed:
                raise ContractError(f"unknown preprocessing key {key!r}; {did_you_mean(key, fixed)}")
            if key not in known and value != fixed[key]:
                raise ContractError(f"preprocessing {key}={value!r} is not supported, only {fixed[key]!r}")
        return spec


@lru_cache(maxsize=256)
def _taps(
    size_in: int, size_out: int, coordinates: Coordinates
) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray]:
    """For each output position the two input positions it mixes, and the weight of the second, in float32."""
    step = np.float32(size_in) / np.float32(size_out)
    position = np.arange(size_out, dtype=np.float32)
    if coordinates == "half_pixel":
        position = np.maximum((position + np.float32(0.5)) * step - np.float32(0.5), np.float32(0))
    else:
        position = position * step
    low = np.minimum(np.floor(position).astype(np.intp), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    return low, high, (position - low).astype(np.float32)


def resize_bilinear(rgb: NDArray[np.uint8], size_hw: tuple[int, int], *, coordinates: Coordinates) -> FloatArray:
    """Bilinear resize without antialiasing or rounding: [h, w, 3] uint8 -> [3, H, W] float32 in 0 … 255."""
    low_y, high_y, weight_y = _taps(rgb.shape[0], size_hw[0], coordinates)
    low_x, high_x, weight_x = _taps(rgb.shape[1], size_hw[1], coordinates)
    rows = rgb[low_y].astype(np.float32)
    rows += (rgb[high_y].astype(np.float32) - rows) * weight_y[:, None, None]
    columns = rows[:, low_x]
    columns += (rows[:, high_x] - columns) * weight_x[:, None]
    return np.ascontiguousarray(columns.transpose(2, 0, 1))
