"""Tiles: where they lie, what becomes of objects at their borders, and small objects in a large picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox import Detector
from multibox.errors import OptionError
from multibox.inference.tiling import Found, Tile, merged, tiles_of
from multibox.spec.postprocess import PostprocessSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEC = PostprocessSpec(activation="sigmoid", nms_iou=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("size_hw", [(1000, 1000), (641, 4000), (4000, 200), (1281, 1279), (640, 641)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.999])
def test_tiles_cover_the_picture_and_share_enough(size_hw: tuple[int, int], overlap: float) -> None:
    side = 640
    height, width = size_hw
    whole, *tiles = tiles_of(size_hw, side=side, overlap=overlap)
    assert whole == (0, 0, width, height)
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(tile[low], tile[high]) for tile in tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(end - start == min(side, length) for start, end in spans)
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end - start >= int(side * overlap)
    assert len(tiles) == len(set(tiles))


def test_a_small_picture_is_only_itself() -> None:
    assert tiles_of((640, 640), side=640, overlap=0.2) == [Tile(0, 0, 640, 640)]
    assert tiles_of((1, 1), side=32, overlap=0.0) == [Tile(0, 0, 1, 1)]


def found(tile: tuple[int, int, int, int], *rows: tuple[list[float], float, int]) -> Found:
    return Found(
        Tile(*tile),
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int64),
    )


# A picture of 1000 × 500 (width × height) in two tiles that share columns 400 to 600.
WHOLE, LEFT, RIGHT = (0, 0, 1000, 500), (0, 0, 600, 500), (400, 0, 1000, 500)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # Cut by the left tile's border, whole in the right one: only the whole one, though it has the lower score.
        ([found(LEFT, ([550, 10, 600, 90], 0.9, 1)), found(RIGHT, ([550, 10, 640, 90], 0.6, 1))], [[550, 10, 640, 90]]),
        # The same of another class: both.
        (
            [found(LEFT, ([550, 10, 600, 90], 0.9, 2)), found(RIGHT, ([550, 10, 640, 90], 0.6, 1))],
            [[550, 10, 600, 90], [550, 10, 640, 90]],
        ),
        # Parts that nothing shows whole stay.
        (
            [found(LEFT, ([300, 10, 600, 90], 0.9, 1)), found(RIGHT, ([400, 10, 900, 90], 0.8, 1))],
            [[300, 10, 600, 90], [400, 10, 900, 90]],
        ),
        # The whole picture shows them whole.
        (
            [
                found(WHOLE, ([300, 10, 900, 90], 0.5, 1)),
                found(LEFT, ([300, 10, 600, 90], 0.9, 1)),
                found(RIGHT, ([400, 10, 900, 90], 0.8, 1)),
            ],
            [[300, 10, 900, 90]],
        ),
        # At the border of the picture nothing is cut.
        ([found(LEFT, ([0, 0, 90, 500], 0.9, 1)), found(RIGHT, ([910, 0, 1000, 500], 0.8, 1))], None),
        # Seen whole by both: one.
        (
            [found(LEFT, ([450, 10, 550, 90], 0.7, 1)), found(RIGHT, ([452, 10, 551, 90], 0.9, 1))],
            [[452, 10, 551, 90]],
        ),
        # Two in the same tile are two, also where one lies at the border.
        ([found(LEFT, ([540, 10, 600, 90], 0.9, 1), ([500, 10, 580, 90], 0.8, 1)), found(RIGHT)], None),
        ([found(WHOLE), found(LEFT), found(RIGHT)], []),
    ],
)
def test_merging(parts: list[Found], expected: list[list[float]] | None) -> None:
    boxes, scores, labels = merged(parts, (500, 1000), SPEC)
    wanted = np.concatenate([part.boxes_xyxy for part in parts]).tolist() if expected is None else expected
    assert boxes.tolist() == wanted
    assert (np.diff(scores) <= 0).all()
    assert len(scores) == len(labels) == len(boxes)


def test_merging_without_classes_and_with_a_limit() -> None:
    parts = [found(LEFT, ([550, 10, 600, 90], 0.9, 2)), found(RIGHT, ([550, 10, 640, 90], 0.6, 1))]
    agnostic = PostprocessSpec(activation="sigmoid", class_agnostic=True)
    assert merged(parts, (500, 1000), agnostic)[0].tolist() == [[550, 10, 640, 90]]
    limited = PostprocessSpec(activation="sigmoid", max_detections=1)
    assert merged(parts, (500, 1000), limited)[0].tolist() == [[550, 10, 600, 90]]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector("ssdlite300-coco", threads=2)


@pytest.fixture(scope="module")
def canvas() -> tuple[np.ndarray, list[tuple[str, list[int]]]]:
    """A grey picture of 2400 × 1600 with a small cat in each of three places, one of them across tile borders."""
    cat = Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize((180, 120))
    picture = Image.new("RGB", (2400, 1600), (127, 127, 127))
    places = [(100, 80), (1100, 700), (2150, 1400)]
    for place in places:
        picture.paste(cat, place)
    return np.array(picture), [("cat", [x, y, x + 180, y + 120]) for x, y in places]


@pytest.mark.slow
def test_small_objects_in_a_large_picture(detector: Detector, canvas: tuple[np.ndarray, list]) -> None:
    picture, truth = canvas
    assert "cat" not in detector(picture).names
    cats = detector(picture, tile=480, tile_overlap=0.4, classes="cat")
    assert len(cats) == len(truth)
    assert cats.picture_size_hw == (1600, 2400)
    for _, place in truth:
        overlap = np.minimum(cats.boxes_xyxy[:, 2:], place[2:]) - np.maximum(cats.boxes_xyxy[:, :2], place[:2])
        share = overlap.clip(0).prod(axis=1) / (180 * 120)
        assert (share > 0.5).sum() == 1


@pytest.mark.slow
def test_the_same_in_one_thread_and_in_streams(detector: Detector, canvas: tuple[np.ndarray, list]) -> None:
    picture, _ = canvas
    alone = detector(picture, tile=640, workers=1)
    assert detector(picture, tile=640, workers=2) == alone
    streamed = detector.predict([picture, EXAMPLES / "coffee.png"], tile=640)
    assert streamed == [alone, detector(EXAMPLES / "coffee.png")]


def test_a_picture_within_a_tile_is_looked_at_as_ever(detector: Detector) -> None:
    picture = EXAMPLES / "coffee.png"
    assert detector(picture, tile=640, conf=0.01) == detector(picture, conf=0.01)
    assert detector(picture, tile=599, conf=0.01) != detector(picture, conf=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 31}, "tile must be a whole number from 32"),
        ({"tile": 64.5}, "tile must be a whole number from 32"),
        ({"tile": 64, "tile_overlap": 1}, "tile_overlap must be below 1"),
        ({"tile": 64, "tile_overlap": -0.1}, "tile_overlap must be a number from 0 below 1"),
        ({"tile": 64, "tile_overlap": None}, "tile_overlap must be a number from 0 below 1"),
    ],
)
def test_options(detector: Detector, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        detector(EXAMPLES / "coffee.png", **options)
