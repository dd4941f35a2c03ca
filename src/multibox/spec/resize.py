"""Resizing an 8-bit picture and scaling its values in one pass, in NumPy, and fast."""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coordinates", "Interpolation", "packed_pixels", "resize_affine"]

Coordinates = Literal["half_pixel", "asymmetric"]
Interpolation = Literal["bilinear", "nearest"]
FloatArray = NDArray[np.float32]


@lru_cache(maxsize=256)
def _taps(
    size_in: int, size_out: int, coordinates: Coordinates, interpolation: Interpolation
) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray]:
    """For each output position the two input positions it mixes, and the weight of the second, in float32."""
    if interpolation == "nearest":  # in whole numbers, where no rounding can choose a neighbour
        twice = 2 * np.arange(size_out, dtype=np.intp) + (1 if coordinates == "half_pixel" else 0)
        nearest = twice * size_in // (2 * size_out)
        return nearest, nearest, np.zeros(size_out, np.float32)
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
def _rows(size_in: int, held: int, size_out: int, coordinates: Coordinates, interpolation: Interpolation) -> _Rows:
    low, high, weight = _taps(size_in, size_out, coordinates, interpolation)
    low, high = np.minimum(low, held - 1), np.minimum(high, held - 1)
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
    size_in: int,
    held: int,
    size_out: int,
    coordinates: Coordinates,
    interpolation: Interpolation,
    scale: tuple[float, ...],
    mean: tuple[float, ...],
) -> _Columns:
    low, high, weight = _taps(size_in, size_out, coordinates, interpolation)
    low, high = np.minimum(low, held - 1), np.minimum(high, held - 1)
    scales = np.array(scale, dtype=np.float32)
    scaled = scales[:, None] * _UNITS
    return _Columns(low, high, (1 - weight) * scaled, weight * scaled, -np.array(mean, dtype=np.float32) * scales)


def resize_affine(
    rgb: NDArray[np.uint8],
    size_hw: tuple[int, int],
    coordinates: Coordinates,
    interpolation: Interpolation,
    scale: tuple[float, ...],
    mean: tuple[float, ...],
    extent_hw: tuple[int, int] | None = None,
) -> FloatArray:
    """Resize without antialiasing or rounding, then (x − mean) · scale (one each for R, G and B).

    [h, w, 3] uint8 -> [3, H, W] float32. With `extent_hw`, `rgb` is only the top left corner of a larger picture whose
    rest repeats the last row and column of the corner.

    Most of a prediction's time between decoding and network is this function, so
    it is written for speed: columns are gathered as whole 4-byte pixels, channels are cut out of them by masks, one
    channel at a time to stay in the cache, the scale is folded into the weights, and temporary arrays are kept from
    call to call (a fresh megabyte costs more in page faults than the arithmetic on it).
    """
    out = np.empty((3, *size_hw), dtype=np.float32)
    (held_h, held_w), (height, width) = rgb.shape[:2], extent_hw or rgb.shape[:2]
    rows = _rows(height, held_h, size_hw[0], coordinates, interpolation)
    columns = _columns(width, held_w, size_hw[1], coordinates, interpolation, tuple(scale), tuple(mean))
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
