from __future__ import annotations

import json
import math
from fractions import Fraction
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


def resized_plainly(rgb: Any, size_hw: tuple[int, int], coordinates: str, interpolation: str = "bilinear") -> Any:
    """Interpolation pixel by pixel in double precision: [3, H, W]."""

    def taps(index: int, size_in: int, size_out: int) -> tuple[int, int, float]:
        if interpolation == "nearest":
            exact = Fraction(2 * index + (coordinates == "half_pixel"), 2) * size_in / size_out
            return math.floor(exact), math.floor(exact), 0.0
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


def prepared_plainly(rgb: Any, spec: Preprocess) -> Any:
    """Values before mean and scale, channels in the order of the network, pixel by pixel: [3, H, W]."""
    (height, width), (network_h, network_w) = rgb.shape[:2], spec.size_hw
    picture = rgb if spec.colour_order == "RGB" else rgb[..., ::-1]
    if spec.resize == "pad_corner":
        whole_h = max(height, round(width * network_h / network_w))
        whole_w = max(width, round(height * network_w / network_h))
        canvas = np.empty((whole_h, whole_w, 3))
        canvas[:] = spec.fill
        canvas[:height, :width] = picture
        return resized_plainly(canvas, spec.size_hw, spec.coordinates, spec.interpolation)
    if spec.resize == "stretch":
        return resized_plainly(picture, spec.size_hw, spec.coordinates, spec.interpolation)
    factor = min(network_h / height, network_w / width)
    inner_h, inner_w = max(round(height * factor), 1), max(round(width * factor), 1)
    top, left = (network_h - inner_h) // 2, (network_w - inner_w) // 2
    if spec.resize == "letterbox_corner":
        top = left = 0
    out = np.empty((3, network_h, network_w))
    out[:] = np.array(spec.fill)[:, None, None]
    small = resized_plainly(picture, (inner_h, inner_w), spec.coordinates, spec.interpolation)
    out[:, top : top + inner_h, left : left + inner_w] = small
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


@st.composite
def specifications(draw: st.DrawFn) -> Preprocess:
    sides = st.integers(1, 24)
    resize = draw(st.sampled_from(["stretch", "letterbox", "letterbox_corner", "pad_corner"]))
    return Preprocess(
        (draw(sides), draw(sides)),
        coordinates=draw(st.sampled_from(RULES)),
        colour_order=draw(st.sampled_from(["RGB", "BGR"])),
        mean=(104.0, 117.0, 123.5),
        scale=(0.5, 2.0, -1.0),
        resize=resize,
        interpolation=draw(st.sampled_from(["bilinear", "nearest"])),
        rounding=draw(st.booleans()),
        fill=(0.0, 0.0, 0.0) if resize == "stretch" else (7.0, 114.0, 250.0),
    )


@settings(max_examples=200, deadline=None)
@given(specifications(), st.tuples(st.integers(1, 24), st.integers(1, 24)), st.integers(0, 99))
def test_every_rule_against_plain_loops(spec: Preprocess, size_in: tuple[int, int], seed: int) -> None:
    rgb = picture(*size_in, seed)
    made, _ = spec(rgb)
    mean, scale = (np.array(values)[:, None, None] for values in (spec.mean, spec.scale))
    values, expected = made / scale + mean, prepared_plainly(rgb, spec)
    if spec.rounding:
        np.testing.assert_allclose(values, np.rint(values), rtol=0, atol=1e-3)
        tie = np.abs(expected - np.floor(expected) - 0.5) < 1e-3  # float32 may see it on either side
        expected = np.where(tie, np.clip(values, expected - 0.51, expected + 0.51), np.floor(expected + 0.5))
    np.testing.assert_allclose(values, expected, rtol=0, atol=2e-3)


def test_halves_are_rounded_up() -> None:
    rgb = np.array([[[10, 200, 0], [11, 201, 1]]], np.uint8)
    made, _ = Preprocess((1, 1), rounding=True)(rgb)
    assert made.ravel().tolist() == [11, 201, 1]


def test_nearest_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    for size_in, size_out in ((9, 16), (16, 9), (30, 7)):
        rgb = picture(size_in, size_in + 2)
        tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
        for rule, mode in zip(RULES, ("nearest-exact", "nearest"), strict=True):
            theirs = torch.nn.functional.interpolate(tensor, (size_out, size_out), mode=mode)
            made, _ = Preprocess((size_out, size_out), coordinates=rule, interpolation="nearest")(rgb)  # type: ignore[arg-type]
            np.testing.assert_array_equal(made, theirs[0].numpy())


def test_a_long_strip_is_padded_without_a_large_canvas() -> None:
    """Filled up to a square, this strip would have 14 GB."""
    spec = Preprocess((8, 8), resize="pad_corner", fill=(9.0, 9.0, 9.0))
    made, geometry = spec(np.full((1, 70_000, 3), 200, np.uint8))
    assert geometry.place_xyxy == (0, 0, 8, pytest.approx(8 / 70_000))
    np.testing.assert_array_equal(made[:, 1:], 9)


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
        ({"resize": "crop"}, "resize must be one of"),
        ({"interpolation": "bicubic"}, "interpolation must be one of"),
        ({"rounding": 1}, "rounding must be true or false"),
        ({"fill": (1.0, 1.0, 1.0)}, "fill has no place where the picture is stretched"),
        ({"resize": "letterbox", "fill": (0.0, 256.0, 0.0)}, "fill must be three numbers of 0 … 255"),
        ({"resize": "pad_corner", "fill": (0.5, 0.0, 0.0)}, "fill must be three whole numbers"),
    ],
)
def test_refused_specifications(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Preprocess(**{"size_hw": (3, 3), **arguments})


SPEC = Preprocess((30, 40), coordinates="asymmetric", colour_order="BGR", mean=(104, 117, 123), scale=(0.1, 1 / 255, 2))


@given(specifications())
def test_json_round_trip(spec: Preprocess) -> None:
    data = json.loads(json.dumps(spec.to_dict()))
    assert Preprocess.from_dict(data) == spec
    fixed = {"antialias": False, "layout": "NCHW", "value_range": [0, 255], "exif": "applied"}
    assert {key: data[key] for key in fixed} == fixed


def test_what_older_files_say_is_written_as_ever() -> None:
    text = (
        '{"antialias":false,"colour_order":"BGR","coordinates":"asymmetric","exif":"applied","interpolation":"bilinear",'
        '"layout":"NCHW","mean":[104,117,123],"resize":"stretch","rounding":false,"scale":[0.1,0.00392156862745098,2],'
        '"size_hw":[30,40],"value_range":[0,255]}'
    )
    assert Preprocess.from_dict(json.loads(text)) == SPEC
    assert json.dumps(SPEC.to_dict(), sort_keys=True, separators=(",", ":")) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"antialias": True}, "preprocessing antialias=True is not supported, only False"),
        ({"resize": "letterbox"}, "preprocessing lacks 'fill'"),
        ({"resize": "crop", "fill": [0, 0, 0]}, "resize must be one of"),
        ({"fill": [0, 0, 0]}, "unknown preprocessing key 'fill'"),
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
    specifications(),
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.lists(st.tuples(*[st.floats(-1, 2, width=32)] * 4), min_size=1, max_size=4),
)
def test_geometry_round_trip(spec: Preprocess, size_hw: Any, boxes: Any) -> None:
    geometry = spec.geometry(size_hw)
    unit = np.array(boxes, np.float32)
    before = unit.copy()
    pixels = geometry.to_picture(unit)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(geometry.to_unit(pixels), unit, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(unit, before)
    place = geometry.place_xyxy or (0, 0, spec.size_hw[1], spec.size_hw[0])
    for box, row in zip(boxes, pixels, strict=True):
        for axis, value in enumerate(box):
            start, stop = place[axis % 2], place[axis % 2 + 2]
            side, network = size_hw[1 - axis % 2], spec.size_hw[1 - axis % 2]
            largest = side * network / (stop - start)
            plain = (value * network - start) / (stop - start) * side
            assert row[axis] == pytest.approx(plain, rel=1e-6, abs=1e-6 * largest)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "letterbox_corner", "pad_corner"])
@pytest.mark.parametrize("size_hw", [(300, 200), (120, 600), (64, 64)])
def test_a_box_leads_to_what_it_surrounds(resize: Any, size_hw: tuple[int, int]) -> None:
    """A white rectangle in a black picture is found where `to_unit` puts its box."""
    rgb = np.zeros((*size_hw, 3), np.uint8)
    box = np.array([[size_hw[1] // 4, size_hw[0] // 3, size_hw[1] * 3 // 4, size_hw[0] * 5 // 6]], np.float32)
    x1, y1, x2, y2 = (int(side) for side in box[0])
    rgb[y1:y2, x1:x2] = 255
    made, geometry = Preprocess((100, 160), resize=resize)(rgb)
    rows, columns = (np.flatnonzero((made[0] > 127).any(axis=axis)) for axis in (1, 0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(geometry.to_unit(box)[0] * [160, 100, 160, 100], found, atol=1)
