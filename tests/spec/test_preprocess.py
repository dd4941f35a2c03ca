from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.errors import ContractError
from multibox.spec.preprocess import Geometry, Preprocess

RULES = ("half_pixel", "asymmetric")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized_plainly(rgb: Any, size_hw: tuple[int, int], coordinates: str) -> Any:
    """Bilinear interpolation pixel by pixel in double precision: [3, H, W]."""

    def taps(index: int, size_in: int, size_out: int) -> tuple[int, int, float]:
        if coordinates == "half_pixel":
            position = max(0.0, (index + 0.5) * size_in / size_out - 0.5)
        else:
            position = index * size_in / size_out
        low = min(math.floor(position), size_in - 1)
        return low, min(low + 1, size_in - 1), position - low

    out = np.empty((3, *size_hw), np.float64)
    for y in range(size_hw[0]):
        top, bottom, fy = taps(y, rgb.shape[0], size_hw[0])
        for x in range(size_hw[1]):
            left, right, fx = taps(x, rgb.shape[1], size_hw[1])
            for c in range(3):
                upper = float(rgb[top, left, c]) * (1 - fx) + float(rgb[top, right, c]) * fx
                lower = float(rgb[bottom, left, c]) * (1 - fx) + float(rgb[bottom, right, c]) * fx
                out[c, y, x] = upper * (1 - fy) + lower * fy
    return out


SIZES = [  # (picture, network)
    ((7, 5), (7, 5)),
    ((7, 5), (3, 2)),
    ((7, 5), (20, 31)),
    ((1, 1), (6, 4)),
    ((1, 9), (5, 5)),
    ((9, 1), (5, 5)),
    ((33, 47), (30, 30)),
    ((60, 20), (8, 40)),
    ((5, 5), (1, 1)),
    ((2, 3), (1, 50)),
]


@pytest.mark.parametrize("coordinates", RULES)
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_both_rules_against_plain_loops(size_in: Any, size_out: Any, coordinates: Any) -> None:
    rgb = picture(*size_in)
    made, geometry = Preprocess(size_out, coordinates=coordinates)(rgb)
    assert made.shape == (3, *size_out)
    np.testing.assert_allclose(made, resized_plainly(rgb, size_out, coordinates), rtol=0, atol=1e-3)
    assert geometry == Geometry(size_in, size_out)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from(RULES),
    st.integers(0, 99),
)
def test_any_sizes_against_plain_loops(size_in: Any, size_out: Any, coordinates: Any, seed: int) -> None:
    rgb = picture(*size_in, seed)
    made, _ = Preprocess(size_out, coordinates=coordinates)(rgb)
    np.testing.assert_allclose(made, resized_plainly(rgb, size_out, coordinates), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("size_in", "size_out"), [*SIZES, ((427, 640), (300, 300)), ((240, 100), (512, 512))])
def test_half_pixel_equals_torch(size_in: Any, size_out: Any) -> None:
    torch = pytest.importorskip("torch")
    rgb = picture(*size_in)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(tensor, size_out, mode="bilinear", align_corners=False, antialias=False)
    made, _ = Preprocess(size_out)(rgb)
    np.testing.assert_allclose(made, theirs[0].numpy(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("coordinates", RULES)
def test_the_same_size_changes_no_value(coordinates: Any) -> None:
    rgb = picture(12, 17)
    made, _ = Preprocess((12, 17), coordinates=coordinates)(rgb)
    np.testing.assert_array_equal(made, rgb.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize("coordinates", RULES)
@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_one_colour_stays_that_colour(coordinates: Any, value: int) -> None:
    made, _ = Preprocess((13, 31), coordinates=coordinates)(np.full((50, 7, 3), value, np.uint8))
    np.testing.assert_allclose(made, value, rtol=0, atol=1e-4)


def test_the_rules_by_hand() -> None:
    """Two pixels, 0 and 100, become four.

    They lie at −0.25 (held at 0), 0.25, 0.75 and 1.25 (held at 1), or at 0, 0.5, 1 and 1.5 (held at 1).
    """
    rgb = np.zeros((1, 2, 3), np.uint8)
    rgb[0, 1] = 100
    half, _ = Preprocess((1, 4), coordinates="half_pixel")(rgb)
    asymmetric, _ = Preprocess((1, 4), coordinates="asymmetric")(rgb)
    np.testing.assert_allclose(half[0, 0], [0, 25, 75, 100], atol=1e-5)
    np.testing.assert_allclose(asymmetric[0, 0], [0, 50, 100, 100], atol=1e-5)


def test_there_is_no_antialiasing() -> None:
    rgb = np.zeros((1, 8, 3), np.uint8)
    rgb[0, 1::2] = 255
    made, _ = Preprocess((1, 2), coordinates="asymmetric")(rgb)
    np.testing.assert_array_equal(made[0, 0], [0, 0])


def test_colour_order_mean_and_scale() -> None:
    rgb = np.array([[[10, 20, 30]]], np.uint8)
    mean, scale = (1.0, 2.0, 3.0), (0.5, 2.0, -1.0)
    as_rgb, _ = Preprocess((1, 1), mean=mean, scale=scale)(rgb)
    as_bgr, _ = Preprocess((1, 1), colour_order="BGR", mean=mean, scale=scale)(rgb)
    assert as_rgb.ravel().tolist() == [(10 - 1) * 0.5, (20 - 2) * 2, (30 - 3) * -1]
    assert as_bgr.ravel().tolist() == [(30 - 1) * 0.5, (20 - 2) * 2, (10 - 3) * -1]


@pytest.mark.parametrize("coordinates", RULES)
@pytest.mark.parametrize("colour_order", ["RGB", "BGR"])
@pytest.mark.parametrize(
    ("size_in", "size_out"), [((7, 5), (7, 5)), ((7, 5), (20, 31)), ((1, 1), (1, 1)), ((40, 9), (8, 8))]
)
def test_the_result_is_contiguous_fresh_and_the_picture_unchanged(
    size_in: Any, size_out: Any, coordinates: Any, colour_order: Any
) -> None:
    rgb = picture(*size_in)
    before = rgb.copy()
    spec = Preprocess(size_out, coordinates=coordinates, colour_order=colour_order, mean=(1, 2, 3), scale=(2, 2, 2))
    first, _ = spec(rgb)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    assert first.dtype == np.float32
    assert not np.shares_memory(first, rgb)
    kept = first.copy()
    second, _ = spec(picture(*size_in, seed=1))
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(rgb, before)


@pytest.mark.parametrize("fourth", [0, 255])
def test_the_fourth_byte_of_a_pixel_does_not_count(fourth: int) -> None:
    rgb = picture(33, 47)
    pixels = np.full((33, 47, 4), fourth, np.uint8)
    pixels[..., :3] = rgb
    spec = Preprocess((30, 30), mean=(1, 2, 3), scale=(0.5, 2, -1))
    np.testing.assert_array_equal(spec(pixels[..., :3])[0], spec(rgb)[0])


def test_views_and_read_only_pictures_are_taken() -> None:
    rgb = picture(20, 30)
    spec = Preprocess((10, 10))
    for view in (rgb[::2, ::-1], rgb.transpose(1, 0, 2), np.asfortranarray(rgb), rgb[:, :, ::-1]):
        np.testing.assert_array_equal(spec(view)[0], spec(view.copy(order="C"))[0])
    rgb.flags.writeable = False
    assert spec(rgb)[0].shape == (3, 10, 10)


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_what_is_no_picture(rgb: Any) -> None:
    with pytest.raises(ContractError, match=r"expected a picture \[h, w, 3\] uint8 RGB, got"):
        Preprocess((8, 8))(rgb)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_hw": (0, 3)}, "size_hw must be two integers"),
        ({"size_hw": (3,)}, "size_hw must be two integers"),
        ({"coordinates": "align_corners"}, "coordinates must be one of"),
        ({"colour_order": "GRB"}, "colour_order must be one of"),
        ({"mean": (1.0, 2.0)}, "mean must be three finite numbers"),
        ({"mean": (1.0, 2.0, math.nan)}, "mean must be three finite numbers"),
        ({"scale": (1.0, math.inf, 1.0)}, "scale must be three finite numbers"),
        ({"scale": (1.0, 0.0, 1.0)}, "scale must not be zero"),
    ],
)
def test_refused_specifications(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Preprocess(**{"size_hw": (3, 3), **arguments})


SPEC = Preprocess((30, 40), coordinates="asymmetric", colour_order="BGR", mean=(104, 117, 123), scale=(0.1, 1 / 255, 2))


def test_json_round_trip() -> None:
    data = json.loads(json.dumps(SPEC.to_dict()))
    assert Preprocess.from_dict(data) == SPEC
    fixed = {"resize": "stretch", "interpolation": "bilinear", "antialias": False, "rounding": False, "layout": "NCHW"}
    assert {key: data[key] for key in fixed} == fixed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"antialias": True}, "preprocessing antialias=True is not supported, only False"),
        ({"resize": "letterbox"}, "resize='letterbox' is not supported, only 'stretch'"),
        ({"interpolation": "nearest"}, "is not supported"),
        ({"layout": "NHWC"}, "is not supported"),
        ({"value_range": [0, 1]}, "is not supported"),
        ({"color_order": "BGR"}, r"unknown preprocessing key 'color_order'; did you mean 'colour_order'\?"),
        ({"coordinates": "corners"}, "must be one of"),
        ({"size_hw": [0, 0]}, "two integers"),
    ],
)
def test_from_dict_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Preprocess.from_dict({**SPEC.to_dict(), **changes})


def test_geometry_by_hand() -> None:
    geometry = Geometry((480, 640), (300, 300))
    np.testing.assert_array_equal(geometry.to_picture(np.float32([[0, 0.5, 0.25, 1]])), [[0, 240, 160, 480]])
    assert geometry.to_picture(np.zeros((0, 4), np.float32)).shape == (0, 4)


@given(
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.lists(st.tuples(*[st.floats(-1, 2, width=32)] * 4), min_size=1, max_size=4),
)
def test_geometry_round_trip(size_hw: Any, boxes: Any) -> None:
    geometry = Geometry(size_hw, (300, 300))
    unit = np.array(boxes, np.float32)
    before = unit.copy()
    pixels = geometry.to_picture(unit)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(geometry.to_unit(pixels), unit, rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(unit, before)
    for box, row in zip(boxes, pixels, strict=True):
        plain = [value * size_hw[1 - axis % 2] for axis, value in enumerate(box)]
        np.testing.assert_allclose(row, plain, rtol=1e-6, atol=1e-30)
