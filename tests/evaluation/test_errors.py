from __future__ import annotations

import json
from typing import get_args

import pytest
from evaluation_worlds import CLASSES, found, one_picture, random_set, truth

from multibox.errors import ContractError
from multibox.evaluation import EvaluationSet, error_split, evaluate_coco, evaluate_voc
from multibox.evaluation.errors import ErrorKind

A, B = (0, 0, 100, 100), (200, 0, 300, 100)
SHIFTED = (50, 0, 150, 100)  # overlaps A by 1/3
NOWHERE = (300, 300, 350, 350)
KINDS = get_args(ErrorKind)


def counts(split) -> dict[str, int]:
    return {error.kind: error.count for error in split.errors if error.count}


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        (truth([A], [0]), found([A], [0], [0.9]), {}),
        (truth([A], [0]), found(), {"missed": 1}),
        (truth([A], [0]), found([A, A], [0, 0], [0.9, 0.8]), {"duplicate": 1}),
        (truth([A], [0]), found([A], [1], [0.9]), {"classification": 1}),
        (truth([A], [0]), found([SHIFTED], [0], [0.9]), {"localisation": 1}),
        (truth([A], [0]), found([SHIFTED], [1], [0.9]), {"both": 1, "missed": 1}),
        (truth([A], [0]), found([A, NOWHERE], [0, 0], [0.8, 0.9]), {"background": 1}),
        (truth([A, B], [0, 0]), found([A, NOWHERE], [0, 1], [0.8, 0.9]), {"background": 1, "missed": 1}),
        (truth(), found([A], [0], [0.9]), {"background": 1}),
        (truth([A], [0], crowd=[True]), found([A], [0], [0.9]), {}),
    ],
)
def test_each_mistake_is_of_its_kind(true, predicted, expected) -> None:
    assert counts(error_split(one_picture(true, predicted))) == expected


def test_perfect_detections_have_nothing_to_gain() -> None:
    split = error_split(one_picture(truth([A, B], [0, 1]), found([A, B], [0, 1], [0.9, 0.8])))
    assert split.ap == pytest.approx(1)
    assert [error.ap_gain for error in split.errors] == pytest.approx([0] * 6)
    assert split.false_positive_gain == split.false_negative_gain == 0
    assert split.true_positives == 2


@pytest.mark.parametrize("mistake", [found([A], [1], [0.9]), found([SHIFTED], [0], [0.9]), found()])
def test_repairing_the_only_mistake_makes_it_perfect(mistake) -> None:
    split = error_split(one_picture(truth([A], [0]), mistake))
    (error,) = (error for error in split.errors if error.count)
    assert split.ap == 0
    assert error.ap_gain == pytest.approx(1)
    assert sum(e.ap_gain for e in split.errors) == pytest.approx(1)


def test_removing_false_detections_above_a_right_one() -> None:
    split = error_split(one_picture(truth([A], [0]), found([NOWHERE, A], [0, 0], [0.9, 0.8])))
    assert split.ap == pytest.approx(0.5)
    assert split["background"].ap_gain == split.false_positive_gain == pytest.approx(0.5)
    assert split["missed"].ap_gain == split.false_negative_gain == 0


def test_only_the_best_of_several_misplaced_boxes_is_repaired() -> None:
    # Two shifted boxes point to one object: one becomes right, the other goes. A second class stays at zero.
    data = one_picture(truth([A, B], [0, 1]), found([SHIFTED, (0, 60, 100, 160)], [0, 0], [0.9, 0.8]))
    split = error_split(data)
    assert counts(split) == {"localisation": 2, "missed": 1}
    assert split["localisation"].ap_gain == pytest.approx(0.5)


def test_a_misplaced_box_of_a_found_object_repairs_nothing_twice() -> None:
    split = error_split(one_picture(truth([A], [0]), found([SHIFTED, A], [0, 0], [0.9, 0.8])))
    assert counts(split) == {"localisation": 1}
    assert split.ap == pytest.approx(0.5)
    assert split["localisation"].ap_gain == pytest.approx(0.5)


def test_wrong_class_is_repaired_in_the_list_of_the_right_class() -> None:
    true = truth([A, B], [0, 1])
    split = error_split(one_picture(true, found([A, B], [1, 1], [0.9, 0.8])))
    # As dog, the cat ranks above the only dog: AP 0.5 for dog, 0 for cat. Repaired, both are perfect.
    assert split.ap == pytest.approx(0.25)
    assert split["classification"].ap_gain == pytest.approx(0.75)


def test_missed_objects_of_a_class_with_false_detections_leave_it_at_zero() -> None:
    split = error_split(one_picture(truth([A], [0]), found([NOWHERE], [0], [0.9])))
    assert split["missed"].ap_gain == 0
    split = error_split(one_picture(truth([A], [0]), found()))
    assert split["missed"].ap_gain == split.false_negative_gain == 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("protocol", ["coco", "voc"])
def test_counts_add_up_and_ap_is_the_headline(seed, protocol) -> None:
    data = random_set(seed, objects=12)
    split = error_split(data, protocol=protocol)
    headline = evaluate_coco(data, engine="numpy").ap50 if protocol == "coco" else evaluate_voc(data).ap50
    assert split.ap == pytest.approx(headline)
    everything = evaluate_coco(data, engine="numpy") if protocol == "coco" else evaluate_voc(data)
    objects = sum(row.truths for row in everything.per_class)
    assert split.true_positives + split["missed"].count <= objects
    assert split.true_positives + sum(counts(split).values()) <= len(data.columns.label) + objects
    assert split.false_positive_gain >= max(split[kind].ap_gain for kind in ("both", "duplicate", "background")) - 1e-12
    assert all(error.ap_gain >= -1e-12 for error in split.errors if error.kind != "missed")


@pytest.mark.parametrize("seed", range(3))
def test_examples_lead_to_the_mistakes(seed) -> None:
    data = random_set(seed, objects=12)
    split = error_split(data, examples=4)
    assert split["background"].count > 4
    for error in split.errors:
        assert len(error.examples) == min(4, error.count)
        assert [e.score for e in error.examples] == sorted((e.score for e in error.examples), key=lambda s: -(s or 0))
        for example in error.examples:
            if error.kind == "missed":
                record = data.truths[example.picture].detections
                assert example.detection is None
                assert example.true == record.names[example.truth]
                continue
            row = data.predictions[example.picture]
            assert (row.names[example.detection], row.scores[example.detection]) == (example.predicted, example.score)
            assert (example.truth is None) == (error.kind == "background")
            if error.kind in ("localisation", "duplicate"):
                assert example.true == example.predicted
            if error.kind in ("classification", "both"):
                assert example.true != example.predicted


def test_examples_of_hand_made_mistakes() -> None:
    truths = [truth([B, A], [1, 0], area=[9.0, 8.0]), truth([A], [2], area=[50.0])]
    split = error_split(EvaluationSet(CLASSES, truths, [found([NOWHERE, A], [2, 2], [0.2, 0.7]), found()]))
    (wrong,) = split["classification"].examples
    assert (wrong.picture, wrong.detection, wrong.truth, wrong.predicted, wrong.true) == (0, 1, 1, "bird", "cat")
    assert wrong.iou == 1
    assert [(e.picture, e.truth) for e in split["missed"].examples] == [(1, 0), (0, 0)]


def test_difficult_objects_are_nobodys_target_for_voc() -> None:
    data = one_picture(truth([A], [0], difficult=[True]), found([A], [1], [0.9]))
    assert counts(error_split(data, protocol="voc")) == {"background": 1}
    assert counts(error_split(data, protocol="coco")) == {"classification": 1}


@pytest.mark.parametrize("data", [EvaluationSet(CLASSES, [], []), one_picture(truth(), found([A], [0], [0.9]))])
def test_without_objects_gains_are_undefined(data) -> None:
    split = error_split(data)
    assert split.ap is None
    assert all(error.ap_gain is None for error in split.errors)
    assert [error["kind"] for error in json.loads(json.dumps(split.to_dict(), allow_nan=False))["errors"]] == list(
        KINDS
    )
    assert "–" in split.table()


def test_impossible_thresholds_are_refused() -> None:
    with pytest.raises(ContractError, match="background_iou"):
        error_split(EvaluationSet(CLASSES, [], []), background_iou=0.5)
    with pytest.raises(ContractError, match="background_iou"):
        error_split(EvaluationSet(CLASSES, [], []), examples=-1)
