"""The box around a shape: annotation tools also keep polygons, circles, turned rectangles and masks."""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Box", "around_circle", "around_mask", "around_png", "around_points", "around_sides", "numbers"]

Box = tuple[float, float, float, float]
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def numbers(values: Any, count: int | None = None) -> list[float] | None:
    """Values as floats; None where they are no numbers, or not `count` of them. Text and objects are no lists."""
    if isinstance(values, (str, bytes, dict)):
        return None
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if count is None or len(found) == count else None


def around_points(values: Any) -> Box | None:
    """(x1, y1, x2, y2) around points, given as x, y, x, y, … or as pairs; None where they are no points."""
    if isinstance(values, Sequence) and values and isinstance(values[0], Sequence) and not isinstance(values[0], str):
        values = [value for pair in values for value in (pair if isinstance(pair, Sequence) else "?")]
    found = numbers(values)
    if not found or len(found) % 2:
        return None
    xs, ys = found[0::2], found[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def around_circle(centre_x: Any, centre_y: Any, radius_x: Any, radius_y: Any = None, degrees: Any = 0) -> Box | None:
    """(x1, y1, x2, y2) around a circle or an ellipse that is turned clockwise."""
    found = numbers((centre_x, centre_y, radius_x, radius_x if radius_y is None else radius_y, degrees or 0))
    if found is None:
        return None
    x, y, a, b, turn = found
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    reach_x, reach_y = math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos)
    return x - reach_x, y - reach_y, x + reach_x, y + reach_y


def around_sides(sides: Iterable[Any], *, pivot: tuple[float, float] = (0, 0), degrees: Any = None) -> Box | None:
    """(x1, y1, x2, y2) around a rectangle given as (x, y, width, height), turned clockwise about (x, y).

    (x, y) is its upper left corner, or the place in it that `pivot` says in parts of its sides: (0.5, 0.5) for its
    centre.
    """
    found, turn = numbers(sides, 4), numbers((degrees or 0,))
    if found is None or turn is None:
        return None
    x, y, width, height = found
    left, top = -pivot[0] * width, -pivot[1] * height
    if not turn[0]:
        return x + left, y + top, x + left + width, y + top + height
    cos, sin = math.cos(math.radians(turn[0])), math.sin(math.radians(turn[0]))
    corners = [(u, v) for u in (left, left + width) for v in (top, top + height)]
    return around_points([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in corners])


def around_mask(counts: Any, size_hw: Any) -> Box | None:
    """(x1, y1, x2, y2) around a mask in COCO's run lengths; None where they are damaged or the mask is empty.

    Runs go down the columns and begin with background. They are a list of lengths, or COCO's text: six bits for each
    character, of which one says that more follow, and from the fourth run on the difference to the run before the last.
    """
    size = numbers(size_hw, 2) if not isinstance(size_hw, str) else None
    runs = _runs(counts) if isinstance(counts, str) else numbers(counts)
    if not size or not runs or size[0] < 1 or not all(math.isfinite(run) and run >= 0 for run in runs):
        return None
    height, start = int(size[0]), 0
    columns: list[int] = []
    rows: list[int] = []
    for position, length in enumerate(int(run) for run in runs):
        end = start + length
        if position % 2 and length:
            first, last = start // height, (end - 1) // height
            columns += (first, last)
            rows += (start % height, (end - 1) % height) if first == last else (0, height - 1)
        start = end
    if not columns or start > height * size[1]:
        return None
    return float(min(columns)), float(min(rows)), max(columns) + 1.0, max(rows) + 1.0


def _runs(text: str) -> list[float] | None:
    runs: list[float] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs if shift == 0 else None


def around_png(data: Any, origin: Any) -> Box | None:
    """(x1, y1, x2, y2) of a mask in Supervisely's manner: a compressed PNG in base 64, placed at `origin` (x, y)."""
    place = numbers(origin, 2) if isinstance(origin, Iterable) else None
    try:
        png = zlib.decompress(base64.b64decode(data, validate=True))
    except (TypeError, ValueError, binascii.Error, zlib.error):
        return None
    if place is None or not png.startswith(_PNG_HEAD) or len(png) < 24:
        return None
    width, height = struct.unpack(">II", png[16:24])
    return place[0], place[1], place[0] + width, place[1] + height
