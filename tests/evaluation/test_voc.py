from __future__ import annotations

import json

import numpy as np
import pytest
from evaluation_worlds import CLASSES, SIZE_HW, found, one_picture, random_set, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.evaluation import EvaluationSet, Truth, evaluate_voc
from multibox.spec.detections import Detections

BOX = (10, 20, 60, 90)
BUCKETS = {"ap50_small": (0, 32**2), "ap50_medium": (32**2, 96**2), "ap50_large": (96**2, 1e10)}


def overlap(a, b) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    shared = wide * high
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def plain_outcomes(data, label, smallest=0.0, largest=1e10):
    """Outcomes (True, False) best first, and the number of objects asked for."""
    ranked, objects = [], []
    for picture in data.order.tolist():
        part, true = data.predictions[picture], data.truths[picture]
        for box, found_label, score in zip(part.boxes_xyxy.tolist(), part.labels, part.scores, strict=True):
            if found_label == label:
                ranked.append((float(score), picture, box))
        for i, box in enumerate(true.detections.boxes_xyxy.tolist()):
            if true.detections.labels[i] == label:
                area = (box[2] - box[0]) * (box[3] - box[1]) if np.isnan(true.area[i]) else true.area[i]
                aside = bool(true.difficult[i] or true.crowd[i]) or not smallest <= area <= largest
                objects.append({"picture": picture, "box": box, "aside": aside, "taken": False})
    outcomes = []
    for _, picture, box in sorted(ranked, key=lambda row: -row[0]):
        best, best_overlap = None, -1.0
        for item in objects:
            if item["picture"] == picture and overlap(box, item["box"]) > best_overlap:
                best, best_overlap = item, overlap(box, item["box"])
        if best_overlap >= 0.5:
            if not best["aside"]:
                outcomes.append(not best["taken"])
                best["taken"] = True
        elif smallest <= (box[2] - box[0]) * (box[3] - box[1]) <= largest:
            outcomes.append(False)
    return outcomes, sum(not item["aside"] for item in objects)


def plain_ap(outcomes, asked, eleven=False):
    if not asked:
        return None
    points, right = [], 0
    for count, outcome in enumerate(outcomes, start=1):
        right += outcome
        points.append((right, right / count))
    if eleven:
        best = [max([p for r, p in points if 10 * r >= level * asked], default=0.0) for level in range(11)]
        return sum(best) / 11
    total, before = 0.0, 0
    for place, (right, _) in enumerate(points):
        total += (right - before) / asked * max(p for _, p in points[place:])
        before = right
    return total


def assert_equals_oracle(data) -> None:
    result = evaluate_voc(data)
    areas = []
    for label, row in enumerate(result.per_class):
        outcomes, asked = plain_outcomes(data, label)
        expected = plain_ap(outcomes, asked)
        areas += [] if expected is None else [expected]
        assert row.truths == asked
        assert row.ap50 == (None if expected is None else pytest.approx(expected, abs=1e-9))
        eleven = plain_ap(outcomes, asked, eleven=True)
        assert row.ap50_11point == (None if eleven is None else pytest.approx(eleven, abs=1e-9))
        assert row.recall == (pytest.approx(sum(outcomes) / asked) if asked else None)
        for name, (smallest, largest) in BUCKETS.items():
            part = plain_ap(*plain_outcomes(data, label, smallest, largest))
            assert getattr(row, name) == (None if part is None else pytest.approx(part, abs=1e-9)), name
    assert result.ap50 == (pytest.approx(np.mean(areas)) if areas else None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("world", [{}, {"grid": 20, "score_steps": 5}, {"extra": 300, "pictures": 3, "classes": 2}])
def test_equals_plain_loops_on_random_sets(seed, world) -> None:
    assert_equals_oracle(random_set(seed, **world))


corner = st.integers(0, 12).map(lambda i: 16 * i)
side = st.integers(1, 8).map(lambda i: 16 * i)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
label = st.integers(0, 1)
true_object = st.tuples(box, label, st.booleans(), st.booleans())
prediction = st.tuples(box, label, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
picture = st.tuples(st.lists(true_object, max_size=5), st.lists(prediction, max_size=7))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(picture, max_size=4))
def test_equals_plain_loops_anywhere(pictures) -> None:
    truths, predictions = [], []
    for objects, detections in pictures:
        boxes, labels, difficult, crowd = zip(*objects, strict=True) if objects else ([], [], [], [])
        truths.append(
            Truth(
                Detections(list(boxes), list(labels), None, CLASSES, SIZE_HW),
                difficult=np.array(difficult, bool),
                crowd=np.array(crowd, bool),
            )
        )
        predictions.append(found(*(zip(*detections, strict=True) if detections else ((), (), ()))))
    assert_equals_oracle(EvaluationSet(CLASSES, truths, predictions))


def test_difficult_objects_count_neither_found_nor_missed() -> None:
    true = truth([BOX, (100, 100, 200, 200)], [0, 0], difficult=[True, False])
    both = found([BOX, BOX, (100, 100, 200, 200)], [0, 0, 0], [0.9, 0.8, 0.7])
    assert evaluate_voc(one_picture(true, both)).ap50 == pytest.approx(1)
    assert evaluate_voc(one_picture(true, both[2])).ap50 == pytest.approx(1)
    row = evaluate_voc(one_picture(true, both)).per_class[0]
    assert (row.truths, row.difficult, row.detections) == (1, 1, 3)


def test_detection_looks_only_at_its_best_object() -> None:
    # The second detection fits the second object well enough, but the first one better: VOC calls it false.
    true = truth([(0, 0, 100, 100), (0, 20, 100, 120)], [0, 0])
    predicted = found([(0, 0, 100, 100), (0, 5, 100, 105)], [0, 0], [0.9, 0.8])
    assert evaluate_voc(one_picture(true, predicted)).per_class[0].recall == 0.5


def test_overlap_of_exactly_half_is_a_hit() -> None:
    half = one_picture(truth([(0, 0, 100, 100)], [0]), found([(0, 0, 100, 50)], [0], [1.0]))
    assert evaluate_voc(half).ap50 == pytest.approx(1)
    assert evaluate_voc(half, iou=0.51).ap50 == 0


def test_eleven_points_and_area_differ_as_they_should() -> None:
    # One of two objects found: recall 0.5 at precision 1 reaches 6 of the 11 levels.
    result = evaluate_voc(one_picture(truth([BOX, (200, 200, 300, 300)], [0, 0]), found([BOX], [0], [0.9])))
    assert result.ap50 == pytest.approx(0.5)
    assert result.ap50_11point == pytest.approx(6 / 11)


def test_recall_of_three_tenths_reaches_the_level_of_three_tenths() -> None:
    boxes = [(40 * i, 0, 40 * i + 30, 30) for i in range(10)]
    result = evaluate_voc(one_picture(truth(boxes, [0] * 10), found(boxes[:3], [0] * 3, [0.9, 0.8, 0.7])))
    assert result.ap50_11point == pytest.approx(4 / 11)


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        (truth(), found(), None),
        (truth(), found([BOX], [0], [0.9]), None),
        (truth([BOX], [0], difficult=[True]), found([BOX], [0], [0.9]), None),
        (truth([BOX], [0]), found(), 0.0),
        (truth([BOX], [0]), found([BOX], [1], [0.9]), 0.0),
        (truth([BOX], [0]), found([BOX], [0], [0.0]), 1.0),
    ],
)
def test_nothing_there_or_nothing_found(true, predicted, expected) -> None:
    result = evaluate_voc(one_picture(true, predicted))
    assert result.ap50 == (None if expected is None else pytest.approx(expected))
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["ap50"] == result.ap50
    assert ("–" in result.table().splitlines()[1].split()[2]) == (expected is None)


def test_no_pictures_at_all() -> None:
    result = evaluate_voc(EvaluationSet(CLASSES, [], []))
    assert result.ap50 is None
    assert result.pictures == 0
    assert "VOC" in result.protocol
    assert result.engine.startswith("multibox")
