"""Augmentation: boxes stay on their pixels, the crop rule is the original's, and nothing takes for ever."""

from __future__ import annotations

import colorsys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.errors import ContractError, OptionError
from multibox.spec.preprocess import Preprocess
from multibox.training import crops
from multibox.training.augmentation import augment, mosaic, resized
from multibox.training.options import AugmentOptions
from multibox.training.photometric import distort
from multibox.training.sample import Sample, check_sample, clipped

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)
GEOMETRY_ONLY: dict[str, Any] = {"photometric": 0.0, "interpolation": 0.0}
PLAIN: dict[str, Any] = {**GEOMETRY_ONLY, "flip": 0.0, "zoom_out": 0.0, "crop": 0.0}
OUT = Preprocess((300, 300), mean=(123.4, 116.6, 103.9))
RESIZES = ("stretch", "letterbox", "letterbox_corner", "pad_corner")


def make(rgb: Any, boxes: Any = (), ignore: Any = None) -> Sample:
    boxes_xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    flags = np.zeros(len(boxes_xyxy), np.bool_) if ignore is None else np.array(ignore, np.bool_)
    sample = Sample(np.asarray(rgb, np.uint8), boxes_xyxy, np.arange(len(boxes_xyxy)), flags)
    for array in (sample.rgb, sample.boxes_xyxy, sample.labels, sample.ignore):
        array.flags.writeable = False  # so that whoever changes its input fails
    return sample


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Blue, with a red rectangle at the box."""
    rgb = np.full((height, width, 3), BLUE, np.uint8)
    rgb[box[1] : box[3], box[0] : box[2]] = RED
    return rgb


def red_bounds(rgb: np.ndarray) -> np.ndarray:
    red = (rgb[..., 0] > 127) & (rgb[..., 2] < 128)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def assert_sound(sample: Sample, size_hw: tuple[int, int]) -> None:
    assert sample.rgb.shape == (*size_hw, 3)
    assert (sample.rgb.dtype, sample.boxes_xyxy.dtype) == (np.uint8, np.float32)
    assert (sample.labels.dtype, sample.ignore.dtype) == (np.int64, np.bool_)
    assert sample.boxes_xyxy.shape == (len(sample.labels), 4)
    assert len(sample.labels) == len(sample.ignore)
    assert np.isfinite(sample.boxes_xyxy).all()
    assert (sample.boxes_xyxy[:, :2] < sample.boxes_xyxy[:, 2:]).all()
    assert (sample.boxes_xyxy >= 0).all()
    assert (sample.boxes_xyxy <= np.array([size_hw[1], size_hw[0]] * 2)).all()
    check_sample(sample, source="test")


def iou(a: Any, b: Any) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


# --- boxes stay on their pixels ---


@pytest.mark.slow
@pytest.mark.parametrize("picture_hw", [(480, 640), (133, 91), (200, 200)])
@pytest.mark.parametrize(("size_hw", "resize"), [((300, 300), "stretch"), *(((128, 352), way) for way in RESIZES)])
@pytest.mark.parametrize("interpolation", [0.0, 1.0])
def test_boxes_stay_on_their_pixels(
    picture_hw: tuple[int, int], size_hw: tuple[int, int], resize: Any, interpolation: float
) -> None:
    colour = {"mean": GREEN} if resize == "stretch" else {"fill": GREEN}
    spec = Preprocess(size_hw, resize=resize, **colour)  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    options = AugmentOptions(photometric=0.0, interpolation=interpolation, flip_vertical=0.5)
    height, width = picture_hw
    compared = 0
    for number in range(200):
        x1, y1 = rng.integers(0, [width * 3 // 4, height * 3 // 4])
        x2, y2 = rng.integers([x1 + width // 5, y1 + height // 5], [width, height], endpoint=True)
        rgb = painted(height, width, (x1, y1, x2, y2))
        if number % 2:
            rgb = np.concatenate([rgb, rgb[..., :1]], axis=2)[..., :3]
        result = augment(make(rgb, [(x1, y1, x2, y2)]), rng, options, spec)
        assert_sound(result, size_hw)
        if len(result.labels) and (np.diff(result.boxes_xyxy.reshape(2, 2), axis=0) >= 4).all():
            assert np.abs(red_bounds(result.rgb) - result.boxes_xyxy[0]).max() <= 1.5
            compared += 1
    assert compared > 100


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from(RESIZES),
    st.lists(st.tuples(*[st.floats(-20, 80, width=32)] * 4), max_size=4),
    st.integers(0, 2**32),
)
def test_any_picture_any_boxes_any_size(
    picture_hw: tuple[int, int], size_hw: tuple[int, int], resize: Any, corners: list[tuple[float, ...]], seed: int
) -> None:
    spec = Preprocess(size_hw, "asymmetric", resize=resize)
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    rng = np.random.default_rng(seed)
    sample = make(noise(*picture_hw), boxes, rng.random(len(boxes)) < 0.3)
    options = AugmentOptions(crop_trials=5, flip_vertical=0.5, zoom_out_max=16.0)
    result = augment(sample, rng, options, spec)
    assert_sound(result, size_hw)
    assert set(result.labels) <= set(range(len(boxes)))
    assert_sound(resized(sample, spec), size_hw)
    four = mosaic([sample] * 4, rng, spec)
    assert_sound(four, size_hw)


def test_flips_mirror_pixels_and_boxes() -> None:
    sample = make(noise(40, 50), [(3, 4, 20, 30), (10, 0, 50, 12)])
    plain = resized(sample, Preprocess((60, 90)))
    rng = np.random.default_rng(0)
    out = replace(OUT, size_hw=(60, 90))
    same = augment(sample, rng, AugmentOptions(**PLAIN), out)
    np.testing.assert_array_equal(same.rgb, plain.rgb)
    np.testing.assert_array_equal(same.boxes_xyxy, plain.boxes_xyxy)
    flipped = augment(sample, rng, AugmentOptions(**{**PLAIN, "flip": 1.0}), out)
    np.testing.assert_array_equal(flipped.rgb, plain.rgb[:, ::-1])
    x1, y1, x2, y2 = plain.boxes_xyxy.T
    np.testing.assert_allclose(flipped.boxes_xyxy, np.stack([90 - x2, y1, 90 - x1, y2], axis=1), atol=1e-4)
    upside = augment(sample, rng, AugmentOptions(**PLAIN, flip_vertical=1.0), out)
    np.testing.assert_array_equal(upside.rgb, plain.rgb[::-1])
    np.testing.assert_allclose(upside.boxes_xyxy, np.stack([x1, 60 - y2, x2, 60 - y1], axis=1), atol=1e-4)


@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("resize", RESIZES)
def test_resized_is_the_preprocessing_rounded(coordinates: Any, interpolation: Any, resize: Any) -> None:
    rgb = noise(47, 61)
    fill = (0.0, 0.0, 0.0) if resize == "stretch" else (9.0, 100.0, 200.0)
    spec = Preprocess((30, 90), coordinates, resize=resize, interpolation=interpolation, fill=fill)
    expected, geometry = spec(rgb)
    as_bgr = replace(spec, colour_order="BGR", mean=(1, 2, 3), scale=(5, 6, 7), rounding=True, fill=fill[::-1])
    result = resized(make(rgb, [(5, 6, 50, 40)]), as_bgr)
    assert np.abs(result.rgb.transpose(2, 0, 1) - expected).max() <= 0.501
    unit_xyxy = result.boxes_xyxy / np.array([90, 30, 90, 30], np.float32)
    np.testing.assert_allclose(geometry.to_picture(unit_xyxy), [(5, 6, 50, 40)], atol=1e-4)


@pytest.mark.slow
def test_storage_of_the_picture_makes_no_difference() -> None:
    rgb = noise(60, 80)
    packed = np.concatenate([rgb, noise(60, 80, seed=1)[..., :1]], axis=2)[..., :3]
    mirrored = np.ascontiguousarray(rgb[:, ::-1])[:, ::-1]
    shifted = np.concatenate([rgb[..., :1], rgb], axis=2)[..., 1:]
    for seed in range(60):
        expected, *others = (
            augment(make(pixels, [(10, 10, 60, 50)]), np.random.default_rng(seed), AugmentOptions(), OUT)
            for pixels in (rgb, packed, mirrored, shifted)
        )
        for other in others:
            np.testing.assert_array_equal(other.rgb, expected.rgb)


# --- zoom-out ---


@pytest.mark.slow
def test_zoom_out_happens_half_the_time_with_a_uniform_ratio() -> None:
    rng = np.random.default_rng(2)
    sample = make(np.full((200, 300, 3), 255, np.uint8))
    options = AugmentOptions(**{**PLAIN, "zoom_out": 0.5})
    areas = []
    for _ in range(600):
        rgb = augment(sample, rng, options, Preprocess((300, 300))).rgb
        areas.append(np.count_nonzero(rgb[..., 0]) / 300**2)
    ratios = np.sort(1 / np.sqrt(areas))
    zoomed = ratios[ratios > 1.0]
    assert 250 < len(zoomed) < 350
    empirical = (np.arange(len(zoomed)) + 0.5) / len(zoomed)
    assert np.abs((zoomed - 1) / 3 - empirical).max() < 0.12  # Kolmogorov and Smirnov at 0.1 %, plus rounding


def test_fill_stays_exactly_the_mean_when_colours_are_distorted() -> None:
    geometry = AugmentOptions(photometric=0.0, interpolation=0.0)
    colours = AugmentOptions(photometric=1.0, interpolation=0.0)
    white, filled, changed = make(np.full((90, 120, 3), 255, np.uint8)), 0, 0
    grey = make(np.full((90, 120, 3), 128, np.uint8))
    for seed in range(80):
        mask = augment(white, np.random.default_rng(seed), geometry, replace(OUT, mean=(0, 0, 0))).rgb[..., 0] == 0
        result = augment(grey, np.random.default_rng(seed), colours, OUT).rgb
        assert (result[mask] == (123, 117, 104)).all()
        filled += mask.any()
        changed += not mask.all() and not (result[~mask] == 128).any()
    assert filled > 20
    assert changed > 20


# --- crop ---


def crop_by_loops(rng: np.random.Generator, options: AugmentOptions, canvas_hw: Any, guides: Any) -> tuple[Any, Any]:
    """The rule of sampler.cpp, one crop at a time; also which sampler was chosen."""
    overlaps = options.crop_overlaps if len(guides) else ()
    candidates = crops._candidates(
        rng, len(overlaps) * options.crop_trials + 1, options.crop_min_scale, canvas_hw
    ).tolist()
    found = [("whole", [0, 0, canvas_hw[1], canvas_hw[0]]), ("random", candidates[-1])]
    for i, overlap in enumerate(overlaps):
        for crop in candidates[i * options.crop_trials : (i + 1) * options.crop_trials]:
            if any(iou(crop, box) >= overlap for box in guides):
                found.append((overlap, crop))
                break
    return found[rng.integers(len(found))]


def test_crop_is_that_of_the_obvious_loops() -> None:
    world = np.random.default_rng(7)
    for seed in range(150):
        canvas_hw = tuple(world.integers(20, 700, 2).tolist())
        start = world.uniform(0, [canvas_hw[1] * 0.8, canvas_hw[0] * 0.8], (world.integers(0, 6), 2))
        guides = np.concatenate([start, start + world.uniform(1, [canvas_hw[1] / 2, canvas_hw[0] / 2], start.shape)], 1)
        options = AugmentOptions(crop_trials=int(world.integers(1, 60)))
        _, expected = crop_by_loops(np.random.default_rng(seed), options, canvas_hw, guides)
        actual = crops.sample_crop(np.random.default_rng(seed), options, canvas_hw, guides)
        assert list(actual) == expected


@pytest.mark.parametrize("min_scale", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("canvas_hw", [(1000, 1400), (3, 2), (1, 1)])
def test_crops_keep_to_scale_and_aspect(min_scale: float, canvas_hw: tuple[int, int]) -> None:
    found = crops._candidates(np.random.default_rng(1), 4000, min_scale, canvas_hw)
    x1, y1, x2, y2 = found.T
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x1 < x2).all()
    assert (y1 < y2).all()
    assert (x2 <= canvas_hw[1]).all()
    assert (y2 <= canvas_hw[0]).all()
    if canvas_hw[0] > 100:
        wide, high = (x2 - x1) / canvas_hw[1], (y2 - y1) / canvas_hw[0]
        scale, aspect = np.sqrt(wide * high), wide / high
        rounding = 0.5 / canvas_hw[0] / wide.min()
        assert scale.min() >= min_scale - 0.002
        assert (aspect >= np.maximum(0.5, scale**2) * (1 - 2 * rounding) - 0.01).all()
        assert (aspect <= np.minimum(2.0, scale**-2) * (1 + 2 * rounding) + 0.01).all()
        if min_scale < 1:
            spread = [np.quantile(scale, q) for q in (0.1, 0.5, 0.9)]
            np.testing.assert_allclose(spread, [min_scale + q * (1 - min_scale) for q in (0.1, 0.5, 0.9)], atol=0.03)
            assert np.corrcoef(x1 / np.maximum(canvas_hw[1] - (x2 - x1), 1), wide)[0, 1] < 0.1


@pytest.mark.slow
def test_every_sampler_is_chosen_equally_often() -> None:
    options = AugmentOptions(crop_trials=1000, crop_overlaps=(0.1, 0.3, 0.5, 0.7, 0.8))
    guides = np.array([(20.0, 20.0, 380.0, 280.0)])
    rng = np.random.default_rng(11)
    chosen = Counter(crop_by_loops(rng, options, (300, 400), guides)[0] for _ in range(210))
    assert set(chosen) == {"whole", "random", *options.crop_overlaps}
    assert all(12 <= count <= 50 for count in chosen.values())


def test_impossible_overlaps_take_no_time_and_leave_the_other_samplers() -> None:
    options = AugmentOptions(**{**PLAIN, "crop": 1.0}, crop_overlaps=(0.9,), crop_trials=1000)
    rng, start = np.random.default_rng(0), time.process_time()
    sample = make(noise(100, 100), [(50, 50, 50.5, 50.5)])
    kept = sum(len(augment(sample, rng, options, OUT).labels) for _ in range(100))
    assert time.process_time() - start < 20
    assert 50 < kept < 100


def test_no_guides_still_crops() -> None:
    rng, options = np.random.default_rng(3), AugmentOptions(**{**PLAIN, "crop": 1.0})
    whole = resized(make(noise(80, 80)), Preprocess((300, 300))).rgb
    for sample in (make(noise(80, 80)), make(noise(80, 80), [(30, 30, 50, 50)], [True])):
        results = [augment(sample, rng, options, OUT) for _ in range(40)]
        cropped = sum(not np.array_equal(r.rgb, whole) for r in results)
        assert 8 < cropped < 32
        assert all(r.ignore.all() for r in results)
    assert any(len(r.labels) for r in results)


def test_object_covering_the_whole_picture_is_always_kept_without_zoom_out() -> None:
    rng = np.random.default_rng(4)
    sample = make(noise(60, 70), [(0, 0, 70, 60)])
    options = AugmentOptions(zoom_out=0.0, crop_overlaps=(0.9,))
    kept = 0
    for _ in range(60):
        result = augment(sample, rng, options, OUT)
        kept += len(result.labels)
        if len(result.labels):
            np.testing.assert_allclose(result.boxes_xyxy, [(0, 0, 300, 300)], atol=1e-3)
    assert kept > 40


def test_centre_outside_the_crop_is_dropped() -> None:
    rng, options = np.random.default_rng(9), AugmentOptions(**{**PLAIN, "crop": 1.0}, crop_overlaps=())
    row = np.arange(100, dtype=np.uint8)
    rgb = np.stack([np.broadcast_to(row, (100, 100)), np.broadcast_to(row[:, None], (100, 100)), np.zeros((100, 100))])
    boxes = rng.integers(0, 80, (30, 2)) + np.array([(0, 0), (20, 20)])[:, None]
    sample = make(rgb.transpose(1, 2, 0), np.concatenate(boxes, axis=1))
    for _ in range(40):
        result = augment(sample, rng, options, replace(OUT, size_hw=(100, 100)))
        x1, y1, x2, y2 = *result.rgb[0, 0, :2], *result.rgb[-1, -1, :2] + 1  # the corners tell which crop it was
        centre = (sample.boxes_xyxy[:, :2] + sample.boxes_xyxy[:, 2:]) / 2
        depth = np.min([centre[:, 0] - x1, x2 - centre[:, 0], centre[:, 1] - y1, y2 - centre[:, 1]], axis=0)
        kept = np.isin(sample.labels, result.labels)
        assert kept[depth > 1].all()
        assert not kept[depth < -1].any()


# --- small and outside ---


def test_one_pixel_picture() -> None:
    sample = make([[(10, 20, 30)]], [(0, 0, 1, 1)])
    for seed in range(30):
        assert_sound(augment(sample, np.random.default_rng(seed), AugmentOptions(), OUT), (300, 300))
    result = augment(sample, np.random.default_rng(0), AugmentOptions(**PLAIN), replace(OUT, size_hw=(1, 1)))
    assert result.rgb.tolist() == [[[10, 20, 30]]]
    assert result.boxes_xyxy.tolist() == [[0, 0, 1, 1]]


def test_too_small_becomes_ignored_and_a_pixel_wide() -> None:
    boxes = [(100, 100, 100.5, 400), (0, 0, 0.1, 0.1), (7, 7, 7, 7), (200, 200, 400, 400), (599, 599, 600, 600)]
    result = resized(make(noise(600, 600), boxes), Preprocess((300, 300)))
    assert result.ignore.tolist() == [True, True, True, False, True]
    assert result.labels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(result.boxes_xyxy[0], (49.625, 50, 50.625, 200))
    np.testing.assert_allclose(result.boxes_xyxy[4], (299, 299, 300, 300))


def test_boxes_outside_the_picture_are_cut_or_dropped() -> None:
    sample = make(noise(50, 50), [(-10, -10, 20, 20), (60, 60, 70, 70), (-9, 5, 0, 9), (0, 0, 50, 99)])
    result = clipped(sample)
    assert result.labels.tolist() == [0, 3]
    assert result.boxes_xyxy.tolist() == [[0, 0, 20, 20], [0, 0, 50, 50]]
    assert resized(sample, Preprocess((50, 50))).labels.tolist() == [0, 3]


def test_same_state_gives_same_bytes() -> None:
    sample = make(noise(60, 80), [(10, 10, 60, 50), (0, 0, 30, 30)])
    for seed in range(20):
        one, two = (augment(sample, np.random.default_rng(seed), AugmentOptions(), OUT) for _ in range(2))
        for name in ("rgb", "boxes_xyxy", "labels", "ignore"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_results_share_no_memory_with_the_picture() -> None:
    sample = make(noise(30, 30), [(1, 2, 20, 20)])
    packed = make(np.concatenate([noise(30, 30), noise(30, 30)[..., :1]], axis=2)[..., :3], [(1, 2, 20, 20)])
    for given_sample in (sample, packed):
        for result in (
            resized(given_sample, Preprocess((30, 30))),
            augment(given_sample, np.random.default_rng(0), AugmentOptions(**PLAIN), replace(OUT, size_hw=(30, 30))),
        ):
            np.testing.assert_array_equal(result.rgb, given_sample.rgb)
            assert result.rgb.flags.writeable
            assert result.rgb.flags.c_contiguous
            assert not np.shares_memory(result.rgb, given_sample.rgb)


# --- colours ---

NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def distorted(rgb: np.ndarray, count: int, **amounts: float) -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    return [np.asarray(distort(Image.fromarray(rgb), rng, **{**NOTHING, **amounts})) for _ in range(count)]


def test_brightness_adds_one_amount() -> None:
    amounts = []
    for result in distorted(np.arange(40, 40 + 150, dtype=np.uint8).reshape(10, 5, 3), 300, brightness=32.0):
        change = result.astype(int) - np.arange(40, 40 + 150).reshape(10, 5, 3)
        assert (change == change.flat[0]).all()
        amounts.append(int(change.flat[0]))
    assert 100 < sum(a != 0 for a in amounts) < 200
    assert -32 <= min(amounts) < -28
    assert 28 < max(amounts) <= 32


def test_contrast_multiplies_about_zero_and_saturates() -> None:
    rgb = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    factors = []
    for result in distorted(rgb, 300, contrast=0.5):
        factor = float(result[7, 15, 0]) / 127
        factors.append(factor)
        assert np.abs(result - np.minimum(rgb * factor, 255)).max() <= 1.6
    assert 0.5 <= min(factors) < 0.55
    assert 1.45 < max(factors) <= 1.5
    assert 100 < sum(f != 1 for f in factors) < 200


def test_hue_and_saturation_are_those_of_the_colour_model() -> None:
    rgb = noise(4, 6, seed=3)
    for amounts in ({"hue": 36.0}, {"saturation": 0.5}):
        changed = 0
        for result in distorted(rgb, 60, **amounts):
            changed += not np.array_equal(result, rgb)
            before = np.array([colorsys.rgb_to_hsv(*p) for p in (rgb / 255).reshape(-1, 3)])
            after = np.array([colorsys.rgb_to_hsv(*p) for p in (result / 255).reshape(-1, 3)])
            np.testing.assert_allclose(after[:, 2], before[:, 2], atol=0.005)
            coloured = (before[:, 1] > 0.3) & (before[:, 2] > 0.3)
            turn = (after[:, 0] - before[:, 0] + 0.5) % 1 - 0.5
            if "hue" in amounts:
                np.testing.assert_allclose(after[:, 1], before[:, 1], atol=0.05)
                assert np.ptp(turn[coloured]) < 0.03
                assert np.abs(turn[coloured]).max() < 0.1 + 0.015
            else:
                assert np.abs(turn[coloured]).max() < 0.03
                factor = np.median(after[:, 1] / np.maximum(before[:, 1], 0.01))
                assert 0.45 < factor < 1.55
        assert 15 < changed < 45


def test_grey_has_no_hue() -> None:
    grey = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for result in distorted(grey, 30, hue=180.0, saturation=1.0):
        np.testing.assert_array_equal(result, grey)


def test_contrast_comes_before_or_after_the_rest() -> None:
    results = {
        r.tobytes() for r in distorted(np.array([[(250, 130, 10)]], np.uint8), 400, contrast=1.0, saturation=1.0)
    }
    assert len(results) > 100


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, r"flip must be from 0 to 1 \(a probability; 0 turns it off\), got 1\.5"),
        ({"flip_vertical": -0.1}, "turns it off"),
        ({"photometric": "yes"}, "photometric='yes': expected a number"),
        ({"crop": True}, "crop=True: expected a number"),
        ({"brightness": 300.0}, "grey levels"),
        ({"contrast": 1.5}, "factor of"),
        ({"hue": float("nan")}, "degrees"),
        ({"zoom_out_max": 0.5}, "ratio of sides"),
        ({"crop_min_scale": 0.0}, "crop=0 turns crops off"),
        ({"crop_trials": 0}, "from 1 to 1000"),
        ({"crop_trials": 2.5}, "expected a whole number"),
        ({"crop_overlaps": "half"}, "expected numbers with commas"),
        ({"crop_overlaps": (0.5, 50)}, "got 50"),
        ({"interpolation": 2}, "interpolation must be"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AugmentOptions(**options)


def test_overlaps_may_be_a_list() -> None:
    assert AugmentOptions(crop_overlaps=[0.5]).crop_overlaps == (0.5,)  # type: ignore[arg-type]


GOOD: dict[str, Any] = {
    "rgb": np.zeros((10, 20, 3), np.uint8),
    "boxes_xyxy": np.array([(0, 0, 20, 10)], np.float32),
    "labels": np.array([3]),
    "ignore": np.array([False]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": np.zeros((10, 20), np.uint8)}, r"rgb of uint8 \[10, 20\]; it must be uint8 \['N', 'N', 3\]"),
        ({"rgb": np.zeros((10, 20, 3), np.float32)}, "rgb of float32"),
        ({"rgb": np.zeros((0, 20, 3), np.uint8)}, "without pixels"),
        ({"rgb": [[(0, 0, 0)]]}, "no array as rgb but a list"),
        ({"boxes_xyxy": np.zeros((1, 4))}, "boxes_xyxy of float64"),
        ({"labels": np.array([3.0])}, "labels of float64"),
        ({"labels": np.array([3, 4])}, "1 boxes, 2 labels and 1 ignore flags"),
        ({"boxes_xyxy": np.array([(5, 0, 4, 3)], np.float32)}, "box 0 is"),
        ({"boxes_xyxy": np.array([(np.nan, 0, 4, 3)], np.float32)}, "finite"),
    ],
)
def test_broken_samples_are_refused(change: dict[str, Any], message: str) -> None:
    broken = Sample(**{**GOOD, **change})
    with pytest.raises(ContractError, match=f"transform 'blur' returned a sample that.*{message}"):
        check_sample(broken, source="transform 'blur'")
    with pytest.raises(ContractError, match=message):
        augment(broken, np.random.default_rng(0), AugmentOptions(), OUT)
    with pytest.raises(ContractError, match=message):
        resized(broken, Preprocess((3, 3)))
    with pytest.raises(ContractError, match=message):
        mosaic([broken] * 4, np.random.default_rng(0), OUT)


def test_boxes_outside_are_refused_of_a_transform_only() -> None:
    outside = Sample(**{**GOOD, "boxes_xyxy": np.array([(0, 0, 40, 20)], np.float32)})
    with pytest.raises(ContractError, match=r"transform 'half' returned .* box 0 is outside .* 20×10 pixels"):
        check_sample(outside, source="transform 'half'")
    check_sample(Sample(**{**GOOD, "boxes_xyxy": np.array([(0, 0, 20.5, 10)], np.float32)}), source="x")
    assert len(augment(outside, np.random.default_rng(0), AugmentOptions(**PLAIN), OUT).labels) == 1


def test_something_else_than_a_sample_is_refused() -> None:
    with pytest.raises(ContractError, match="transform 'none' returned a sample that is a NoneType"):
        check_sample(None, source="transform 'none'")  # type: ignore[arg-type]


# --- mosaic ---


def test_mosaic_places_four_samples_around_a_centre() -> None:
    rng = np.random.default_rng(6)
    for _ in range(40):
        size_hw = tuple(rng.integers(100, 300, 2).tolist())
        samples, colours = [], [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
        for colour in colours:
            height, width = rng.integers(50, 200, 2)
            rgb = np.zeros((height, width, 3), np.uint8)
            rgb[10 : height - 5, 8 : width - 12] = colour
            samples.append(make(rgb, [(8, 10, width - 12, height - 5)]))
        result = mosaic(samples, rng, Preprocess(size_hw, mean=(90, 90, 90)))
        assert_sound(result, size_hw)
        assert len(result.labels) == 4
        for colour, box in zip(colours, result.boxes_xyxy, strict=True):
            here = (np.abs(result.rgb.astype(int) - colour) < 128).all(axis=2)
            rows, columns = np.flatnonzero(here.any(axis=1)), np.flatnonzero(here.any(axis=0))
            bounds = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert np.abs(bounds - box).max() <= 1.5
        fill = (result.rgb == 90).all(axis=2).mean()
        assert fill < 0.5


def test_mosaic_needs_four() -> None:
    with pytest.raises(ContractError, match="four samples, got 3"):
        mosaic([make(noise(5, 5))] * 3, np.random.default_rng(0), OUT)
