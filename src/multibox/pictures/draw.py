"""Draw boxes with captions on a picture, legible from thumbnails to camera pictures."""

from __future__ import annotations

import colorsys
import contextlib
import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from multibox.errors import ContractError

__all__ = ["class_colour", "draw_boxes"]

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Extent: TypeAlias = tuple[int, int, int, int]
"""First column, first row, last column, last row: inclusive, as Pillow draws."""

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Steps of this part of a circle never come close to an earlier step: hues stay apart for any number of classes."""

_LIGHTNESS = (0.50, 0.64, 0.40)
"""In turn, so that classes whose hues meet again after some rounds differ in lightness."""

_SATURATION = 0.91
_DIMMEST = 0.12
"""Relative luminance below which a colour, mostly blue, would sink into dark pictures."""

_EVEN_LUMINANCE = 0.179
"""Where black and white text have the same contrast: (L + 0.05)² = 0.05 · 1.05, from WCAG 2's contrast ratio."""

_SIDE_PER_LINE_WIDTH = 220
_SIDE_PER_FONT_SIZE = 36
_SMALLEST_FONT = 9
_LARGEST_CHIP = 0.25
"""Part of the picture; a larger caption is left out."""

_WIDER_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
    "arial.ttf",
)
_NEVER_A_CHARACTER = "\uffff"
_FEWEST_LETTERS = 3
_NUDGES = 3
"""How many chip heights a caption may move up or down to leave others readable."""


def class_colour(index: int) -> tuple[int, int, int]:
    """The RGB colour of a class: the same in every picture and run, far from those of its neighbours.

    >>> class_colour(0)
    (244, 46, 11)
    """
    hue, lightness = (0.025 + index * _GOLDEN_RATIO) % 1, _LIGHTNESS[index % len(_LIGHTNESS)]
    while True:
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, _SATURATION))
        if _luminance((red, green, blue)) >= _DIMMEST:
            return red, green, blue
        lightness += 0.02


def draw_boxes(
    rgb: NDArray[np.uint8],
    boxes_xyxy: NDArray[Any],
    captions: Sequence[str],
    colour_indexes: Sequence[int],
    *,
    line_width: int | None = None,
) -> Image.Image:
    """A new picture with the boxes and a caption for each.

    `rgb` is [H, W, 3] uint8 and stays as it is. `boxes_xyxy` is [N, 4] in pixels; boxes may lie partly or wholly
    outside, and those with values that are not finite are left out. An empty caption draws none. Later boxes lie on
    top and get the better place for their caption: pass them by ascending score. Line width and font size follow
    the size of the picture, the line width unless it is given (pixels).

    Captions keep inside the picture and off each other where there is room; one that would hide a quarter of the
    picture is left out. Letters that no font at hand knows become plain ones or question marks.

    Raises ContractError where shapes or lengths do not agree.
    """
    boxes_xyxy = np.asarray(boxes_xyxy, dtype=np.float64)
    _check(rgb, boxes_xyxy, captions, colour_indexes)
    height, width = rgb.shape[:2]
    side = math.sqrt(height * width)
    line = max(1, round(side / _SIDE_PER_LINE_WIDTH) if line_width is None else line_width)
    font_size = max(_SMALLEST_FONT, round(side / _SIDE_PER_FONT_SIZE))
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    canvas = ImageDraw.Draw(picture)

    extents = {index: _extent(box, width, height, line) for index, box in enumerate(boxes_xyxy)}
    visible = {index: extent for index, extent in extents.items() if extent is not None}
    for index, extent in visible.items():
        canvas.rectangle(extent, outline=class_colour(int(colour_indexes[index])), width=line)

    chips: dict[int, tuple[str, _Font, _Extent]] = {}
    for index, extent in reversed(visible.items()):  # the last box chooses its place first
        text, font = _drawable(captions[index], font_size)
        text, size_wh = _fitted(text, font, (width, height))
        if text:
            taken = np.array([chip for _, _, chip in chips.values()], np.int64).reshape(-1, 4)
            chips[index] = text, font, _place(size_wh, extent, (width, height), taken)
    for index, (text, font, chip) in reversed(chips.items()):
        _draw_chip(canvas, text, chip, font, class_colour(int(colour_indexes[index])))
    return picture


def _check(rgb: NDArray[Any], boxes_xyxy: NDArray[Any], captions: Sequence[str], colour_indexes: Sequence[int]) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ContractError(f"expected a picture as uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    if boxes_xyxy.size and (boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4):
        raise ContractError(f"expected boxes as [N, 4], got {list(boxes_xyxy.shape)}")
    counts = len(boxes_xyxy), len(captions), len(colour_indexes)
    if len(set(counts)) > 1:
        raise ContractError(
            "expected as many captions and colour indexes as boxes, got {1} and {2} for {0}".format(*counts)
        )


def _extent(box_xyxy: NDArray[np.float64], width: int, height: int, line: int) -> _Extent | None:
    """First and last pixel column and row of a box, its sides put in order; None where nothing is to be seen.

    What lies outside is cut to just beyond the picture, so the border there is not drawn along the edge.
    """
    if not np.isfinite(box_xyxy).all():
        return None
    x0, x1 = sorted((float(box_xyxy[0]), float(box_xyxy[2])))
    y0, y1 = sorted((float(box_xyxy[1]), float(box_xyxy[3])))
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        return None
    left, top = max(-line, math.floor(x0)), max(-line, math.floor(y0))
    right, bottom = min(width - 1 + line, math.ceil(x1) - 1), min(height - 1 + line, math.ceil(y1) - 1)
    return left, top, max(left, right), max(top, bottom)


@lru_cache(maxsize=32)
def _own_font(size: int) -> _Font:
    """Pillow's own font: the same everywhere, but it knows little beyond ASCII."""
    try:
        return ImageFont.load_default(size)
    except ImportError:  # Pillow built without FreeType has one bitmap font of one size
        return ImageFont.load_default()


@lru_cache(maxsize=32)
def _installed_fonts(size: int) -> tuple[_Font, ...]:
    """Fonts with more letters, looked for only when a caption needs them."""
    fonts: list[_Font] = []
    for name in _WIDER_FONTS:
        with contextlib.suppress(OSError, ImportError):
            fonts.append(ImageFont.truetype(name, size))
    return tuple(fonts)


@lru_cache(maxsize=4096)
def _knows(font: _Font, char: str) -> bool:
    if not isinstance(font, ImageFont.FreeTypeFont):
        return ord(char) < 256
    return char.isascii() or bytes(font.getmask(char)) != bytes(font.getmask(_NEVER_A_CHARACTER))


def _drawable(caption: str, size: int) -> tuple[str, _Font]:
    """The caption on one line and the first font that has all its letters.

    Where none has, accents are dropped, and what is still unknown becomes a question mark.
    """
    text = " ".join("".join(char if char.isprintable() else " " for char in caption).split())
    own = _own_font(size)
    if all(_knows(own, char) for char in text):
        return text, own
    for font in _installed_fonts(size):
        if all(_knows(font, char) for char in text):
            return text, font
    plain = (char if _knows(own, char) else unicodedata.normalize("NFKD", char)[0] for char in text)
    return "".join(char if _knows(own, char) else "?" for char in plain), own


def _fitted(text: str, font: _Font, picture_wh: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """The text, cut to the width of the picture, and the size of its chip; no text where it would hide too much."""
    ascent, descent, margin = _metrics(font)
    room = picture_wh[0] - 2 * margin
    if font.getlength(text) > room:
        ending = "…" if _knows(font, "…") else "..."
        text = text[: max(1, room)]  # no letter is narrower than a pixel
        while text and font.getlength(text + ending) > room:
            text = text[:-1]
        text = text.rstrip() + ending if len(text) >= _FEWEST_LETTERS else ""
    wide, high = math.ceil(font.getlength(text)) + 2 * margin, ascent + descent
    hides_too_much = wide * high > _LARGEST_CHIP * picture_wh[0] * picture_wh[1]
    return ("" if hides_too_much else text), (wide, high)


def _metrics(font: _Font) -> tuple[int, int, int]:
    """Ascent, descent and the margin left and right of a caption, in pixels."""
    if isinstance(font, ImageFont.FreeTypeFont):
        ascent, descent = font.getmetrics()
        return ascent, descent, max(2, round(font.size / 4))
    return math.ceil(font.getbbox("Ag")[3]), 1, 2


def _place(size_wh: tuple[int, int], box: _Extent, picture_wh: tuple[int, int], taken: NDArray[np.int64]) -> _Extent:
    """The first place near the box where the chip covers no other, or else the one that covers least."""
    (wide, high), (left, top, right, bottom) = size_wh, box
    left, top = max(left, 0), max(top, 0)
    last_left, last_top = picture_wh[0] - wide, picture_wh[1] - high
    places = [(left, top - high), (left, top), (right - wide + 1, top - high), (left, bottom + 1)]
    places += [(right - wide + 1, top), (left, bottom - high + 1), (right - wide + 1, bottom - high + 1)]
    for step in range(1, _NUDGES + 1):
        places += [(left, top + step * high), (left, top - (step + 1) * high)]
    fitting = [place for place in places if 0 <= place[1] <= last_top] or places
    corners = np.array([(min(max(x, 0), last_left), min(max(y, 0), last_top)) for x, y in fitting], np.int64)
    chips = np.concatenate([corners, np.add(corners, (wide - 1, high - 1))], axis=1)
    lower = np.maximum(chips[:, None, :2], taken[None, :, :2])
    upper = np.minimum(chips[:, None, 2:], taken[None, :, 2:])
    covered = np.clip(upper - lower + 1, 0, None).prod(axis=2).sum(axis=1)
    x0, y0, x1, y1 = chips[int(covered.argmin())].tolist()
    return x0, y0, x1, y1


def _draw_chip(
    canvas: ImageDraw.ImageDraw, text: str, chip: _Extent, font: _Font, colour: tuple[int, int, int]
) -> None:
    canvas.rectangle(chip, fill=colour)
    margin = _metrics(font)[2]
    canvas.text((chip[0] + margin, chip[1]), text, fill=_text_colour(colour), font=font)


def _text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has the higher contrast."""
    return (0, 0, 0) if _luminance(background) > _EVEN_LUMINANCE else (255, 255, 255)


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, 0 to 1 (WCAG 2)."""
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
