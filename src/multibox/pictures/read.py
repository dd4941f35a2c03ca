"""Read a picture from anything into upright 8-bit RGB, or refuse it with one line that says what to do.

Everything downstream (network input, boxes, drawing) counts pixels in the frame returned here: the picture as
people see it, with the EXIF orientation already applied.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.errors import ImageError, one_line
from multibox.pictures.opening import name_of, opened_picture, pixel_limit, quiet_pillow, refuse_damaged
from multibox.pictures.pixels import (
    declared_range,
    header_is_turned,
    rgb_of_array,
    rgb_of_image,
    rgb_shape_hw,
    upright,
)

__all__ = ["PICTURE_SUFFIXES", "PictureFacts", "PictureSource", "picture_facts", "picture_size_hw", "read_picture"]

PictureSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]"

# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".tga",
})
# fmt: on
"""Suffixes (lower case) of the files taken from folders. Icons, vector formats and raw camera files are not in it."""


def read_picture(source: PictureSource, *, name: str | None = None, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB of the upright picture; not to be written to.

    The usual result is a view of 4-byte pixels, as decoders store them, because that is the fastest form both to get
    and to resize; `numpy.ascontiguousarray` packs it where another library needs that.

    `source` is a path, the bytes of a file, a binary file object (read from its current position to its end), a
    Pillow picture or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. An array [H, W, 3] that is contiguous
    is returned as it is, without a copy; arrays have no EXIF and are taken as upright.

    - The first frame or page of several is read. ICC profiles are ignored.
    - Transparent pixels are laid over white: the colours stored beneath them are arbitrary (often black), and white
      is the page on which such pictures are usually seen.
    - Grey of up to 16 bits is scaled by its bits: round(value / 257) for 16. Of 16-bit colour the upper byte is taken.
    - Grey in 32-bit integers or floating-point numbers is scaled by the largest value that the file declares. Without
      one, white is the least of 1 (floats only), 255 and 65,535 that no value exceeds; a warning is logged, and
      `picture_facts` says so as well.
    - A file that ends early is refused, also one whose missing end was filled up; decoders would leave grey there.

    `name` is what errors call the picture. `max_pixels` is checked against the header before anything is decoded;
    its default is the environment variable MULTIBOX_MAX_PIXELS, or 178,956,970.

    Raises ImageError where the picture cannot be read, ContractError for an array or object of the wrong kind.
    """
    if isinstance(source, np.ndarray):
        return rgb_of_array(source)
    shown = one_line(name if name is not None else name_of(source))
    with quiet_pillow(), opened_picture(source, shown, pixel_limit(max_pixels)) as image:
        try:
            image.load()
            return rgb_of_image(upright(image), shown, source)
        except ImageError:
            raise
        except Exception as error:  # decoders meet hostile bytes and raise almost anything
            refuse_damaged(shown, error)


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What the header of a picture says.

    Args:
        size_hw: (height, width) of the upright picture.
        more_frames: there are further pages or frames, which `read_picture` does not read.
        white_unknown: its values are scaled by their range, because the file does not say which one is white.
    """

    size_hw: tuple[int, int]
    more_frames: bool = False
    white_unknown: bool = False


def picture_facts(source: PictureSource, *, name: str | None = None, max_pixels: int | None = None) -> PictureFacts:
    """What the header says about what `read_picture` would return.

    The pixels may still turn out to be damaged. Errors are those of `read_picture`.
    """
    if isinstance(source, np.ndarray):
        return PictureFacts(rgb_shape_hw(source))
    shown = one_line(name if name is not None else name_of(source))
    with quiet_pillow(), opened_picture(source, shown, pixel_limit(max_pixels)) as image:
        try:
            (width, height), turned = image.size, header_is_turned(image)
            # The further pictures of a JPEG (MPO) are previews or depth maps of the first.
            more = image.format != "MPO" and bool(getattr(image, "is_animated", False))
            unknown = image.mode in {"I", "F"} and declared_range(image) is None
        except Exception as error:
            refuse_damaged(shown, error)
    return PictureFacts((width, height) if turned else (height, width), more, unknown)


def picture_size_hw(
    source: PictureSource, *, name: str | None = None, max_pixels: int | None = None
) -> tuple[int, int]:
    """(height, width) of what `read_picture` would return, from the header alone; see `picture_facts`."""
    return picture_facts(source, name=name, max_pixels=max_pixels).size_hw
