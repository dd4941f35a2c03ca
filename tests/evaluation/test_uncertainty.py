from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from evaluation_worlds import CLASSES, found, one_picture, random_set, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.errors import ContractError, OptionError
from multibox.evaluation import EvaluationSet, bootstrap, compare, evaluate_coco, evaluate_voc
from multibox.evaluation.uncertainty import METRICS, measure

BOX = (10, 20, 60, 90)


def headline(data) -> dict[str, float | None]:
    coco, voc = evaluate_coco(data, engine="numpy").to_dict(), evaluate_voc(data).to_dict()
    own = {"voc_ap50": voc["ap50"], "voc_ap50_11point": voc["ap50_11point"]}
    return {name: own.get(name, coco.get(name)) for name in METRICS}


def repeated(data, counts) -> EvaluationSet:
    """The set with every picture as often as it counts, side by side."""
    places = np.repeat(np.arange(len(data)), counts)
    return EvaluationSet(data.class_map, [data.truths[i] for i in places], [data.predictions[i] for i in places])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("world", [{}, {"grid": 10, "score_steps": 5}, {"extra": 300, "pictures": 4}, {"pictures": 0}])
def test_value_is_the_number_of_the_engines(seed, world) -> None:
    data = random_set(seed, **world)
    result = bootstrap(data, metrics=list(METRICS), resamples=2)
    for name, value in headline(data).items():
        assert result[name].value == (None if value is None else pytest.approx(value, abs=1e-9)), name


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 3), min_size=6, max_size=6), st.booleans())
def test_a_resample_equals_evaluating_the_repeated_pictures(seed, counts, ties) -> None:
    data = random_set(seed, pictures=6, classes=3)
    if ties:  # between pictures, not within one
        rng = np.random.default_rng(seed)
        predictions = [replace(part, scores=rng.permutation(len(part)) / 100) for part in data.predictions]
        data = EvaluationSet(data.class_map, data.truths, predictions)
    weights = np.array(counts, np.float64)[:, None]
    measured = measure(data, list(METRICS), weights)
    for name, value in headline(repeated(data, counts)).items():
        if value is None:
            assert np.isnan(measured[name][0]), name
        else:
            assert measured[name][0] == pytest.approx(value, abs=1e-9), name


def test_same_seed_same_intervals() -> None:
    data = random_set(1)
    assert bootstrap(data, resamples=50, seed=3) == bootstrap(data, resamples=50, seed=3)
    assert bootstrap(data, resamples=50, seed=3) != bootstrap(data, resamples=50, seed=4)


def test_intervals_narrow_with_more_pictures_and_lower_level() -> None:
    few, many = random_set(1, pictures=20, shift=0.05), random_set(1, pictures=320, shift=0.05)

    def width(result) -> float:
        return result["ap50"].high - result["ap50"].low

    wide = width(bootstrap(few, metrics=["ap50"], resamples=200))
    assert width(bootstrap(many, metrics=["ap50"], resamples=200)) < wide / 2
    assert width(bootstrap(few, metrics=["ap50"], resamples=200, level=0.5)) < wide


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    world = {"classes": 3, "objects": 5, "extra": 2, "shift": 0.08}
    population = random_set(999, pictures=3000, **world)
    true_value = bootstrap(population, metrics=["voc_ap50"], resamples=1)["voc_ap50"].value
    hits = 0
    for trial in range(60):
        interval = bootstrap(random_set(trial, pictures=80, **world), metrics=["voc_ap50"], resamples=200, level=0.9)[
            "voc_ap50"
        ]
        hits += interval.low <= true_value <= interval.high
    assert 0.75 <= hits / 60 <= 1


def worse(data, part, seed=0) -> EvaluationSet:
    """The same truth with some detections taken away at random."""
    rng = np.random.default_rng(seed)
    predictions = [p[rng.random(len(p)) >= part] for p in data.predictions]
    return EvaluationSet(data.class_map, data.truths, predictions, name="worse")


def test_a_model_compared_with_itself_is_no_better() -> None:
    data = random_set(1)
    result = compare(data, data, resamples=100)
    for row in result.differences:
        assert (row.difference, row.low, row.high, row.not_better) == (0, 0, 0, 0.5)
        assert not row.excludes_zero


def test_a_clearly_better_model_is_found_better() -> None:
    data = random_set(1, pictures=60, shift=0.05)
    result = compare(worse(data, 0.9), data, resamples=200)
    for row in result.differences:
        assert row.difference > 0
        assert row.low > 0
        assert row.excludes_zero
        assert row.not_better == 0
    back = compare(data, worse(data, 0.9), resamples=200)
    assert back["ap50"].difference == pytest.approx(-result["ap50"].difference)
    assert back["ap50"].high < 0
    assert back["ap50"].not_better == 1
    assert (back.name_a, back.name_b) == ("random 1", "worse")


@pytest.mark.slow
def test_two_equally_good_models_differ_by_chance_only() -> None:
    excluded = 0
    for trial in range(30):
        data = random_set(trial, pictures=60, classes=3, shift=0.05)
        result = compare(worse(data, 0.3, seed=1), worse(data, 0.3, seed=2), metrics=["voc_ap50"], resamples=200)
        excluded += result["voc_ap50"].excludes_zero
    assert excluded <= 6  # 5 % expected


def test_comparing_needs_the_same_truth() -> None:
    a = one_picture(truth([BOX], [0]), found([BOX], [0], [0.5]))
    with pytest.raises(ContractError, match="truth of picture 0 differs"):
        compare(a, one_picture(truth([BOX], [1]), found()))
    with pytest.raises(ContractError, match="truth of picture 0 differs"):
        compare(a, one_picture(truth([BOX], [0], crowd=[True]), found()))
    with pytest.raises(ContractError, match="A has 1 pictures and B has 0"):
        compare(a, EvaluationSet(CLASSES, [], []))
    same = compare(a, one_picture(truth([BOX], [0]), found()), resamples=5, metrics=["ap"])
    assert same["ap"].difference == pytest.approx(-1)


def test_undefined_resamples_are_counted_and_left_out() -> None:
    data = EvaluationSet(CLASSES, [truth([BOX], [0]), truth()], [found([BOX], [0], [0.5]), found()])
    interval = bootstrap(data, metrics=["ap50"], resamples=400)["ap50"]
    assert 60 < interval.undefined < 140  # both draws miss the only object in a quarter of the resamples
    assert (interval.low, interval.high) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("data", [EvaluationSet(CLASSES, [], []), one_picture(truth(), found([BOX], [0], [0.5]))])
def test_nothing_asked_for_gives_none(data) -> None:
    result = bootstrap(data, resamples=10)
    assert all((row.value, row.low, row.high, row.undefined) == (None, None, None, 10) for row in result.intervals)
    both = compare(data, data, resamples=10)
    assert all((row.difference, row.not_better, row.undefined) == (None, None, 10) for row in both.differences)
    for part in (result, both):
        json.dumps(part.to_dict(), allow_nan=False)
        assert "–" in part.table()


def test_one_picture_has_an_interval_without_width() -> None:
    interval = bootstrap(random_set(3, pictures=1), metrics=["ap50"], resamples=20)["ap50"]
    assert interval.low == pytest.approx(interval.value)
    assert interval.high == pytest.approx(interval.value)


def test_unknown_metrics_and_impossible_settings_are_refused() -> None:
    data = random_set(0)
    with pytest.raises(OptionError, match="did you mean 'ap_small'"):
        bootstrap(data, metrics=["ap_smal"])
    with pytest.raises(ContractError, match="resamples of 1 or more"):
        bootstrap(data, resamples=0)
    with pytest.raises(ContractError, match="level inside"):
        compare(data, data, level=1.0)


@pytest.mark.slow
def test_a_thousand_resamples_of_a_real_size_take_seconds() -> None:
    data = random_set(1, pictures=839, classes=15, objects=4, extra=40, shift=0.1)
    start = time.perf_counter()
    result = bootstrap(data, resamples=1000)
    assert time.perf_counter() - start < 20
    assert result["ap"].low < result["ap"].high
