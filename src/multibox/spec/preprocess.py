"""From a picture to the network's input, and the geometry that leads back.

One specification, stored in every model file; one implementation, used by training, validation, prediction, the export
check and the server.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, did_you_mean

__all__ = ["Geometry", "Preprocess", "packed_pixels"]

Coordinates = Literal["half_pixel", "asymmetric"]
ColourOrder = Literal["RGB", "BGR"]
FloatArray = NDArray[np.float32]
LARGEST_SIDE = 16384  # of a network's input; far above any, and far below what memory could not hold


def _corner_scale(width: int, height: int) -> FloatArray:
    return np.array([width, height, width, height], dtype=np.float32)


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
        return (unit_xyxy * _corner_scale(width, height)).astype(np.float32, copy=False)

    def to_unit(self, boxes_xyxy: FloatArray) -> FloatArray:
        """Inverse of `to_picture`."""
        height, width = self.picture_size_hw
        return (boxes_xyxy / _corner_scale(width, height)).astype(np.float32, copy=False)


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
        if len(self.size_hw) != 2 or any(
            type(side) is not int or not 1 <= side <= LARGEST_SIDE for side in self.size_hw
        ):
            raise ContractError(
                f"size_hw must be two integers (height, width) of 1 … {LARGEST_SIDE}, got {self.size_hw}"
            )
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
        if self.colour_order == "RGB":
            return resize_affine(rgb, self.size_hw, self.coordinates, self.scale, self.mean), geometry
        planes = resize_affine(rgb, self.size_hw, self.coordinates, self.scale[::-1], self.mean[::-1])
        return np.ascontiguousarray(planes[::-1]), geometry

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
        for key in sorted(known - set(data)):
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


class _Rows(NamedTuple):
    """The input rows that an output needs, and where among them its two taps lie."""

    used: slice | NDArray[np.intp]
    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: FloatArray  # of the high ones, as a column


@lru_cache(maxsize=64)
def _rows(size_in: int, size_out: int, coordinates: Coordinates) -> _Rows:
    low, high, weight = _taps(size_in, size_out, coordinates)
    used = np.unique(np.concatenate([low, high]))
    consecutive = used[-1] - used[0] + 1 == len(used)  # then a slice spares a copy; a strong reduction skips rows
    chosen = slice(int(used[0]), int(used[-1]) + 1) if consecutive else used
    return _Rows(chosen, np.searchsorted(used, low), np.searchsorted(used, high), weight[:, None])


class _Columns(NamedTuple):
    """The input columns that an output mixes; what each channel of the two is multiplied by, and what is added."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    low_weight: FloatArray  # [3, W]
    high_weight: FloatArray
    shift: FloatArray  # [3]


_MASKS = (0xFF, 0xFF00, 0xFF0000)  # of R, G and B in a 4-byte pixel
# They stay where they are in it, so their numbers come out 1, 256 and 65536 times as large.
_UNITS: FloatArray = np.array([[1], [1 / 256], [1 / 65536]], dtype=np.float32)


@lru_cache(maxsize=64)
def _columns(
    size_in: int, size_out: int, coordinates: Coordinates, scale: tuple[float, ...], mean: tuple[float, ...]
) -> _Columns:
    low, high, weight = _taps(size_in, size_out, coordinates)
    scales = np.array(scale, dtype=np.float32)
    scaled = scales[:, None] * _UNITS
    return _Columns(low, high, (1 - weight) * scaled, weight * scaled, -np.array(mean, dtype=np.float32) * scales)


def resize_affine(
    rgb: NDArray[np.uint8],
    size_hw: tuple[int, int],
    coordinates: Coordinates,
    scale: tuple[float, ...],
    mean: tuple[float, ...],
) -> FloatArray:
    """Bilinear resize without antialiasing or rounding, then (x − mean) · scale (one each for R, G and B).

    [h, w, 3] uint8 -> [3, H, W] float32. Most of a prediction's time between decoding and network is this function, so
    it is written for speed: columns are gathered as whole 4-byte pixels, channels are cut out of them by masks, one
    channel at a time to stay in the cache, the scale is folded into the weights, and temporary arrays are kept from
    call to call (a fresh megabyte costs more in page faults than the arithmetic on it).
    """
    out = np.empty((3, *size_hw), dtype=np.float32)
    rows = _rows(rgb.shape[0], size_hw[0], coordinates)
    columns = _columns(rgb.shape[1], size_hw[1], coordinates, tuple(scale), tuple(mean))
    words = packed_pixels(rgb)[rows.used]
    shape = (len(words), size_hw[1])
    left = words.take(columns.low, axis=1, mode="clip", out=_buffer("left", shape, _WORD))
    right = words.take(columns.high, axis=1, mode="clip", out=_buffer("right", shape, _WORD))
    channel = _buffer("channel", shape, _WORD)
    along_x, added = _buffer("along_x", shape), _buffer("added", shape)
    step = _buffer("step", size_hw)
    for low, mask, low_weight, high_weight, shift in zip(
        out, _MASKS, columns.low_weight, columns.high_weight, columns.shift, strict=True
    ):
        np.copyto(along_x, np.bitwise_and(left, mask, out=channel), casting="unsafe")
        np.multiply(along_x, low_weight, out=along_x)
        np.copyto(added, np.bitwise_and(right, mask, out=channel), casting="unsafe")
        np.multiply(added, high_weight, out=added)
        np.add(along_x, added, out=along_x)
        if shift:
            np.add(along_x, shift, out=along_x)
        along_x.take(rows.low, axis=0, mode="clip", out=low)
        along_x.take(rows.high, axis=0, mode="clip", out=step)
        np.subtract(step, low, out=step)
        np.multiply(step, rows.weight, out=step)
        np.add(low, step, out=low)
    return out


_scratch = threading.local()
_WORD = np.dtype("<i4")  # R in the lowest byte, wherever this runs; signed, because that becomes float32 faster


def packed_pixels(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The picture as [h, w] 4-byte pixels whose first three bytes are R, G and B; a view where it is stored so."""
    height, width, _ = rgb.shape
    base = rgb.base
    if (
        isinstance(base, np.ndarray)
        and rgb.strides == (4 * width, 4, 1) == base.strides
        and base.shape == (height, width, 4)
        and base.__array_interface__["data"][0] == rgb.__array_interface__["data"][0]
    ):
        return base.view(_WORD)[..., 0]
    pixels = np.empty((height, width, 4), dtype=np.uint8)
    pixels[..., :3] = rgb
    return pixels.view(_WORD)[..., 0]


def _buffer(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """Temporary array of this thread by name, grown when needed; its content is whatever was left there."""
    count = math.prod(shape)
    kept = _scratch.__dict__.get(name)
    if kept is None or kept.size < count:
        kept = _scratch.__dict__[name] = np.empty(count, dtype)
    return kept[:count].reshape(shape)
