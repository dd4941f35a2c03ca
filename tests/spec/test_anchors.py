from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.errors import ContractError
from multibox.spec.anchors import AnchorSpec, anchors_digest, ssd_anchors, ssd_scales, tf_anchors, tinyssd_anchors

MAPS_300 = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
MAPS_512 = tuple((n, n) for n in (64, 32, 16, 8, 4, 2, 1))
MAPS_TF = tuple((n, n) for n in (19, 10, 5, 3, 2, 1))
MAPS_TINY = tuple((n, n) for n in (32, 16, 8, 4, 1))
RATIOS_300 = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
RATIOS_512 = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
STEPS_300 = (8, 16, 32, 64, 100, 300)
STEPS_512 = (8, 16, 32, 64, 128, 256, 512)

# Smallest and largest squares in pixels, as the released configurations list them, and their scales in percent.
TABLES: dict[str, dict[str, Any]] = {
    "SSD300 VOC": {
        "size": 300,
        "rule": (10, 20, 90, 6),
        "percent": (10, 20, 37, 54, 71, 88, 105),
        "min": (30, 60, 111, 162, 213, 264),
        "max": (60, 111, 162, 213, 264, 315),
    },
    "SSD300 COCO": {
        "size": 300,
        "rule": (7, 15, 90, 6),
        "percent": (7, 15, 33, 51, 69, 87, 105),
        "min": (21, 45, 99, 153, 207, 261),
        "max": (45, 99, 153, 207, 261, 315),
    },
    "SSD512 VOC": {
        "size": 512,
        "rule": (7, 15, 90, 7),
        "percent": (7, 15, 30, 45, 60, 75, 90, 105),
        "min": (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8),
        "max": (76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6),
    },
    "SSD512 COCO": {
        "size": 512,
        "rule": (4, 10, 90, 7),
        "percent": (4, 10, 26, 42, 58, 74, 90, 106),
        "min": (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8),
        "max": (51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
    },
}


def spec_of(name: str, **changes: Any) -> AnchorSpec:
    table = TABLES[name]
    first, low, high, levels = table["rule"]
    size = table["size"]
    return ssd_anchors(
        ssd_scales(first, low, high, levels=levels),
        RATIOS_300 if size == 300 else RATIOS_512,
        steps=STEPS_300 if size == 300 else STEPS_512,
        nominal_size_hw=(size, size),
        **changes,
    )


def ssd_oracle(name: str, maps: Any) -> list[list[float]]:
    """The released configuration, pixel by pixel."""
    table = TABLES[name]
    size, is_300 = table["size"], table["size"] == 300
    out = []
    for level, (rows, columns) in enumerate(maps):
        step = (STEPS_300 if is_300 else STEPS_512)[level]
        small, large = table["min"][level], table["max"][level]
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) * step / size, (row + 0.5) * step / size
                middle = math.sqrt(small * large)
                out.append([x, y, small / size, small / size])
                out.append([x, y, middle / size, middle / size])
                for ratio in (RATIOS_300 if is_300 else RATIOS_512)[level]:
                    out.append([x, y, small * math.sqrt(ratio) / size, small / math.sqrt(ratio) / size])
                    out.append([x, y, small / math.sqrt(ratio) / size, small * math.sqrt(ratio) / size])
    return out


@pytest.mark.parametrize("name", TABLES)
def test_published_tables(name: str) -> None:
    table = TABLES[name]
    first, low, high, levels = table["rule"]
    scales = ssd_scales(first, low, high, levels=levels)
    assert scales == tuple(percent / 100 for percent in table["percent"])
    pixels = [scale * table["size"] for scale in scales]
    assert pixels[:-1] == pytest.approx(table["min"])
    assert pixels[1:] == pytest.approx(table["max"])


@pytest.mark.parametrize("name", TABLES)
def test_ssd_rule_against_plain_loops(name: str) -> None:
    size = TABLES[name]["size"]
    maps = MAPS_300 if size == 300 else MAPS_512
    made = spec_of(name).generate(maps, (size, size))
    assert made.dtype == np.float32
    assert len(made) == (8732 if size == 300 else 24564)
    np.testing.assert_allclose(made, ssd_oracle(name, maps), rtol=0, atol=1e-6)


def test_first_boxes_of_ssd300_by_hand() -> None:
    made = spec_of("SSD300 VOC").generate(MAPS_300, (300, 300)) * 300
    # Cell (0, 0) of the 38 × 38 map lies at half a stride of 8; its smallest square has 30 pixels, the next 60.
    root, between = math.sqrt(2), math.sqrt(30 * 60)
    expected = [[4, 4, 30, 30], [4, 4, between, between], [4, 4, 30 * root, 30 / root], [4, 4, 30 / root, 30 * root]]
    np.testing.assert_allclose(made[:4], expected, atol=1e-4)
    np.testing.assert_allclose(made[4, :2], [12, 4], atol=1e-4)  # the next cell is to the right
    np.testing.assert_allclose(made[4 * 38, :2], [4, 12], atol=1e-4)  # the next row is below
    np.testing.assert_allclose(made[5776], [8, 8, 60, 60], atol=1e-4)  # the 19 × 19 map follows
    np.testing.assert_allclose(made[5776 + 4], [8, 8, 60 * math.sqrt(3), 60 / math.sqrt(3)], atol=1e-4)
    np.testing.assert_allclose(made[-4], [150, 150, 264, 264], atol=1e-4)


def test_centres_of_the_ten_by_ten_map_pass_the_border() -> None:
    """The released strides are rounded: 32 pixels × 10 cells are more than 300."""
    made = spec_of("SSD300 VOC").generate(MAPS_300, (300, 300))
    outside = made[(made[:, :2] > 1).any(axis=1)]
    assert len(outside) == 19 * 6
    assert outside[:, :2].max() == pytest.approx(9.5 * 32 / 300)


@pytest.mark.parametrize("name", ["SSD300 VOC", "SSD300 COCO", "SSD512 VOC", "SSD512 COCO"])
def test_how_many_boxes_clipping_changes(name: str) -> None:
    size = TABLES[name]["size"]
    maps = MAPS_300 if size == 300 else MAPS_512
    plain = spec_of(name).generate(maps, (size, size))
    clipped = spec_of(name, clip="cxcywh").generate(maps, (size, size))
    changed = {"SSD300 VOC": 134, "SSD300 COCO": 116, "SSD512 VOC": 42, "SSD512 COCO": 42}[name]
    assert (plain != clipped).any(axis=1).sum() == changed


def clipped_plainly(box: list[float], mode: str) -> list[float]:
    def limit(value: float) -> float:
        return min(max(value, 0.0), 1.0)

    x, y, w, h = box
    if mode == "cxcywh":
        return [limit(x), limit(y), limit(w), limit(h)]
    if mode == "wh":
        return [x, y, limit(w), limit(h)]
    if mode == "xyxy":
        x1, y1, x2, y2 = (limit(v) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    return box


@pytest.mark.parametrize("mode", ["none", "cxcywh", "wh", "xyxy"])
def test_each_clip_mode_against_plain_loops(mode: str) -> None:
    made = spec_of("SSD300 VOC", clip=mode).generate(MAPS_300, (300, 300))
    expected = [clipped_plainly(box, mode) for box in ssd_oracle("SSD300 VOC", MAPS_300)]
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


def test_tf_rule_against_plain_loops() -> None:
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0]
    expected = []
    for level, (rows, columns) in enumerate(MAPS_TF):
        if level == 0:
            pairs = [(0.1, 1.0), (0.2, 2.0), (0.2, 0.5)]
        else:
            s = scales[level]
            pairs = [(s, 1.0), (s, 2.0), (s, 0.5), (s, 3.0), (s, 0.3333), (math.sqrt(s * scales[level + 1]), 1.0)]
        for row, column, (s, ratio) in product(range(rows), range(columns), pairs):
            centre = [(column + 0.5) / columns, (row + 0.5) / rows]
            expected.append([*centre, s * math.sqrt(ratio), s / math.sqrt(ratio)])
    made = tf_anchors().generate(MAPS_TF, (300, 300))
    assert made.shape == (1917, 4)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


def test_first_boxes_of_the_tf_rule_by_hand() -> None:
    spec = tf_anchors()
    assert spec.boxes_per_cell == (3, 6, 6, 6, 6, 6)
    made = spec.generate(MAPS_TF, (300, 300))
    centre, root = 0.5 / 19, math.sqrt(2)
    expected = [[centre, centre, 0.1, 0.1], [centre, centre, 0.2 * root, 0.2 / root]]
    np.testing.assert_allclose(made[:2], expected, atol=1e-7)
    np.testing.assert_allclose(made[2, 2:], [0.2 / root, 0.2 * root], atol=1e-7)
    tall = made[19 * 19 * 3 + 4]  # on the second map: ratio 0.3333, and not a third
    np.testing.assert_allclose(tall[2:], [0.35 * 0.577321, 0.35 / 0.577321], atol=1e-6)
    assert abs(float(tall[2]) - 0.35 * math.sqrt(1 / 3)) > 5e-6
    np.testing.assert_allclose(made[-1], [0.5, 0.5, math.sqrt(0.95), math.sqrt(0.95)], atol=1e-7)
    np.testing.assert_allclose(made[19 * 19 * 3 + 5, 2:], [math.sqrt(0.35 * 0.5)] * 2, atol=1e-7)


def test_tf_rule_without_the_reduced_lowest_layer() -> None:
    assert tf_anchors(reduce_boxes_in_lowest_layer=False).boxes_per_cell == (6,) * 6


def tinyssd_oracle(maps: Any, size_hw: tuple[int, int]) -> list[list[float]]:
    sizes = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    out = []
    for (rows, columns), (first, second) in zip(maps, sizes, strict=True):
        for row, column in product(range(rows), range(columns)):
            for s, ratio in ((first, 1.0), (second, 1.0), (first, 2.0), (first, 0.5)):
                width = s * math.sqrt(ratio) * size_hw[0] / size_hw[1]
                out.append([(column + 0.5) / columns, (row + 0.5) / rows, width, s / math.sqrt(ratio)])
    return out


@pytest.mark.parametrize("size_hw", [(256, 256), (256, 512), (512, 256)])
def test_tinyssd_rule_against_plain_loops(size_hw: tuple[int, int]) -> None:
    maps = [(max(1, rows * size_hw[0] // 256), max(1, columns * size_hw[1] // 256)) for rows, columns in MAPS_TINY]
    made = tinyssd_anchors().generate(maps, size_hw)
    if size_hw == (256, 256):
        assert len(made) == 5444
    np.testing.assert_allclose(made, tinyssd_oracle(maps, size_hw), rtol=0, atol=1e-6)


def test_first_boxes_of_tinyssd_by_hand() -> None:
    made = tinyssd_anchors().generate(MAPS_TINY, (256, 256))
    root = math.sqrt(2)
    expected = [[0.2, 0.2], [0.272, 0.272], [0.2 * root, 0.2 / root], [0.2 / root, 0.2 * root]]
    np.testing.assert_allclose(made[:4, 2:], expected, atol=1e-7)
    np.testing.assert_allclose(made[:4, :2], np.full((4, 2), 0.5 / 32), atol=1e-7)
    assert made[:, 2:].max() > 1  # not clipped


@pytest.mark.parametrize("size_hw", [(300, 600), (600, 300), (300, 301)])
def test_square_boxes_stay_square_in_pixels(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    for spec in (ssd_anchors((0.1, 0.3), ((),)), AnchorSpec((((0.1, 0.1),),), reference="height")):
        made = spec.generate([(2, 3)], size_hw)
        side = min(size_hw) if spec.reference == "shorter_side" else height
        np.testing.assert_allclose(made[0, 2:] * (width, height), [0.1 * side] * 2, rtol=1e-6)


def test_steps_hold_at_the_nominal_size_of_each_axis_alone() -> None:
    spec = ssd_anchors((0.1, 0.3), ((),), steps=(100,), nominal_size_hw=(250, 300))
    both = spec.generate([(3, 3)], (250, 300)).reshape(3, 3, 2, 4)
    np.testing.assert_allclose(both[:, 0, 0, 1], [50 / 250, 150 / 250, 250 / 250], atol=1e-7)
    np.testing.assert_allclose(both[0, :, 0, 0], [50 / 300, 150 / 300, 250 / 300], atol=1e-7)
    wide = spec.generate([(3, 4)], (250, 400)).reshape(3, 4, 2, 4)
    np.testing.assert_allclose(wide[:, 0, 0, 1], [50 / 250, 150 / 250, 250 / 250], atol=1e-7)
    np.testing.assert_allclose(wide[0, :, 0, 0], [0.125, 0.375, 0.625, 0.875], atol=1e-7)
    swapped = spec.generate([(3, 3)], (300, 250)).reshape(3, 3, 2, 4)  # neither axis has its nominal length
    np.testing.assert_allclose(swapped[:, 0, 0, 1], [1 / 6, 0.5, 5 / 6], atol=1e-7)
    np.testing.assert_allclose(swapped[0, :, 0, 0], [1 / 6, 0.5, 5 / 6], atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5, 1.0])
def test_offset(offset: float) -> None:
    made = replace(ssd_anchors((0.1, 0.3), ((),)), offset=offset).generate([(2, 4)], (100, 100)).reshape(2, 4, 2, 4)
    np.testing.assert_allclose(made[0, :, 0, 0], [(j + offset) / 4 for j in range(4)], atol=1e-7)
    np.testing.assert_allclose(made[:, 0, 0, 1], [(i + offset) / 2 for i in range(2)], atol=1e-7)


sides = st.floats(0.01, 2.0)
levels_strategy = st.lists(
    st.lists(st.tuples(sides, sides), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3
).map(tuple)


@settings(max_examples=50)
@given(
    levels_strategy,
    st.sampled_from(["shorter_side", "height"]),
    st.floats(0, 1),
    st.sampled_from(["none", "cxcywh", "wh", "xyxy"]),
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.data(),
)
def test_any_specification_against_plain_loops(
    levels: Any, reference: Any, offset: float, clip: Any, size_hw: tuple[int, int], data: st.DataObject
) -> None:
    maps = [data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in levels]
    spec = AnchorSpec(levels, reference=reference, offset=offset, clip=clip)
    height, width = size_hw
    side = height if reference == "height" else min(height, width)
    expected = []
    for shapes, (rows, columns) in zip(levels, maps, strict=True):
        for row, column, (w, h) in product(range(rows), range(columns), shapes):
            box = [(column + offset) / columns, (row + offset) / rows, w * side / width, h * side / height]
            expected.append(clipped_plainly(box, clip))
    made = spec.generate(maps, size_hw)
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-7)
    again = AnchorSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert anchors_digest(again.generate(maps, size_hw)) == anchors_digest(made)


@pytest.mark.parametrize("name", TABLES)
def test_json_round_trip_with_steps(name: str) -> None:
    spec = spec_of(name, clip="wh")
    assert AnchorSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_digests_never_drift() -> None:
    """Stored in model files; a change here makes every file written before unreadable."""
    made = {
        "ssd300": spec_of("SSD300 VOC").generate(MAPS_300, (300, 300)),
        "tf": tf_anchors().generate(MAPS_TF, (300, 300)),
        "tinyssd": tinyssd_anchors().generate(MAPS_TINY, (256, 256)),
    }
    assert {name: anchors_digest(boxes)[:16] for name, boxes in made.items()} == {
        "ssd300": "327b6cefbab2f6a4",
        "tf": "cf78f0b790a3a77f",
        "tinyssd": "44da131375c99f12",
    }


def test_digest_sees_one_bit_and_no_memory_layout() -> None:
    made = tf_anchors().generate(MAPS_TF, (300, 300))
    nudged = made.copy()
    nudged[1000, 2] = np.nextafter(nudged[1000, 2], np.float32(2))
    assert anchors_digest(nudged) != anchors_digest(made)
    assert anchors_digest(np.asfortranarray(made)) == anchors_digest(made)
    assert anchors_digest(made.astype(">f4")) == anchors_digest(made)


SQUARE = (((0.1, 0.1),),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": ()}, "at least one level"),
        ({"levels": ((),)}, "at least one box"),
        ({"levels": (((0.1, 0.0),),)}, r"level 0: \(width, height\) must be positive"),
        ({"levels": (((0.1, -1.0),),)}, "must be positive"),
        ({"levels": (((0.1, math.nan),),)}, "must be positive"),
        ({"levels": (((0.1, math.inf),),)}, "must be positive"),
        ({"levels": (((0.1, 0.1, 0.1),),)}, "must be positive"),
        ({"steps": (8, 16), "nominal_size_hw": (9, 9)}, "1 anchor levels but 2 steps"),
        ({"steps": (8,)}, "give nominal_size_hw as well"),
        ({"steps": (0,), "nominal_size_hw": (9, 9)}, "steps must be positive"),
        ({"steps": (math.nan,), "nominal_size_hw": (9, 9)}, "steps must be positive"),
        ({"steps": (8,), "nominal_size_hw": (9, 0)}, "nominal_size_hw must be positive"),
        ({"steps": (8,), "nominal_size_hw": (9,)}, "nominal_size_hw must be positive"),
        ({"offset": math.nan}, "offset must be finite"),
        ({"clip": "yes"}, "clip must be one of"),
        ({"reference": "width"}, "reference must be one of"),
    ],
)
def test_refused_specifications(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        AnchorSpec(**{"levels": SQUARE, **arguments})


@pytest.mark.parametrize(
    ("maps", "size_hw", "message"),
    [
        ([], (9, 9), "1 anchor levels but 0 feature maps"),
        ([(1, 1), (1, 1)], (9, 9), "1 anchor levels but 2 feature maps"),
        ([(0, 1)], (9, 9), "feature_sizes_hw must be positive"),
        ([(1, 1)], (0, 9), "size_hw must be positive"),
    ],
)
def test_generate_refuses(maps: Any, size_hw: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        AnchorSpec(SQUARE).generate(maps, size_hw)


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (ssd_scales, {"first": 10, "low": 20, "high": 90, "levels": 2}, "at least 3 levels"),
        (
            ssd_anchors,
            {"scales": (0.1, 0.2), "ratios": ((2,), (2,))},
            "2 scales make 1 levels, but ratios are given for 2",
        ),
        (ssd_anchors, {"scales": (0.1, 0.2), "ratios": ((0,),)}, "ratios must be positive numbers, got 0"),
        (ssd_anchors, {"scales": (0.1, 0.2), "ratios": ((-2,),)}, "ratios must be positive numbers, got -2"),
        (ssd_anchors, {"scales": (0.1, 0.2), "ratios": ((math.inf,),)}, "ratios must be positive"),
        (ssd_anchors, {"scales": (0.1, -0.2), "ratios": ((2,),)}, "scales must be positive"),
        (tf_anchors, {"levels": 1}, "at least 2 levels"),
        (tf_anchors, {"ratios": (1.0, math.nan)}, "ratios must be positive"),
        (tf_anchors, {"min_scale": -0.2}, "scales must be positive"),
        (tinyssd_anchors, {"ratios": ()}, "at least one ratio"),
        (tinyssd_anchors, {"sizes": ((0.1,), ())}, "at least one size"),
        (tinyssd_anchors, {"ratios": (1.0, 0.0)}, "ratios must be positive"),
    ],
)
def test_refused_rules(rule: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        rule(**arguments)


def test_equal_to_torchvision() -> None:
    torch = pytest.importorskip("torch")
    anchor_utils = pytest.importorskip("torchvision.models.detection.anchor_utils")
    image_list = pytest.importorskip("torchvision.models.detection.image_list")
    generator = anchor_utils.DefaultBoxGenerator(
        [list(ratios) for ratios in RATIOS_300],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=list(STEPS_300),
    )
    features = [torch.zeros(1, 1, *size_hw) for size_hw in MAPS_300]
    theirs_xyxy = generator(image_list.ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)]), features)[0].numpy() / 300
    made = spec_of("SSD300 COCO", clip="wh").generate(MAPS_300, (300, 300))
    assert made.shape == theirs_xyxy.shape == (8732, 4)
    corners = np.concatenate([made[:, :2] - made[:, 2:] / 2, made[:, :2] + made[:, 2:] / 2], axis=1)
    np.testing.assert_allclose(corners, theirs_xyxy, rtol=0, atol=1e-6)
