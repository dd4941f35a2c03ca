"""From a Pillow picture or an array to upright 8-bit RGB: orientation, depth, transparency, shared memory."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.errors import ContractError, ImageError

__all__ = ["declared_range", "header_is_turned", "rgb_of_array", "rgb_of_image", "rgb_shape_hw", "upright"]

_ORIENTATION_TAG = 0x0112
_WIDTH_TAG, _HEIGHT_TAG, _BITS_TAG, _PHOTOMETRIC_TAG = 256, 257, 258, 262  # of TIFF
_SMALLEST_TAGS, _LARGEST_TAGS = (340, 280), (341, 281)  # SMinSampleValue and MinSampleValue, SMaxSampleValue …
_MIN_IS_WHITE = 0
_UPRIGHT_METHOD = {  # EXIF 2.32, table 4 of "Orientation": what undoes each of the eight positions
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """1 to 8; metadata that cannot be read counts as 1, because the picture itself is fine."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # corrupt EXIF raises anything from SyntaxError to struct.error
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT_METHOD else 1


def header_is_turned(image: Image.Image) -> bool:
    """Whether upright swaps the sides. A PNG is decoded only if it may carry metadata behind its pixels."""
    fp = getattr(image, "fp", None)
    if image.format == "PNG" and fp is not None and "exif" not in image.info:
        fp.seek(0)
        data = fp.read()
        if not any(mark in data for mark in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")):
            return False
        image.load()
    tags: Any = getattr(image, "tag_v2", None)
    if tags is not None and image.size != (tags.get(_WIDTH_TAG), tags.get(_HEIGHT_TAG)):
        return False  # Pillow itself has turned this TIFF, or at least its sides
    return _orientation(image) >= 5


def upright(image: Image.Image) -> Image.Image:
    method = _UPRIGHT_METHOD.get(_orientation(image))
    return image if method is None else image.transpose(method)


def rgb_of_image(image: Image.Image, shown: str, source: object) -> NDArray[np.uint8]:
    if image.mode in {"I", "F"}:
        return _rgb_of_wide_grey(image, shown)
    if image.mode.startswith("I;16"):
        return _rgb_of_deep_grey(image)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        return _over_white(np.asarray(straight.convert("RGBA")))
    colour = image if image.mode == "RGB" else image.convert("RGB")
    # The caller may go on to draw on a picture of his own, so that one is copied.
    pixels = None if colour is source else shared_pixels(colour)
    if pixels is None:
        pixels = np.frombuffer(colour.tobytes("raw", "RGBX"), np.uint8).reshape(colour.height, colour.width, 4)
    return pixels[..., :3]


class _ArrowArray(ctypes.Structure):
    """The head of an array in Arrow's C data interface."""

    _fields_ = (
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.c_void_p),
        ("children", ctypes.c_void_p),
    )


class _Exported:
    """Memory that lives as long as this object, in the form that NumPy takes."""

    def __init__(self, address: int, shape: tuple[int, ...], owner: object) -> None:
        self.__array_interface__ = {"data": (address, True), "shape": shape, "typestr": "|u1", "version": 3}
        self._owner = owner


@cache
def _capsule_pointer() -> Callable[[object, bytes], int]:
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return cast("Callable[[object, bytes], int]", prototype(("PyCapsule_GetPointer", ctypes.pythonapi)))


def shared_pixels(image: Image.Image) -> NDArray[np.uint8] | None:
    """[H, W, 4] uint8, read-only, of a loaded RGB picture: Pillow's own memory, which the array keeps alive.

    None where Pillow cannot give it: before version 11.2, or when the rows do not lie one right after the other (in
    pictures above 16 MiB, or with PILLOW_ALIGNMENT).
    """
    try:
        if cast("Any", Image).core.get_alignment() != 1:
            return None
        capsule = cast("Any", image.im).__arrow_c_array__()
        whole = _ArrowArray.from_address(_capsule_pointer()(capsule, b"arrow_array"))
    except (AttributeError, ValueError):
        return None
    shape = (image.height, image.width, 4)
    if (whole.length, whole.offset, whole.n_children) != (shape[0] * shape[1], 0, 1):
        return None
    channels = _ArrowArray.from_address(_pointer_at(whole.children))
    if (channels.length, channels.offset, channels.n_buffers) != (4 * whole.length, 0, 2):
        return None
    address = _pointer_at(channels.buffers + ctypes.sizeof(ctypes.c_void_p))  # behind the bitmap of missing values
    return np.asarray(_Exported(address, shape, capsule))


def _pointer_at(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0


def declared_range(image: Image.Image) -> tuple[float, float] | None:
    """(black, white) of 32-bit values as the file declares them; None where it does not."""
    if image.format == "PPM":  # Pillow has scaled its values by the white that it declares
        return 0.0, 65535.0
    tags: Any = getattr(image, "tag_v2", {})
    ends = []
    for least_and_most in (_SMALLEST_TAGS, _LARGEST_TAGS):
        value = next((tags[tag] for tag in least_and_most if tag in tags), None)
        value = value[0] if isinstance(value, tuple) and value else value
        ends.append(float(value) if isinstance(value, (int, float)) and np.isfinite(float(value)) else None)
    black, white = ends[0] or 0.0, ends[1]
    return None if white is None or white <= black else (black, white)


def _rgb_of_wide_grey(image: Image.Image, shown: str) -> NDArray[np.uint8]:
    """Of 32-bit integers and floats, whose white is what the file declares, or else found from the values."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    declared = declared_range(image)
    if declared is not None and declared[0] <= low and high <= declared[1]:
        black, white = declared
    else:
        black = 0.0
        bases = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
        fitting = [base for base in bases if high <= base]
        if not (low >= 0 and fitting):  # also where a value is not a number
            kind = "32-bit grey values" if image.mode == "I" else "floating-point values"
            reason = f"holds {kind} from {low:.6g} to {high:.6g}, whose white is unknown"
            raise ImageError(shown, reason, "scale it to 0…65535 or 0…255 and save it as PNG")
        white = fitting[0]
        _say_once(f"{shown}: it does not say which value is white; {white:g} was taken, which no value exceeds")
    return rgb_of_array(((values - black) * (255 / (white - black)) + 0.5).astype(np.uint8))


_said: set[str] = set()
_MOST_SAID = 1000


def _say_once(text: str) -> None:
    """Log a warning about a picture, which may be read again and again."""
    if text not in _said and len(_said) < _MOST_SAID:
        _said.add(text)
        last = "; further pictures of this kind are not named" if len(_said) == _MOST_SAID else ""
        logging.getLogger("multibox").warning("%s%s", text, last)


def _rgb_of_deep_grey(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.int64)
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF, whose 12-bit kind Pillow does not widen
    white = 0xFFF if tags.get(_BITS_TAG) == (12,) else 0xFFFF
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(_PHOTOMETRIC_TAG) == _MIN_IS_WHITE:
        grey = 255 - grey  # Pillow turns this kind only for 8 bits and fewer
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return rgb_of_array(grey)


def rgb_shape_hw(array: NDArray[Any]) -> tuple[int, int]:
    right = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not right or 0 in array.shape:
        raise ContractError(
            "expected a picture as uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with H and W at least 1, "
            f"got {array.dtype} {list(array.shape)}"
        )
    return array.shape[0], array.shape[1]


def rgb_of_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    height, width = rgb_shape_hw(array)
    if array.ndim == 3 and array.shape[2] == 4:
        return _over_white(np.ascontiguousarray(array))
    if array.ndim == 3 and array.shape[2] == 3:
        return np.ascontiguousarray(array)
    return np.repeat(array.reshape(height, width, 1), 3, axis=2)


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rounded alpha · colour + (1 − alpha) · white. The largest sum, 255 · 255 + 127, still fits 16 bits."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + (255 - alpha) * np.uint16(255) + np.uint16(127)) // 255).astype(np.uint8)
