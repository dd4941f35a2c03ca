from __future__ import annotations

import csv
import dataclasses
import io
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multibox.errors import ClassMapError, ContractError, ImageError, MissingDependencyError
from multibox.spec.classes import COCO_CLASSES, ClassMap
from multibox.spec.detections import Detection, Detections

CLASSES = ClassMap(("cat", "dog", "cow"), (17, 18, 21))
BOXES = [[10.25, 20.5, 110.125, 70.0], [0.0, 0.0, 640.0, 480.0], [5.0, 6.0, 5.0, 9.0]]


def make(**changes: Any) -> Detections:
    values: dict[str, Any] = {
        "boxes_xyxy": BOXES,
        "labels": [1, 0, 1],
        "scores": [0.9, 0.5, 0.25],
        "class_map": CLASSES,
        "picture_size_hw": (480, 640),
        "path": "a/pic.jpg",
    }
    return Detections(**{**values, **changes})


def empty(**changes: Any) -> Detections:
    return make(boxes_xyxy=[], labels=[], scores=[], **changes)


finite = st.floats(-500, 1500, width=32)


@st.composite
def any_detections(draw: st.DrawFn) -> Detections:
    count = draw(st.integers(0, 5))
    boxes = []
    for _ in range(count):
        x1, x2 = sorted((draw(finite), draw(finite)))
        y1, y2 = sorted((draw(finite), draw(finite)))
        boxes.append([x1, y1, x2, y2])
    unit = st.floats(0, 1, width=32)
    scores = draw(st.none() | st.lists(unit, min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, 79), min_size=count, max_size=count))
    size = (draw(st.integers(1, 9000)), draw(st.integers(1, 9000)))
    return Detections(boxes, labels, scores, COCO_CLASSES, size, path=draw(st.none() | st.text(max_size=5)))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ construction


def test_types_and_values() -> None:
    made = make()
    assert made.boxes_xyxy.dtype == np.float32
    assert made.labels.dtype == np.int64
    assert made.scores is not None
    assert made.scores.dtype == np.float32
    assert made.picture_size_hw == (480, 640)
    np.testing.assert_array_equal(made.boxes_xyxy, BOXES)
    assert made.names == ["dog", "cat", "dog"]
    assert len(made) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_xyxy": [[1, 2, 3]] * 3}, r"boxes_xyxy must be \[N, 4\], got \[3, 3\]"),
        ({"boxes_xyxy": [1, 2, 3, 4]}, r"must be \[N, 4\], got \[4\]"),
        ({"boxes_xyxy": np.zeros((0, 5)), "labels": [], "scores": []}, r"must be \[N, 4\], got \[0, 5\]"),
        ({"boxes_xyxy": np.zeros((3, 0))}, r"must be \[N, 4\], got \[3, 0\]"),
        ({"boxes_xyxy": [[0, 0, 1, 1], [9, 0, 1, 1], [0, 0, 1, 1]]}, r"box 1 is not \(x1 ≤ x2, y1 ≤ y2\): \[9.0"),
        ({"boxes_xyxy": [[0, 5, 1, 1]] * 3}, "box 0 is not"),
        ({"boxes_xyxy": [[0, 0, 1, np.nan]] * 3}, "boxes_xyxy must be finite, got 3 values that are not"),
        ({"boxes_xyxy": [[0, 0, 1, np.inf]] * 3}, "must be finite"),
        ({"boxes_xyxy": [[0, 0, 1, 1e39]] * 3}, "must be finite"),
        ({"boxes_xyxy": [["0", "0", "1", "1"]] * 3}, "boxes_xyxy must be numbers"),
        ({"boxes_xyxy": [[0, 0, 1, 1], [0, 0]]}, "boxes_xyxy must be an array of numbers"),
        ({"boxes_xyxy": [[0, 0, 1, None]] * 3}, "boxes_xyxy must be numbers, got object"),
        ({"labels": [0, 1]}, r"labels must be \[3\] like boxes_xyxy, got \[2\]"),
        ({"labels": [[0], [1], [2]]}, r"labels must be \[3\] like boxes_xyxy, got \[3, 1\]"),
        ({"labels": [0, 1, 3]}, "labels must be in 0…2, got 0…3"),
        ({"labels": [-1, 1, 2]}, "labels must be in 0…2, got -1…2"),
        ({"labels": [0, 1, 1.5]}, "labels must be whole numbers, got 1.5"),
        ({"labels": [0, 1, np.nan]}, "labels must be whole numbers, got nan"),
        ({"labels": [True, False, True]}, "labels must be numbers, got bool"),
        ({"labels": ["0", "1", "2"]}, "labels must be numbers"),
        ({"scores": [0.5, 0.5]}, r"scores must be \[3\]"),
        ({"scores": [0.5, 0.5, 1.5]}, r"scores must be in \[0, 1\], got 0.5…1.5"),
        ({"scores": [0.5, 0.5, -0.5]}, r"scores must be in \[0, 1\]"),
        ({"scores": [0.5, 0.5, np.nan]}, "scores must be finite"),
        ({"picture_size_hw": (0, 640)}, "picture_size_hw must be positive"),
        ({"picture_size_hw": (480,)}, "picture_size_hw must be positive"),
        ({"picture_size_hw": (480, 640, 3)}, "picture_size_hw must be positive"),
        ({"picture_size_hw": (480.5, 640)}, "picture_size_hw must be positive"),
        ({"picture_size_hw": None}, "picture_size_hw must be positive"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        make(**changes)


def test_whole_float_labels_and_other_number_types_are_taken() -> None:
    made = make(labels=np.array([1.0, 0.0, 1.0]), boxes_xyxy=np.array(BOXES, np.float64), scores=np.ones(3, np.uint8))
    assert made.labels.tolist() == [1, 0, 1]
    assert made == make(scores=[1, 1, 1])


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), np.zeros(0, np.float32)])
def test_no_objects(boxes: Any) -> None:
    made = make(boxes_xyxy=boxes, labels=[], scores=[])
    assert made.boxes_xyxy.shape == (0, 4)
    assert made.labels.dtype == np.int64
    assert len(made) == 0
    assert list(made) == []
    assert made == Detections.empty(CLASSES, (480, 640), path="a/pic.jpg")


def test_the_arrays_are_copies_and_read_only() -> None:
    boxes, labels, scores = np.array(BOXES, np.float32), np.array([1, 0, 1]), np.ones(3, np.float32)
    made = make(boxes_xyxy=boxes, labels=labels, scores=scores)
    boxes[0, 0], labels[0], scores[0] = 99, 0, 0
    assert made.boxes_xyxy[0, 0] == 10.25
    assert made.labels[0] == 1
    assert made.scores is not None
    assert made.scores[0] == 1
    for array in (made.boxes_xyxy, made.labels, made.scores):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.path = "other"  # type: ignore[misc]
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)


# ------------------------------------------------------------------------------------------------ as a sequence


def test_integer_index_gives_detections_of_one() -> None:
    for index in (1, -2, np.int64(1)):
        picked = make()[index]
        assert isinstance(picked, Detections)
        assert picked.names == ["cat"]
        assert picked.boxes_xyxy.shape == (1, 4)
        assert picked.path == "a/pic.jpg"


@pytest.mark.parametrize("index", [3, -4, [0, 3], np.array([7])])
def test_an_index_out_of_range_is_an_index_error(index: Any) -> None:
    with pytest.raises(IndexError):
        make()[index]


def test_a_mask_of_the_wrong_length_is_an_index_error() -> None:
    for mask in (np.array([True, False]), np.zeros(0, bool), np.ones(4, bool)):
        with pytest.raises(IndexError):
            make()[mask]


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(None), [0, 1, 2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (slice(5, 9), []),
        ([2, 0], [2, 0]),
        ([1, 1], [1, 1]),
        ([True, False, True], [0, 2]),
        (np.array([False, False, True]), [2]),
        (np.zeros(3, bool), []),
        ([], []),
        (np.zeros(0, int), []),
    ],
)
def test_slices_masks_and_index_arrays(index: Any, rows: list[int]) -> None:
    picked = make()[index]
    assert picked.boxes_xyxy.tolist() == [BOXES[row] for row in rows]
    assert picked.labels.tolist() == [[1, 0, 1][row] for row in rows]
    assert make(scores=None)[index].scores is None


def test_an_empty_mask_of_no_objects() -> None:
    assert len(empty()[np.zeros(0, bool)]) == 0
    assert len(empty()[:]) == 0


def test_iteration_gives_rows() -> None:
    assert next(iter(make())) == Detection("dog", 1, pytest.approx(0.9), (10.25, 20.5, 110.125, 70.0))
    assert [row.score for row in make(scores=None)] == [None] * 3
    assert all(type(value) is float for row in make() for value in row.box_xyxy)


def test_str_counts_most_frequent_first() -> None:
    assert str(make()) == "a/pic.jpg (640×480): 2 dog, 1 cat"
    assert str(make(labels=[2, 0, 1])) == "a/pic.jpg (640×480): 1 cat, 1 cow, 1 dog"
    assert str(empty(path=None)) == "picture (640×480): nothing found"


def test_above_includes_its_limit() -> None:
    assert len(make().above(0.5)) == 2
    assert len(make().above(0.9)) == len(make().above(np.float64(0.9))) == 1
    assert len(make().above(0.0)) == 3
    assert len(make().above(1.0)) == 0
    assert len(make(scores=None).above(1.0)) == 3
    assert len(empty().above(0.1)) == 0


def test_of_classes() -> None:
    assert make().of_classes(["dog"]).labels.tolist() == [1, 1]
    assert make().of_classes("dog").labels.tolist() == [1, 1]
    assert make().of_classes([0, "cow"]).names == ["cat"]
    assert len(make().of_classes([])) == 0
    assert len(empty().of_classes(["dog"])) == 0
    with pytest.raises(ClassMapError, match="did you mean 'dog'"):
        make().of_classes(["dgo"])


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes_xyxy": [[10.25, 20.5, 110.25, 70.0], *BOXES[1:]]},
        {"labels": [1, 0, 2]},
        {"scores": [0.9, 0.5, 0.125]},
        {"scores": None},
        {"class_map": ClassMap(("cat", "dog", "cow"))},
        {"picture_size_hw": (640, 480)},
        {"columns": {"track_id": [1, 2, 3]}},
    ],
)
def test_what_makes_two_unequal(changes: dict[str, Any]) -> None:
    assert make() != make(**changes)
    assert make(**changes) != make()


def test_what_makes_two_equal() -> None:
    assert make() == make(path="other", source="elsewhere")
    assert make(scores=None) == make(scores=None)
    assert empty() == make(boxes_xyxy=[], labels=[], scores=None)
    assert make() != "detections"


# ------------------------------------------------------------------------------------------------ extra columns


def tracked() -> Detections:
    return make(columns={"track_id": [7, 8, 9], "speed": [[1.5, 2.0]] * 3, "plate": ["a", "b", ""], "new": [True] * 3})


@given(any_detections(), st.data())
def test_extra_columns_stay_with_their_objects(made: Detections, data: st.DataObject) -> None:
    numbers = np.arange(len(made))
    marked = made.with_columns(track_id=numbers, speed=np.stack([numbers, -numbers], axis=1), text=numbers.astype(str))
    if not len(made):
        assert marked == made
        return
    order = data.draw(st.lists(st.integers(0, len(made) - 1)))
    mask = data.draw(st.lists(st.booleans(), min_size=len(made), max_size=len(made)))
    for part in (
        marked[order],
        marked[np.array(mask)],
        marked[::-1],
        marked.above(0.5),
        marked.of_classes(made.names[:1]),
        dataclasses.replace(marked, path="other"),
        pickle.loads(pickle.dumps(marked)),
        Detections.from_dict(json.loads(json.dumps(marked.to_dict())), COCO_CLASSES),
    ):
        if not len(part):
            continue
        rows = part.columns["track_id"]
        assert part.columns.keys() == {"track_id", "speed", "text"}
        np.testing.assert_array_equal(part.boxes_xyxy, made.boxes_xyxy[rows])
        np.testing.assert_array_equal(part.columns["speed"], np.stack([rows, -rows], axis=1))
        assert part.columns["text"].tolist() == [str(row) for row in rows]


def test_extra_columns_in_every_format() -> None:
    row = {"track_id": 7, "speed": [1.5, 2.0], "plate": "a", "new": True}
    made = tracked()
    assert next(iter(made)).columns == row
    for exported in (made.to_dict()["detections"][0], made.to_coco(1)[0], made.to_huggingface()[0]):
        assert {key: exported[key] for key in row} == row
        json.dumps(exported)
    assert made.to_csv_rows()[0][len(Detections.CSV_COLUMNS) :] == (7, "[1.5, 2.0]", "a", True)
    assert len(empty(columns={"track_id": []}).to_csv_rows()[0]) == len(Detections.CSV_COLUMNS) + 1
    assert made.to_yolo() == make().to_yolo()


def test_extra_columns_as_tensors_and_in_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("supervision")
    fake.Detections = lambda **arguments: arguments  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", fake)
    out = tracked().to_supervision()
    assert out["tracker_id"].tolist() == [7, 8, 9]
    assert out["data"]["plate"].tolist() == ["a", "b", ""]
    torch = pytest.importorskip("torch", reason="the train extra is not installed")
    tensors = tracked().to_torchvision(first_label=1)
    assert torch.equal(tensors["track_id"], torch.tensor([7, 8, 9]))
    assert tensors["plate"] == ["a", "b", ""]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"track_id": [1, 2]}, r"column 'track_id' must be \[3, …\] like boxes_xyxy, got \[2\]"),
        ({"score": [1, 2, 3]}, "a column cannot be called 'score'"),
        ({"two words": [1, 2, 3]}, "a column cannot be called 'two words'"),
        ({"object": [None] * 3}, "must hold numbers, truth values or texts"),
        ({"ragged": [[1], [1, 2], []]}, "must be an array"),
        ({"scalar": 3}, r"must be \[3, …\]"),
    ],
)
def test_columns_that_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        make(columns=columns)


def test_columns_are_copies_and_read_only() -> None:
    given = np.array([1, 2, 3])
    made = make(columns={"track_id": given})
    given[0] = 9
    assert made.columns["track_id"].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        made.columns["track_id"][0] = 9
    with pytest.raises(TypeError):
        made.columns["other"] = given  # type: ignore[index]


# ------------------------------------------------------------------------------------------------ adapters


def test_to_dict_by_hand() -> None:
    assert make()[:1].to_dict() == {
        "path": "a/pic.jpg",
        "width": 640,
        "height": 480,
        "detections": [
            {
                "name": "dog",
                "class_id": 1,
                "confidence": float(np.float32(0.9)),
                "box": {"x1": 10.25, "y1": 20.5, "x2": 110.125, "y2": 70.0},
            }
        ],
    }


@given(any_detections())
def test_json_round_trip_is_exact(made: Detections) -> None:
    again = Detections.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)), COCO_CLASSES)
    assert again == made
    assert again.path == made.path


def broken(**changes: Any) -> dict[str, Any]:
    row = {**make()[:1].to_dict()["detections"][0], **changes}
    return {**make().to_dict(), "detections": [{k: v for k, v in row.items() if v != "gone"}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "'detections' is missing"),
        ({"detections": []}, "'height' is missing"),
        ({"detections": 5, "height": 1, "width": 1, "path": None}, "no row of"),
        (broken(name="gone"), "'name' is missing"),
        (broken(box="gone"), "'box' is missing"),
        (broken(box={"x1": 1}), "'y1' is missing"),
        (broken(box=None), "no row of"),
        (broken(name="fish"), "unknown class 'fish'"),
        (broken(class_id=0), "class 'dog' has index 0 in the data but 1 in the class map"),
        (broken(confidence=2), "scores must be in"),
        (broken(confidence="high"), "scores must be numbers"),
        ({**make().to_dict(), "width": -1}, "picture_size_hw must be positive"),
    ],
)
def test_from_dict_refuses(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Detections.from_dict(data, CLASSES)


def test_from_dict_does_not_drop_scores_when_some_are_missing() -> None:
    data = make().to_dict()
    data["detections"][1]["confidence"] = None
    with pytest.raises(ContractError, match="give all or none"):
        Detections.from_dict(data, CLASSES)


@given(any_detections())
def test_coco_has_original_ids_and_unrounded_xywh(made: Detections) -> None:
    rows = json.loads(json.dumps(made.to_coco(139)))
    assert len(rows) == len(made)
    for i, row in enumerate(rows):
        assert row["image_id"] == 139
        assert row["category_id"] == COCO_CLASSES.ids[made.labels[i]]
        x1, y1, x2, y2 = made.boxes_xyxy[i].astype(float)
        assert row["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert ("score" in row) == (made.scores is not None)
        if made.scores is not None:
            assert row["score"] == float(made.scores[i])


@given(any_detections())
def test_yolo_text_read_back_to_pixels(made: Detections) -> None:
    height, width = made.picture_size_hw
    lines = made.to_yolo(scores=True).splitlines()
    assert len(lines) == len(made)
    for i, line in enumerate(lines):
        label, cx, cy, w, h, *score = line.split(" ")
        assert int(label) == made.labels[i]
        left, top = (float(cx) - float(w) / 2) * width, (float(cy) - float(h) / 2) * height
        right, bottom = (float(cx) + float(w) / 2) * width, (float(cy) + float(h) / 2) * height
        np.testing.assert_allclose([left, top, right, bottom], made.boxes_xyxy[i], rtol=0, atol=1e-3)
        assert [np.float32(s) for s in score] == ([] if made.scores is None else [made.scores[i]])


def test_yolo_text_by_hand() -> None:
    assert make()[1].to_yolo() == "0 0.5 0.5 1 1\n"
    assert make()[1].to_yolo(scores=True) == "0 0.5 0.5 1 1 0.5\n"
    assert make(scores=None)[1].to_yolo(scores=True) == "0 0.5 0.5 1 1\n"
    assert empty().to_yolo() == ""


def test_csv_rows_through_a_file() -> None:
    hostile = 'a "quoted", name\nwith a break.jpg'
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(Detections.CSV_COLUMNS)
    for detections in (make(path=hostile), empty(path="none.jpg")):
        writer.writerows(detections.to_csv_rows())
    file.seek(0)
    rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0]["path"] == hostile
    assert [row["name"] for row in rows] == ["dog", "cat", "dog", ""]
    for i in range(3):
        assert [np.float32(rows[i][key]) for key in ("x1", "y1", "x2", "y2")] == BOXES[i]
        assert np.float32(rows[i]["confidence"]) == np.float32([0.9, 0.5, 0.25][i])
    assert {k: v for k, v in rows[3].items() if v} == {"path": "none.jpg", "width": "640", "height": "480"}
    assert set(map(len, (*make().to_csv_rows(), *empty().to_csv_rows()))) == {len(Detections.CSV_COLUMNS)}


def test_hugging_face() -> None:
    assert make(scores=[1, 0.5, 0.25]).to_huggingface()[0] == {
        "score": 1.0,
        "label": "dog",
        "box": {"xmin": 10, "ymin": 20, "xmax": 110, "ymax": 70},
    }
    assert all(type(v) is int for row in make().to_huggingface() for v in row["box"].values())
    assert empty().to_huggingface() == []


@pytest.mark.parametrize("first_label", [0, 1])
def test_torchvision_dictionary(first_label: Any) -> None:
    torch = pytest.importorskip("torch")
    out = make().to_torchvision(first_label=first_label)
    assert {k: v.dtype for k, v in out.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "scores": torch.float32,
    }
    assert out["labels"].tolist() == [1 + first_label, first_label, 1 + first_label]
    out["boxes"][0, 0] = 0
    out["scores"][0] = 0
    assert make().boxes_xyxy[0, 0] == 10.25
    again = Detections(out["boxes"], out["labels"] - first_label, None, CLASSES, (480, 640))
    assert again[1:] == make(scores=None)[1:]
    assert "scores" not in make(scores=None).to_torchvision(first_label=first_label)
    assert empty().to_torchvision(first_label=first_label)["boxes"].shape == (0, 4)


def test_torchvision_dictionary_refuses_other_first_labels() -> None:
    with pytest.raises(ContractError, match="first_label must be 0 or 1, got 2"):
        make().to_torchvision(first_label=2)  # type: ignore[arg-type]


def test_torchvision_dictionary_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'multibox\[train\]'"):
        make().to_torchvision(first_label=0)


def test_supervision_through_its_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("supervision")
    fake.Detections = lambda **arguments: arguments  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", fake)
    out = make().to_supervision()
    assert set(out) == {"xyxy", "confidence", "class_id", "tracker_id", "data"}
    assert out["tracker_id"] is None
    np.testing.assert_array_equal(out["xyxy"], np.float32(BOXES))
    assert out["class_id"].tolist() == [1, 0, 1]
    assert out["data"]["class_name"].tolist() == ["dog", "cat", "dog"]
    out["xyxy"][0] = 0  # a copy, which its owner may change
    assert make(scores=None).to_supervision()["confidence"] is None
    none = empty().to_supervision()
    assert none["xyxy"].shape == (0, 4)
    assert none["data"]["class_name"].shape == (0,)


def test_supervision_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision") as caught:
        make().to_supervision()
    assert isinstance(caught.value, ImportError)


# ------------------------------------------------------------------------------------------------ drawing

GREY = np.full((480, 640, 3), 127, np.uint8)


def test_plot_draws_and_leaves_the_picture_alone() -> None:
    before = GREY.copy()
    drawn = np.asarray(make().plot(GREY))
    assert drawn.shape == GREY.shape
    assert (drawn != GREY).any()
    np.testing.assert_array_equal(GREY, before)


def test_plot_of_no_objects_is_the_picture() -> None:
    np.testing.assert_array_equal(np.asarray(empty().plot(GREY)), GREY)


def test_plot_draws_the_best_score_last() -> None:
    same = [[100, 100, 200, 200]] * 2
    first_best = make(boxes_xyxy=same, labels=[0, 1], scores=[0.9, 0.1]).plot(GREY, line_width=3)
    only_best = make(boxes_xyxy=same[:1], labels=[0], scores=[0.9]).plot(GREY, line_width=3)
    assert first_best.getpixel((100, 150)) == only_best.getpixel((100, 150))


def test_plot_without_a_picture() -> None:
    with pytest.raises(ContractError, match=r"do not know their picture; pass it: plot\(picture\)"):
        make().plot()


def test_plot_of_another_size() -> None:
    with pytest.raises(ContractError, match=r"\(640, 480\) is not the detections' \(480, 640\)"):
        make().plot(GREY.transpose(1, 0, 2))


def test_plot_reads_its_source_again(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    made = make(source=tmp_path / "grey.png")
    np.testing.assert_array_equal(np.asarray(made.plot()), np.asarray(make().plot(GREY)))
    (tmp_path / "grey.png").unlink()
    with pytest.raises(ImageError, match="there is no such file"):
        made.plot()


@pytest.mark.parametrize(
    ("name", "format"), [("a.png", "PNG"), ("b.JPG", "JPEG"), ("deep/er/c.jpeg", "JPEG"), ("d.webp", "WEBP")]
)
def test_save_chooses_the_format_by_the_suffix(tmp_path: Path, name: str, format: str) -> None:
    target = make().save(tmp_path / name, GREY)
    assert target == tmp_path / name
    with Image.open(target) as written:
        assert written.format == format
        assert written.size == (640, 480)
        difference = np.abs(np.asarray(written, int) - np.asarray(make().plot(GREY), int))
    assert difference.mean() < (1e-9 if format == "PNG" else 3)


@pytest.mark.parametrize("name", ["a.txt", "a", "a.pdf.exe"])
def test_save_refuses_unknown_suffixes_before_it_writes(tmp_path: Path, name: str) -> None:
    with pytest.raises(ContractError, match=r"use \.png or \.jpg"):
        make().save(tmp_path / "new" / name, GREY)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20)
@given(any_detections())
def test_any_detections_can_be_drawn(made: Detections) -> None:
    made = dataclasses.replace(made, picture_size_hw=(48, 64))
    assert made.plot(GREY[:48, :64]).size == (64, 48)
