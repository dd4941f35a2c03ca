"""Read a picture from anything into upright 8-bit RGB, or refuse it with one line that says what to do.

Everything downstream (network input, boxes, drawing) counts pixels in the frame returned here: the picture as
people see it, with the EXIF orientation already applied.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from multibox.errors import ContractError, ImageError, OptionError

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "MAX_PIXELS_VARIABLE",
    "PICTURE_SUFFIXES",
    "PictureFacts",
    "PictureSource",
    "one_line",
    "picture_facts",
    "picture_size_hw",
    "read_limited",
    "read_picture",
]

PictureSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]"

# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".tga",
})
# fmt: on
"""Suffixes (lower case) of the files taken from folders. Icons, vector formats and raw camera files are not in it."""

DEFAULT_MAX_PIXELS = 178_956_970
"""Twice Pillow's warning level (1 GiB of RGBA / 3): the size at which Pillow itself refuses to go on."""

MAX_PIXELS_VARIABLE = "MULTIBOX_MAX_PIXELS"
MAX_STREAM_BYTES = 1 << 30
"""Bound on what is read from a source without a known end (pipe, standard input): a decoder needs it whole."""

STREAM_SILENCE_S = 30.0
"""How long a stream that does not wait may give nothing."""
_STREAM_PAUSE_S = 0.01
_NEXT_READ_BYTES = 1 << 20
_READ_WHOLE_BYTES = 1 << 20

# Formats with an unmistakable signature, the common ones first. Others (EPS, which starts Ghostscript, and
# rarities) are refused: pictures come from strangers, and every decoder is attack surface.
_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "JPEG2000")
if find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    _FORMATS += ("AVIF",)
# Formats without one would "recognise" arbitrary bytes, so the file name has to vouch for them.
_FORMATS_BY_SUFFIX = {".tga": ("TGA",), ".dib": ("DIB",)}

_FOREIGN_SIGNATURES = (
    (re.compile(rb"%PDF"), "a PDF document, not a picture", "save the page as PNG or JPEG first"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array file, not a picture", "load it with numpy.load and pass the array"),
    (re.compile(rb"\s*<(!doctype|html|head|body)", re.I), "a web page, not a picture", "download the picture itself"),
    (re.compile(rb"\s*(<\?xml|<svg)", re.I), "an XML or SVG file, not a picture", "render it to PNG first"),
    (re.compile(rb"PK\x03\x04"), "a zip archive, not a picture", "unpack it first"),
    (
        re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.S),
        "a HEIC picture, a kind that is not read",
        "convert it to JPEG first: heif-convert a.heic a.jpg, on a Mac sips -s format jpeg a.heic --out a.jpg, in "
        "Windows save a copy from Photos",
    ),
    (re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.S), "a video, not a picture", "extract its frames first"),
)
_DAMAGED_SIGNATURE = re.compile(rb"\xff\xd8|\x89PNG|GIF8|BM|RIFF....WEBP|II\*\0|MM\0\*", re.S)

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
        return _rgb_of_array(source)
    shown = one_line(name if name is not None else _name_of(source))
    with _quiet_pillow(), _opened(source, shown, _pixel_limit(max_pixels)) as image:
        try:
            image.load()
            return _rgb_of_image(_upright(image), shown, source)
        except ImageError:
            raise
        except Exception as error:  # decoders meet hostile bytes and raise almost anything
            _refuse_damaged(shown, error)


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
        return PictureFacts(_rgb_shape_hw(source))
    shown = one_line(name if name is not None else _name_of(source))
    with _quiet_pillow(), _opened(source, shown, _pixel_limit(max_pixels)) as image:
        try:
            (width, height), turned = image.size, _header_is_turned(image)
            # The further pictures of a JPEG (MPO) are previews or depth maps of the first.
            more = image.format != "MPO" and bool(getattr(image, "is_animated", False))
            unknown = image.mode in {"I", "F"} and _declared_range(image) is None
        except Exception as error:
            _refuse_damaged(shown, error)
    return PictureFacts((width, height) if turned else (height, width), more, unknown)


def picture_size_hw(
    source: PictureSource, *, name: str | None = None, max_pixels: int | None = None
) -> tuple[int, int]:
    """(height, width) of what `read_picture` would return, from the header alone; see `picture_facts`."""
    return picture_facts(source, name=name, max_pixels=max_pixels).size_hw


def read_limited(stream: BinaryIO, shown: str, *, limit: int = MAX_STREAM_BYTES) -> bytes:
    """All remaining bytes of a stream, or ImageError where there are more than `limit`.

    One call of `read` may give less than is still to come: an unbuffered pipe gives what it holds at the moment, and
    a stream that does not wait gives None as long as it holds nothing.
    """
    chunks: list[bytes] = []
    length, waited_s = 0, 0.0
    while length <= limit:
        try:
            # The first call usually gives everything, so the later ones need not reserve room for as much.
            chunk: object = stream.read(min(limit + 1 - length, _NEXT_READ_BYTES) if chunks else limit + 1)
        except (OSError, ValueError) as error:
            raise ImageError(shown, f"cannot be read ({one_line(error)})", "open it again and retry") from error
        if chunk is None:
            if waited_s >= STREAM_SILENCE_S:
                raise ImageError(shown, f"gave nothing for {waited_s:.0f} s", "check what writes to it, and retry")
            time.sleep(_STREAM_PAUSE_S)
            waited_s += _STREAM_PAUSE_S
            continue
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise ContractError(f"{shown}: expected a binary file object, got text; open it with mode 'rb'")
        if not len(chunk):
            return b"".join(chunks)
        chunks.append(bytes(chunk))
        length, waited_s = length + len(chunks[-1]), 0.0
    raise ImageError(shown, f"is longer than {limit:,} bytes", "save it to a file and give the file")


def one_line(text: object) -> str:
    """Text that prints everywhere on one line: control characters and undecodable bytes become escapes."""
    plain = str(text)
    if plain.isprintable():
        return plain  # a half of a UTF-16 pair is not printable, so this encodes
    plain = plain.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)


# ------------------------------------------------------------------------------------------------ opening


def _name_of(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    named = getattr(source, "filename", None) or getattr(source, "name", None)
    return named if isinstance(named, str) else "<picture>"


def _pixel_limit(max_pixels: int | None) -> int:
    if max_pixels is None:
        text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
        if text and not re.fullmatch(r"[0-9_]*[1-9][0-9_]*", text):
            raise OptionError(f"{MAX_PIXELS_VARIABLE} must be a whole number of pixels above 0, got {text!r}")
        return int(text.replace("_", "")) if text else DEFAULT_MAX_PIXELS
    if max_pixels < 1:
        raise OptionError(f"max_pixels must be at least 1, got {max_pixels}")
    return max_pixels


@contextmanager
def _opened(source: object, shown: str, limit: int) -> Iterator[Image.Image]:
    """The picture with its header read and its size checked, open until the end of the block."""
    if isinstance(source, Image.Image):
        _check_pixels(source, shown, limit)
        yield source
        return
    with _byte_stream(source, shown) as stream:
        image = _identify(stream, shown, limit)
        _check_pixels(image, shown, limit)
        if image.format in {"JPEG", "MPO"}:
            _check_padding(stream, shown)
        yield image


@contextmanager
def _byte_stream(source: object, shown: str) -> Iterator[BinaryIO]:
    """A seekable stream that starts with the first byte of the picture."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        with _open_file(source, shown) as file:
            # A pipe (/dev/stdin, a shell's <(command)) cannot seek, and Pillow has to.
            if not file.seekable():
                yield io.BytesIO(read_limited(file, shown))
            # Pillow asks for many small pieces; of a small file they come sooner from memory.
            elif os.fstat(file.fileno()).st_size <= _READ_WHOLE_BYTES:
                yield io.BytesIO(file.read())
            else:
                yield io.BufferedReader(file)
    elif callable(getattr(source, "read", None)):
        yield io.BytesIO(read_limited(cast("BinaryIO", source), shown))
    else:
        raise ContractError(
            "a picture must be a path, bytes, a binary file object, a Pillow picture or a uint8 array; "
            f"got {type(source).__name__}"
        )


def _open_file(path: str | os.PathLike[str], shown: str) -> io.FileIO:
    if not os.fspath(path):
        raise ImageError("''", "is an empty name", "give the path of a picture")
    try:
        return io.FileIO(path)
    except FileNotFoundError as error:
        raise ImageError(shown, "there is no such file", "check the path") from error
    except PermissionError as error:
        if not Path(path).is_dir():  # Windows answers "permission denied" for a folder
            reason = "may not be read by this user"
            raise ImageError(shown, reason, "change its permissions or run as its owner") from error
        raise ImageError(shown, "is a folder, not a picture", "give a picture inside it") from error
    except IsADirectoryError as error:
        raise ImageError(shown, "is a folder, not a picture", "give a picture inside it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(shown, f"cannot be opened ({one_line(reason)})", "check the path") from error


_pillow_limit_lock = threading.Lock()


def _identify(stream: BinaryIO, shown: str, limit: int) -> Image.Image:
    formats = _FORMATS + _FORMATS_BY_SUFFIX.get(shown[-4:].lower(), ())
    try:
        try:
            return Image.open(stream, formats=formats)
        except Image.DecompressionBombError:
            # Pillow's own limit is a module global. It gives way to ours while this one header is read.
            stream.seek(0)
            with _pillow_limit_lock:
                theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (limit + 1) // 2
                try:
                    return Image.open(stream, formats=formats)
                finally:
                    Image.MAX_IMAGE_PIXELS = theirs
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        _refuse_gigantic(shown, f"has {int(found[1]):,} pixels" if found else "has too many pixels", limit)
    except UnidentifiedImageError as error:
        _refuse_unknown(stream, shown, error)
    except Exception as error:
        _refuse_damaged(shown, error)


def _check_pixels(image: Image.Image, shown: str, limit: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(shown, f"is empty ({width} × {height} pixels)", "give a picture with pixels in it")
    if width * height > limit:
        _refuse_gigantic(shown, f"has {width} × {height} = {width * height:,} pixels", limit)


def _check_padding(stream: BinaryIO, shown: str) -> None:
    """Refuse a JPEG whose missing end was filled up with one byte, as broken downloads and disks leave it.

    Decoders read such filling as picture data without complaint, so the end marker has to be looked for.
    """
    length = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, length - 16))
    if len(set(stream.read())) > 1:
        return
    stream.seek(0)
    data = stream.read()
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if data.find(b"\xff\xd9", position) < 0:
        raise ImageError(shown, "ends too early (only filling at its end)", "copy or download it again")


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Ignore the warnings that Pillow's modules raise about odd metadata, and no others.

    `warnings.catch_warnings` swaps the filter list of the whole process, so two threads that interleave can leave
    the wrong list behind. One filter of our own is put in by the first reader and taken out by the last instead.
    """
    if getattr(sys.flags, "context_aware_warnings", False):  # Python 3.14 made the filters per context
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_PILLOW_MODULES)
            yield
        return
    _count_reader(+1)
    try:
        yield
    finally:
        _count_reader(-1)


_PILLOW_MODULES = r"(?:PIL)\."
_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)  # as `filterwarnings` would put it there
_readers = 0
_readers_lock = threading.Lock()


def _count_reader(change: int) -> None:
    global _readers
    with _readers_lock:
        _readers += change
        filters = cast("MutableSequence[tuple[Any, ...]]", warnings.filters)
        if change > 0:  # again for every reader: another part of the process may have swapped the filters meanwhile
            if not filters or filters[0] is not _IGNORE_PILLOW:
                filters.insert(0, _IGNORE_PILLOW)
        elif _readers == 0:
            while _IGNORE_PILLOW in filters:
                filters.remove(_IGNORE_PILLOW)


# ------------------------------------------------------------------------------------------------ refusing


def _refuse_damaged(shown: str, error: Exception) -> NoReturn:
    if isinstance(error, MemoryError):
        raise ImageError(shown, "does not fit into memory", "make it smaller") from error
    reason = one_line(error) or type(error).__name__
    if "truncated" in reason.casefold() or isinstance(error, EOFError):
        raise ImageError(shown, f"ends too early ({reason})", "copy or download it again") from error
    raise ImageError(shown, f"is damaged ({reason})", "open and save it again as PNG or JPEG") from error


def _refuse_gigantic(shown: str, reason: str, limit: int) -> NoReturn:
    remedy = f"make it smaller, or raise max_pixels or {MAX_PIXELS_VARIABLE} if it is to be trusted"
    raise ImageError(shown, f"{reason}, the limit is {limit:,}", remedy)


def _refuse_unknown(stream: BinaryIO, shown: str, error: Exception) -> NoReturn:
    stream.seek(0)
    start = stream.read(64)
    if not start:
        raise ImageError(shown, "is empty", "copy or download it again") from error
    for signature, kind, remedy in _FOREIGN_SIGNATURES:
        if signature.match(start):
            raise ImageError(shown, f"is {kind}", remedy) from error
    if _DAMAGED_SIGNATURE.match(start):
        reason = "starts like a picture, but its header is damaged, cut off or of a rare kind"
        raise ImageError(shown, reason, "copy it again, or save it again as PNG or JPEG") from error
    remedy = "give a JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, JPEG 2000 or PPM file"
    raise ImageError(shown, "is not a picture of a known format", remedy) from error


# ------------------------------------------------------------------------------------------------ pixels


def _orientation(image: Image.Image) -> int:
    """1 to 8; metadata that cannot be read counts as 1, because the picture itself is fine."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # corrupt EXIF raises anything from SyntaxError to struct.error
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT_METHOD else 1


def _header_is_turned(image: Image.Image) -> bool:
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


def _upright(image: Image.Image) -> Image.Image:
    method = _UPRIGHT_METHOD.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _rgb_of_image(image: Image.Image, shown: str, source: object) -> NDArray[np.uint8]:
    if image.mode in {"I", "F"}:
        return _rgb_of_wide_grey(image, shown)
    if image.mode.startswith("I;16"):
        return _rgb_of_deep_grey(image)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        return _over_white(np.asarray(straight.convert("RGBA")))
    colour = image if image.mode == "RGB" else image.convert("RGB")
    # The caller may go on to draw on a picture of his own, so that one is copied.
    pixels = None if colour is source else _shared_pixels(colour)
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


def _shared_pixels(image: Image.Image) -> NDArray[np.uint8] | None:
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


def _declared_range(image: Image.Image) -> tuple[float, float] | None:
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
    declared = _declared_range(image)
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
    return _rgb_of_array(((values - black) * (255 / (white - black)) + 0.5).astype(np.uint8))


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
    return _rgb_of_array(grey)


def _rgb_shape_hw(array: NDArray[Any]) -> tuple[int, int]:
    right = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not right or 0 in array.shape:
        raise ContractError(
            "expected a picture as uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with H and W at least 1, "
            f"got {array.dtype} {list(array.shape)}"
        )
    return array.shape[0], array.shape[1]


def _rgb_of_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    height, width = _rgb_shape_hw(array)
    if array.ndim == 3 and array.shape[2] == 4:
        return _over_white(np.ascontiguousarray(array))
    if array.ndim == 3 and array.shape[2] == 3:
        return np.ascontiguousarray(array)
    return np.repeat(array.reshape(height, width, 1), 3, axis=2)


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rounded alpha · colour + (1 − alpha) · white. The largest sum, 255 · 255 + 127, still fits 16 bits."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + (255 - alpha) * np.uint16(255) + np.uint16(127)) // 255).astype(np.uint8)
