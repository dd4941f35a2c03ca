"""From a path, bytes or a stream to a Pillow picture with a checked header, or one line that says what to do."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from PIL import Image, UnidentifiedImageError

from multibox.errors import ContractError, ImageError, OptionError, one_line

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "MAX_PIXELS_VARIABLE",
    "name_of",
    "opened_picture",
    "pixel_limit",
    "quiet_pillow",
    "read_limited",
    "refuse_damaged",
]

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


def name_of(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    named = getattr(source, "filename", None) or getattr(source, "name", None)
    return named if isinstance(named, str) else "<picture>"


def pixel_limit(max_pixels: int | None) -> int:
    if max_pixels is None:
        text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
        if text and not re.fullmatch(r"[0-9_]*[1-9][0-9_]*", text):
            raise OptionError(f"{MAX_PIXELS_VARIABLE} must be a whole number of pixels above 0, got {text!r}")
        return int(text.replace("_", "")) if text else DEFAULT_MAX_PIXELS
    if max_pixels < 1:
        raise OptionError(f"max_pixels must be at least 1, got {max_pixels}")
    return max_pixels


@contextmanager
def opened_picture(source: object, shown: str, limit: int) -> Iterator[Image.Image]:
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
        refuse_damaged(shown, error)


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
def quiet_pillow() -> Iterator[None]:
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


def refuse_damaged(shown: str, error: Exception) -> NoReturn:
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
