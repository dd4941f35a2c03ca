"""Small JPEG copies of pictures, for reports."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["reduced_jpeg"]

_QUALITY = 80


def reduced_jpeg(rgb: NDArray[np.uint8], longest_px: int) -> tuple[bytes, tuple[int, int], NDArray[np.float64]]:
    """A picture as a JPEG whose longer side is at most so many pixels.

    Args:
        rgb: [H, W, 3].
        longest_px: pictures that are smaller stay as large as they are.

    Returns:
        The file, its (width, height), and [4] factors that turn boxes xyxy of the picture into boxes of the copy.
    """
    height, width = rgb.shape[:2]
    part = min(1.0, longest_px / max(height, width))
    size_wh = max(1, round(width * part)), max(1, round(height * part))
    small = Image.fromarray(np.ascontiguousarray(rgb)).resize(size_wh, Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue(), size_wh, np.tile([size_wh[0] / width, size_wh[1] / height], 2)
