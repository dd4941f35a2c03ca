from __future__ import annotations

import builtins
import json
import math

import numpy as np
import pytest
from evaluation_worlds import CLASSES, found, one_picture, random_set, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.errors import MissingDependencyError, OptionError
from multibox.evaluation import EvaluationSet, coco, coco_engines, evaluate_coco
from multibox.evaluation.matching import FALSE, IGNORED, TRUE, match_coco

BOX = (10, 20, 60, 90)
NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NUMBERS += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")

WORLDS = {
    "plain": {},
    "ties in overlap and score": {"grid": 10, "score_steps": 10},
    "more than 100 per picture and class": {"extra": 500, "objects": 30, "pictures": 4, "classes": 3},
    "one class, coarse": {"grid": 25, "score_steps": 4, "classes": 1, "objects": 20},
    "one picture": {"pictures": 1},
    "many classes": {"classes": 30, "objects": 20},
    "no pictures": {"pictures": 0},
    "no objects": {"objects": 0},
    "no detections": {"extra": 0},
}


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{path}/{key}")
    elif isinstance(value, list):
        for key, part in enumerate(value):
            yield from leaves(part, f"{path}/{key}")
    elif not path.endswith("/engine"):
        yield path, value


def assert_equal_results(mine, reference) -> None:
    mine, reference = dict(leaves(mine.to_dict())), dict(leaves(reference.to_dict()))
    assert mine.keys() == reference.keys()
    for path, value in reference.items():
        if isinstance(value, float) and mine[path] is not None:
            assert mine[path] == pytest.approx(value, abs=1e-9, rel=0), path
        else:
            assert mine[path] == value, path


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("seed", range(4))
def test_numpy_equals_pycocotools(world, seed) -> None:
    pytest.importorskip("pycocotools")
    data = random_set(100 * seed, **WORLDS[world])
    assert_equal_results(evaluate_coco(data, engine="numpy"), evaluate_coco(data, engine="pycocotools"))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 16.0, 32.0]),
    st.sampled_from([0, 1, 3]),
    st.integers(1, 4),
    st.integers(0, 12),
)
def test_numpy_engine_equals_pycocotools_anywhere(seed, grid, score_steps, classes, objects) -> None:
    pytest.importorskip("pycocotools")
    data = random_set(seed, pictures=6, classes=classes, objects=objects, grid=grid, score_steps=score_steps)
    assert_equal_results(evaluate_coco(data, engine="numpy"), evaluate_coco(data, engine="pycocotools"))


@pytest.mark.parametrize("engine", ["numpy", "pycocotools"])
def test_equal_scores_are_ranked_by_image_id(engine) -> None:
    if engine == "pycocotools":
        pytest.importorskip("pycocotools")
    right, wrong = found([BOX], [0], [0.5]), found([(200, 200, 300, 300)], [0], [0.5])
    truths = [truth(image_id=9), truth([BOX], [0], image_id=3)]
    assert evaluate_coco(EvaluationSet(CLASSES, truths, [wrong, right]), engine=engine).ap50 == pytest.approx(1)
    truths = [truth(image_id=3), truth([BOX], [0], image_id=9)]
    assert evaluate_coco(EvaluationSet(CLASSES, truths, [wrong, right]), engine=engine).ap50 == pytest.approx(0.5)


def test_perfect_detections_score_one_and_absent_classes_are_left_out() -> None:
    result = evaluate_coco(one_picture(truth([BOX], [1]), found([BOX, BOX], [1, 2], [0.9, 0.8])))
    numbers = [result.ap, result.ap50, result.ap75, result.ap_medium, result.ar1, result.ar100]
    assert numbers == pytest.approx([1] * 6, abs=1e-12)
    assert result.ap_small is None
    assert [row.ap for row in result.per_class] == [None, pytest.approx(1), None]
    assert [row.truths for row in result.per_class] == [0, 1, 0]
    assert [row.detections for row in result.per_class] == [0, 1, 1]


def test_detections_in_a_crowd_region_count_neither_way() -> None:
    crowd = (0, 0, 300, 300)
    true = truth([crowd, BOX], [0, 0], crowd=[True, False])
    # Both lie wholly inside the region although they cover little of it.
    predicted = found([(100, 100, 150, 150), (160, 160, 220, 220), BOX], [0, 0, 0], [0.9, 0.8, 0.7])
    assert evaluate_coco(one_picture(true, predicted), engine="numpy").ap == pytest.approx(1)
    matched = match_coco(one_picture(true, predicted), thresholds=[0.5], areas=["all"])[0]
    assert matched.outcome.tolist() == [[IGNORED, IGNORED, TRUE]]


def test_only_the_best_hundred_of_a_picture_and_class_count() -> None:
    elsewhere = [(300, 300, 310, 310)] * 100
    scores = np.linspace(0.9, 0.8, 101)
    late = one_picture(truth([BOX], [0]), found([*elsewhere, BOX], [0] * 101, scores))
    assert evaluate_coco(late, engine="numpy").ap50 == 0
    assert len(match_coco(late, thresholds=[0.5], areas=["all"])[0].row) == 100
    early = one_picture(truth([BOX], [0]), found([*elsewhere[1:], BOX], [0] * 100, scores[1:]))
    assert evaluate_coco(early, engine="numpy").ap50 == pytest.approx(0.01)


def test_second_best_detection_of_an_object_is_false() -> None:
    matched = match_coco(
        one_picture(truth([BOX], [0]), found([BOX, BOX], [0, 0], [0.3, 0.6])), thresholds=[0.5, 0.95], areas=["all"]
    )[0]
    assert matched.score.tolist() == pytest.approx([0.6, 0.3])
    assert matched.outcome.tolist() == [[TRUE, FALSE]] * 2
    assert matched.truth.tolist() == [[0, -1]] * 2


@pytest.mark.parametrize("engine", ["auto", "numpy", "pycocotools"])
@pytest.mark.parametrize("world", ["no pictures", "no objects"])
def test_undefined_numbers_are_none_and_dashes(engine, world) -> None:
    if engine != "auto":
        pytest.importorskip(engine) if engine != "numpy" else None
    result = evaluate_coco(random_set(0, **WORLDS[world]), engine=engine)
    assert [getattr(result, name) for name in NUMBERS] == [None] * 12
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["ap"] is None
    assert "–" in result.table()
    assert "nan" not in result.table()


def test_objects_without_detections_score_zero() -> None:
    result = evaluate_coco(one_picture(truth([BOX], [0]), found()), engine="numpy")
    assert result.ap == result.ar100 == 0


def test_results_say_protocol_engine_and_pictures() -> None:
    result = evaluate_coco(random_set(1), engine="numpy")
    assert result.protocol.startswith("COCO bbox: AP at IoU 0.50:0.05:0.95")
    assert "difficult objects count as any other" in result.protocol
    assert result.engine.startswith("multibox ")
    assert result.pictures == 12
    for text in (result.protocol, result.engine, "12 pictures", f"{result.ap:.4f}"):
        assert text in result.table()
    plain = evaluate_coco(one_picture(truth([BOX], [0]), found()), engine="numpy")
    assert plain.protocol == coco.COCO_PROTOCOL


def test_pycocotools_prints_nothing_and_is_named(capfd) -> None:
    pytest.importorskip("pycocotools")
    result = evaluate_coco(random_set(2), engine="pycocotools")
    assert capfd.readouterr() == ("", "")
    assert result.engine.startswith("pycocotools")


def test_a_missing_engine_is_said(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "pycocotools":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match="pycocotools") as caught:
        evaluate_coco(random_set(0), engine="pycocotools")
    assert caught.value.extra == "data"


def test_auto_falls_back_to_numpy(monkeypatch) -> None:
    monkeypatch.setattr(coco.importlib.util, "find_spec", lambda name: None)
    assert evaluate_coco(random_set(0)).engine.startswith("multibox")


def test_unknown_engine_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="did you mean 'numpy'"):
        evaluate_coco(random_set(0), engine="nunpy")


def test_engine_tables_have_nan_only_for_absent_classes() -> None:
    scores = coco_engines.by_numpy(random_set(0))
    assert np.isnan(scores.precision["all"][:, -1]).all()
    assert not np.isnan(scores.precision["all"][:, 0]).any()
    assert all(math.isnan(value) for value in scores.recall["1"][:, -1])
