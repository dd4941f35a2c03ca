from __future__ import annotations

import json

import numpy as np
import pytest
from evaluation_worlds import CLASSES, found, one_picture, random_set, truth

from multibox.errors import ContractError, OptionError
from multibox.evaluation import EvaluationSet, confusion_matrix, evaluate_coco, evaluate_voc, precision_recall

A, B, C = (0, 0, 50, 50), (100, 0, 150, 50), (200, 0, 250, 50)
NOWHERE = (300, 300, 350, 350)


def test_curve_of_a_hand_made_ranking() -> None:
    data = one_picture(truth([A, B], [0, 0]), found([A, NOWHERE, B], [0, 0, 0], [0.9, 0.8, 0.5]))
    curve = precision_recall(data).per_class[0]
    assert curve.confidence.tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert curve.recall.tolist() == pytest.approx([1 / 2, 1 / 2, 1])
    assert curve.f1.tolist() == pytest.approx([2 / 3, 1 / 2, 4 / 5])
    assert curve.best.confidence == pytest.approx(0.5)
    assert curve.best.f1 == pytest.approx(0.8)
    assert curve.precision_at(np.array([0, 0.5, 0.51, 1])).tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert curve.f1_at(np.array([0, 0.5, 0.6, 0.85, 0.95])).tolist() == pytest.approx([0.8, 0.8, 0.5, 2 / 3, 0])


def test_equal_scores_are_one_point() -> None:
    data = one_picture(truth([A], [0]), found([NOWHERE, A], [0, 0], [0.5, 0.5]))
    curve = precision_recall(data).per_class[0]
    assert curve.precision.tolist() == [0.5]
    assert curve.recall.tolist() == [1]


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_is_the_best_of_all_thresholds(seed) -> None:
    data = random_set(seed, score_steps=20, shift=0.05, extra=4)
    curves = precision_recall(data)
    best = curves.pooled.best
    tried = {}
    for confidence in np.unique(data.columns.score):
        kept = [part.above(confidence) for part in data.predictions]
        after = precision_recall(EvaluationSet(data.class_map, data.truths, kept)).pooled
        tried[confidence] = float(after.f1[-1]) if len(after.f1) else 0.0
    assert best.f1 == pytest.approx(max(tried.values()))
    assert tried[best.confidence] == pytest.approx(best.f1)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_the_protocol(seed) -> None:
    data = random_set(seed)
    coco = [row.ap50 for row in evaluate_coco(data, engine="numpy").per_class]
    assert [curve.average_precision for curve in precision_recall(data).per_class] == pytest.approx(coco)
    voc = evaluate_voc(data)
    curves = precision_recall(data, protocol="voc")
    expected = [row.ap50 for row in voc.per_class]
    assert [curve.average_precision for curve in curves.per_class] == pytest.approx(expected)
    assert curves.pooled.average_precision == pytest.approx(voc.ap50)


def test_curves_of_a_class_without_objects_are_empty() -> None:
    curves = precision_recall(one_picture(truth(), found([A], [1], [0.9])))
    assert [len(curve.f1) for curve in curves.per_class] == [0, 0, 0]
    assert curves.pooled.best is None
    data = json.loads(json.dumps(curves.to_dict(), allow_nan=False))
    assert data["per_class"][1]["precision_at_recall"] is None
    assert "–" in curves.table()


def test_curve_dictionary_samples_both_curves() -> None:
    data = precision_recall(random_set(1)).to_dict()
    assert len(data["pooled"]["f1_at_confidence"]) == len(data["pooled"]["precision_at_recall"]) == 101
    assert "COCO matching at IoU 0.5" in data["protocol"]
    json.dumps(data, allow_nan=False)


def test_unknown_protocol_and_impossible_threshold_are_refused() -> None:
    with pytest.raises(OptionError, match="did you mean 'coco'"):
        precision_recall(random_set(0), protocol="coko")
    with pytest.raises(ContractError, match="IoU threshold"):
        precision_recall(random_set(0), iou=0)


def test_confusion_counts_right_wrong_stray_and_missed() -> None:
    true = truth([A, B, C], [0, 1, 2])
    predicted = found([A, B, NOWHERE, C], [0, 0, 1, 2], [0.9, 0.8, 0.7, 0.1])
    matrix = confusion_matrix(one_picture(true, predicted))
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[1, 0] = expected[3, 1] = expected[2, 3] = 1
    assert matrix.counts.tolist() == expected.tolist()
    assert matrix.most_confused() == [("dog", "cat", 1)]
    assert matrix.names[-1] == "background"


def test_confusion_prefers_the_right_class_to_the_better_fit() -> None:
    matrix = confusion_matrix(one_picture(truth([A], [0]), found([A, (0, 0, 50, 45)], [1, 0], [0.9, 0.9])))
    assert matrix.counts[0].tolist() == [1, 0, 0, 0]
    assert matrix.counts[3].tolist() == [0, 1, 0, 0]


def test_confusion_leaves_crowd_and_difficult_aside() -> None:
    true = truth([(0, 0, 200, 200), C], [0, 1], crowd=[True, False], difficult=[False, True])
    matrix = confusion_matrix(one_picture(true, found([(10, 10, 30, 30), C, NOWHERE], [0, 1, 2], [0.9, 0.8, 0.7])))
    assert matrix.counts.sum() == 1
    assert matrix.counts[3, 2] == 1


def test_confusion_keeps_scores_equal_to_the_threshold() -> None:
    data = one_picture(truth([A], [0]), found([A], [0], [0.3]))
    assert confusion_matrix(data, confidence=0.3).counts[0, 0] == 1
    assert confusion_matrix(data, confidence=0.31).counts[0, 3] == 1


@pytest.mark.parametrize("seed", range(4))
def test_confusion_accounts_for_everything_once(seed) -> None:
    data = random_set(seed)
    counts = confusion_matrix(data, confidence=0.0).counts
    columns = data.columns
    asked = ~columns.truth_crowd & ~columns.truth_difficult
    asked_by_class = np.bincount(columns.truth_label[asked], minlength=len(data.class_map))
    assert counts[:-1].sum(axis=1).tolist() == asked_by_class.tolist()
    assert (counts[:, :-1].sum(axis=0) <= np.bincount(columns.label, minlength=len(data.class_map))).all()


def test_confusion_of_nothing() -> None:
    matrix = confusion_matrix(EvaluationSet(CLASSES, [], []))
    assert matrix.counts.sum() == 0
    assert matrix.most_confused() == []
    assert "pairs at IoU 0.5" in matrix.table()
    assert json.loads(json.dumps(matrix.to_dict()))["names"] == ["cat", "dog", "bird", "background"]
    with pytest.raises(ContractError, match="confidence in 0"):
        confusion_matrix(EvaluationSet(CLASSES, [], []), confidence=2)
