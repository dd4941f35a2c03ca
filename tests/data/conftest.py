"""What several tests of data sets need: comparing two of them, small ones on disk, and the layouts of tools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.data import Dataset, ImageRecord
from multibox.data.columns import FLAGS
from multibox.spec.classes import ClassMap

sys.path.insert(0, str(Path(__file__).parent))  # for `annotation_layouts` and its modules
import layouts_as_json  # noqa: F401 (fills the table of layouts)
import layouts_as_text  # noqa: F401
from annotation_layouts import Shot


def _key(record: ImageRecord) -> tuple[str, str]:
    return str(record.split), repr(record.image_id)


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Assert that two data sets hold the same, whatever the order and the place of their pictures."""

    def check(actual: Dataset, expected: Dataset, *, px: float = 0.01, sizes: bool = True, ids: bool = True) -> None:
        assert actual.class_map.names == expected.class_map.names
        assert actual.class_map.ids == expected.class_map.ids
        assert len(actual) == len(expected)
        assert actual.num_boxes == expected.num_boxes
        mine, theirs = list(actual), list(expected)
        if ids:
            mine, theirs = sorted(mine, key=_key), sorted(theirs, key=_key)
        for a, e in zip(mine, theirs, strict=True):
            assert a.split == e.split
            assert not ids or (a.image_id == e.image_id and type(a.image_id) is type(e.image_id))
            assert not sizes or a.size_hw == e.size_hw
            assert a.labels.tolist() == e.labels.tolist()
            np.testing.assert_allclose(a.boxes_xyxy, e.boxes_xyxy, rtol=0, atol=px)
            for name in FLAGS:
                assert getattr(a, name).tolist() == getattr(e, name).tolist(), name
            np.testing.assert_allclose(a.effective_area(), e.effective_area(), rtol=1e-5, atol=px)

    return check


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    """Three pictures on disk: two boxes with flags, none, and one box; class 1 has no box."""
    for name, size_wh in (("a/one.png", (40, 30)), ("a/two.png", (8, 8)), ("b/one.png", (20, 50))):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size_wh).save(path)
    boxes = np.array([[1, 2, 11.25, 22], [0, 0, 40, 30]])
    records = [
        ImageRecord(
            "a/one.png",
            7,
            (30, 40),
            boxes,
            np.array([2, 0]),
            crowd=np.array([False, True]),
            difficult=np.array([True, False]),
            truncated=np.array([True, True]),
            area=np.array([np.nan, 700.123456789]),
            split="train",
        ),
        ImageRecord("a/two.png", "007", (8, 8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), split="train"),
        ImageRecord("b/one.png", 3, (50, 20), np.array([[-2, 5, 25, 60.5]], np.float32), np.array([0]), split="val"),
    ]
    class_map = ClassMap(("zebra", "no", "hot dog, “warm”"), (90, 1, 17))
    return Dataset.from_records(records, class_map, root=tmp_path / "source")


@pytest.fixture
def shots(tmp_path: Path) -> list[Shot]:
    """Five pictures with six boxes in three splits, as the layouts of tools get them; one has no object."""
    found = [
        ("one.jpg", (40, 30), "train", [("cup", (1.0, 2.0, 11.0, 22.0)), ("bolt", (5.0, 5.0, 9.0, 30.0))]),
        ("two two.jpg", (40, 30), "train", [("cup", (3.0, 4.0, 12.0, 20.0))]),
        ("Café.png", (50, 60), "val", [("bolt", (0.0, 0.0, 50.0, 60.0)), ("cup", (7.0, 8.0, 20.0, 19.0))]),
        ("four.jpg", (40, 30), "test", [("cup", (2.0, 3.0, 4.0, 5.0))]),
        ("empty.jpg", (40, 30), "test", []),
    ]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (name, size_wh, _, _) in enumerate(found):
        Image.new("RGB", size_wh, (40 * number, 0, 0)).save(folder / name)
    return [Shot(folder / name, name, size, split, tuple(boxes)) for name, size, split, boxes in found]
