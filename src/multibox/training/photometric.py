"""Random changes of colour, as in SSD: brightness, contrast, saturation and hue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["distort"]

FloatArray = NDArray[np.float64]
LEVELS: FloatArray = np.arange(256, dtype=np.float64)


def distort(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Image.Image:
    """Apply each of the four distortions with probability 0.5.

    Brightness comes first; contrast directly after it or, as often, last. Results are rounded to 8 bits and limited
    after each step. Hue wraps around the circle of colours, which the released Caffe code does not do.

    Args:
        image: an RGB picture, left as it is.
        rng: the only source of chance.
        brightness: largest amount added, of 255.
        contrast: values are multiplied by a factor within 1 ± this.
        saturation: the saturation is multiplied by a factor within 1 ± this.
        hue: largest turn, in degrees.
    """
    drawn = rng.random(5) < 0.5
    amount = rng.uniform(-1.0, 1.0, 4)
    before, after = LEVELS, LEVELS
    if drawn[0]:
        before = _limited(before + amount[0] * brightness)
    if drawn[1]:
        factor = 1.0 + amount[1] * contrast
        before, after = (_limited(before * factor), after) if drawn[4] else (before, _limited(after * factor))
    turns = np.rint(amount[3] * hue * 256 / 360) if drawn[3] else 0.0
    factor = 1.0 + amount[2] * saturation if drawn[2] else 1.0
    if not turns and factor == 1.0:
        return _mapped(image, after[before.astype(np.intp)])
    hsv = _mapped(image, before).convert("HSV")
    hsv = _mapped(hsv, (LEVELS + turns) % 256, _limited(LEVELS * factor), LEVELS)
    return _mapped(hsv.convert("RGB"), after)


def _limited(levels: FloatArray) -> FloatArray:
    return np.clip(np.rint(levels), 0, 255)


def _mapped(image: Image.Image, *tables: FloatArray) -> Image.Image:
    """Each value replaced by its entry in the table of its channel, or in the only table."""
    if all(np.array_equal(table, LEVELS) for table in tables):
        return image
    return image.point(np.concatenate(tables * (3 // len(tables))).astype(int).tolist())
