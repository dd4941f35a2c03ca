from __future__ import annotations

import json

import numpy as np
import pytest
from evaluation_worlds import CLASSES, found, one_picture, random_set, truth

from multibox.errors import ContractError
from multibox.evaluation import EvaluationSet, calibration

NOWHERE = (300, 300, 350, 350)


def scored(score: float, right: int, wrong: int) -> EvaluationSet:
    """Pictures with one object each; a detection of the given score finds it in some and misses it in others."""
    box = (0, 0, 50, 50)
    truths = [truth([box], [0]) for _ in range(right + wrong)]
    boxes = [box] * right + [NOWHERE] * wrong
    return EvaluationSet(CLASSES, truths, [found([b], [0], [score]) for b in boxes])


@pytest.mark.parametrize(("score", "right", "wrong", "error"), [(0.75, 3, 1, 0.0), (0.9, 1, 1, 0.4), (0.5, 0, 4, 0.5)])
def test_error_is_the_gap_between_score_and_precision(score, right, wrong, error) -> None:
    result = calibration(scored(score, right, wrong)).overall
    assert result.count == right + wrong
    assert [result.ece, result.ece_equal_mass, result.max_error] == pytest.approx([error] * 3, abs=1e-7)


def test_error_is_weighted_by_counts() -> None:
    a, b = scored(0.9, 3, 0), scored(0.2, 1, 0)
    both = EvaluationSet(CLASSES, [*a.truths, *b.truths], [*a.predictions, *b.predictions])
    result = calibration(both, per_class=True)
    assert result.overall.ece == pytest.approx((3 * 0.1 + 0.8) / 4, abs=1e-7)
    assert result.overall.max_error == pytest.approx(0.8, abs=1e-7)
    assert [row.count for row in result.per_class] == [4, 0, 0]
    assert result.per_class[1].ece is None
    assert calibration(both, confidence=0.5).overall.ece == pytest.approx(0.1, abs=1e-7)


def test_scores_that_are_probabilities_have_hardly_any_error() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(3000).astype(np.float32)
    right = rng.random(3000) < scores
    box = (0, 0, 50, 50)
    predictions = [found([box if hit else NOWHERE], [0], [s]) for hit, s in zip(right, scores, strict=True)]
    result = calibration(EvaluationSet(CLASSES, [truth([box], [0])] * 3000, predictions), bins=10)
    assert result.overall.ece < 0.03
    assert result.overall.ece_equal_mass < 0.03
    assert sum(row.count for row in result.bins) == sum(row.count for row in result.bins_equal_mass) == 3000
    counts = [row.count for row in result.bins_equal_mass]
    assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("seed", range(4))
def test_every_counted_detection_is_in_one_bin(seed) -> None:
    result = calibration(random_set(seed, score_steps=4), bins=4)
    for bins in (result.bins, result.bins_equal_mass):
        assert sum(row.count for row in bins) == result.overall.count
        for row in bins:
            if row.count:
                assert row.low <= row.confidence <= row.high


def test_nothing_to_calibrate_gives_none() -> None:
    result = calibration(EvaluationSet(CLASSES, [], []), per_class=True)
    assert (result.overall.ece, result.overall.ece_equal_mass, result.overall.max_error) == (None, None, None)
    assert all(row.precision is None for row in result.bins)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["overall"]["ece"] is None
    assert "–" in result.table()
    with pytest.raises(ContractError, match="1 bin or more"):
        calibration(one_picture(truth(), found()), bins=0)
