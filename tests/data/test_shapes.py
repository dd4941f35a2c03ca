"""The box around a shape, against its points and pixels."""

from __future__ import annotations

import base64
import io
import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from multibox.data.shapes import around_circle, around_mask, around_png, around_points, around_sides

NUMBER = st.floats(-500, 500)
SIDE = st.floats(0, 500)
ANGLE = st.floats(-720, 720)


def around_pixels(mask: np.ndarray) -> tuple[float, ...] | None:
    rows, columns = np.nonzero(mask)
    return (columns.min(), rows.min(), columns.max() + 1.0, rows.max() + 1.0) if len(rows) else None


def run_lengths(mask: np.ndarray) -> list[int]:
    """Down the columns, beginning with background, one pixel after the other."""
    runs, now = [0], False
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != now:
            runs.append(0)
            now = pixel
        runs[-1] += 1
    return runs


@given(mask=arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=70)))
@settings(max_examples=60)
def test_a_mask_in_run_lengths(mask: np.ndarray) -> None:
    assert around_mask(run_lengths(mask), list(mask.shape)) == around_pixels(mask)


@given(mask=arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=70)))
@settings(max_examples=60)
def test_a_mask_in_the_text_that_pycocotools_writes(mask: np.ndarray) -> None:
    coder = pytest.importorskip("pycocotools.mask")
    found = coder.encode(np.asfortranarray(mask, np.uint8))
    assert around_mask(found["counts"].decode(), found["size"]) == around_pixels(mask)


@pytest.mark.parametrize("counts", ["", "\x1f", "o", [1, -1], [1, "x"], [0, 13], None, {}])
def test_a_damaged_mask_has_no_box(counts: object) -> None:
    assert around_mask(counts, [3, 4]) is None


@given(centre=st.tuples(NUMBER, NUMBER), radii=st.tuples(SIDE, SIDE), degrees=ANGLE)
def test_an_ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float) -> None:
    around, turn = np.linspace(0, 2 * np.pi, 20_001), math.radians(degrees)
    u, v = radii[0] * np.cos(around), radii[1] * np.sin(around)
    x = centre[0] + u * math.cos(turn) - v * math.sin(turn)
    y = centre[1] + u * math.sin(turn) + v * math.cos(turn)
    expected = (x.min(), y.min(), x.max(), y.max())
    assert around_circle(*centre, *radii, degrees) == pytest.approx(expected, abs=1e-3)


@given(
    corner=st.tuples(NUMBER, NUMBER),
    sides=st.tuples(SIDE, SIDE),
    degrees=ANGLE,
    pivot=st.sampled_from([(0.0, 0.0), (0.5, 0.5)]),
)
def test_a_turned_rectangle(
    corner: tuple[float, float], sides: tuple[float, float], degrees: float, pivot: tuple[float, float]
) -> None:
    along = np.linspace(0, 1, 11)
    u, v = np.meshgrid((along - pivot[0]) * sides[0], (along - pivot[1]) * sides[1])
    turn = math.radians(degrees)
    x = corner[0] + u * math.cos(turn) - v * math.sin(turn)
    y = corner[1] + u * math.sin(turn) + v * math.cos(turn)
    expected = (x.min(), y.min(), x.max(), y.max())
    assert around_sides((*corner, *sides), pivot=pivot, degrees=degrees) == pytest.approx(expected, abs=1e-6)


@given(points=st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=9))
def test_points_in_a_row_and_in_pairs(points: list[tuple[float, float]]) -> None:
    xs, ys = zip(*points, strict=True)
    expected = (min(xs), min(ys), max(xs), max(ys))
    assert around_points(points) == expected
    assert around_points([value for point in points for value in point]) == expected


@pytest.mark.parametrize(
    "points", [None, [], [1], [1, 2, 3], [[1, 2], [3]], [[1, "x"]], "12", {1: 2, 3: 4}, [[1, 2], 3]]
)
def test_what_are_no_points_has_no_box(points: object) -> None:
    assert around_points(points) is None


def test_a_bitmap_of_supervisely() -> None:
    stream = io.BytesIO()
    Image.new("1", (7, 5), 1).save(stream, "PNG")
    data = base64.b64encode(zlib.compress(stream.getvalue())).decode()
    assert around_png(data, [10, 20]) == (10, 20, 17, 25)
    for bad, origin in ((data[:-4], [10, 20]), (data, None), (data, ["x", 1]), ("?", [1, 2])):
        assert around_png(bad, origin) is None
