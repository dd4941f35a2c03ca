"""The errors of each picture, against loops that anyone can check, and the page that shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.evaluation import EvaluationSet, Truth
from multibox.evaluation.picture_costs import picture_costs
from multibox.evaluation.report import report_page
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections

CLASSES = ClassMap(("a", "b"))
PLACES, SIDES = st.integers(0, 6), st.integers(1, 5)
CORNERS = st.builds(lambda x, y, width, height: (x, y, x + width, y + height), PLACES, PLACES, SIDES, SIDES)
OBJECTS = st.lists(st.tuples(CORNERS, st.integers(0, 1), st.sampled_from(["", "", "crowd", "difficult"])), max_size=5)
FOUND = st.lists(st.tuples(CORNERS, st.integers(0, 1), st.integers(1, 9)), max_size=6)


def world(objects: list, found: list, path: str = "") -> EvaluationSet:
    def boxes(rows: list) -> np.ndarray:
        return np.array([row[0] for row in rows], np.float32).reshape(-1, 4)

    def labels(rows: list) -> np.ndarray:
        return np.array([row[1] for row in rows], np.int64)

    truth = Detections(boxes(objects), labels(objects), None, CLASSES, (12, 12), path)
    flags = {name: np.array([row[2] == name for row in objects], bool) for name in ("crowd", "difficult")}
    area = np.full(len(objects), np.nan)
    scores = np.array([row[2] / 10 for row in found], np.float32)
    predictions = Detections(boxes(found), labels(found), scores, CLASSES, (12, 12), path)
    return EvaluationSet(CLASSES, [Truth(truth, **flags, area=area)], [predictions], "a world")


def iou(a: tuple, b: tuple) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (area - common)


def slow(objects: list, found: list, confidence: float) -> dict[str, list[int]]:
    """One detection after the other, best first: first what is right, then what the others are."""
    result: dict[str, list[int]] = {key: [] for key in ("right", "wrong_class", "badly_placed", "false", "mistaken")}
    order = [i for i in sorted(range(len(found)), key=lambda i: -found[i][2]) if found[i][2] / 10 >= confidence - 1e-6]
    taken: set[int] = set()

    def best(row: int, same: bool, least: float) -> int | None:
        fitting = [
            i
            for i, (box, label, flag) in enumerate(objects)
            if i not in taken and not flag and (label == found[row][1]) == same and iou(box, found[row][0]) >= least
        ]
        return max(fitting, key=lambda i: (iou(objects[i][0], found[row][0]), -i), default=None)

    for row in order:
        goal = best(row, True, 0.5)
        if goal is not None:
            taken.add(goal)
            result["right"].append(row)
    for row in (row for row in order if row not in result["right"]):
        if any(flag and iou(box, found[row][0]) >= 0.5 for box, _, flag in objects):
            continue
        for kind, same, least in (("wrong_class", False, 0.5), ("badly_placed", True, 0.1)):
            goal = best(row, same, least)
            if goal is not None:
                taken.add(goal)
                result["mistaken"].append(goal)
                result[kind].append(row)
                break
        else:
            result["false"].append(row)
    result["missed"] = [i for i in range(len(objects)) if i not in taken and not objects[i][2]]
    return result


@given(OBJECTS, FOUND, st.sampled_from([0.0, 0.35, 0.75]))
def test_errors_are_those_of_plain_loops(objects: list, found: list, confidence: float) -> None:
    (cost,) = picture_costs(world(objects, found), confidence=confidence)
    expected = slow(objects, found, confidence)
    assert {key: list(getattr(cost, key)) for key in expected} == expected
    assert cost.errors == sum(len(expected[key]) for key in ("missed", "wrong_class", "badly_placed", "false"))


def test_the_page_begins_with_numbers_and_the_costliest_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a <b>.png"
    Image.new("RGB", (12, 12)).save(path)
    data = world([((0, 0, 5, 5), 0, "")], [((6, 6, 9, 9), 1, 8)], str(path))
    text = report_page(
        title="a model on <data>",
        subtitle="here",
        headline=[("0.5", "AP")],
        costs=picture_costs(data, confidence=0.5),
        confidence=0.5,
        data=data,
        plots=[("a plot", b"png")],
        errors=[("missed", 1, "0.1", "object not found")],
        classes=[("a", 1, "0.5", "–", "–", "–")],
        notes=["a note"],
    )
    places = [text.index(part) for part in ("0.5</b>", "The pictures that cost most", "a plot", ">Classes<", "a note")]
    assert places == sorted(places)
    assert "a &lt;b&gt;.png: 1 missed, 1 false" in text
    assert "<data>" not in text
    assert text.count("<rect ") == 2
    path.unlink()
    gone = report_page(
        title="t", subtitle="", headline=[], costs=picture_costs(data, confidence=0.5), confidence=0.5, data=data,
        plots=[], errors=[], classes=[], notes=[],
    )  # fmt: skip
    assert "no such file" in gone


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_costliest_come_first(confidence: float) -> None:
    worlds = [world([((0, 0, 5, 5), 0, "")] * count, []) for count in (1, 3, 2)]
    data = EvaluationSet(CLASSES, [w.truths[0] for w in worlds], [w.predictions[0] for w in worlds], "three")
    assert [cost.picture for cost in picture_costs(data, confidence=confidence)] == [1, 2, 0]
