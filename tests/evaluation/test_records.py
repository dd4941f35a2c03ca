from __future__ import annotations

import numpy as np
import pytest
from evaluation_worlds import CLASSES, SIZE_HW, found, one_picture, random_set, truth

from multibox.errors import ClassMapError, ContractError
from multibox.evaluation import EvaluationSet, Truth
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections

BOX = (10, 20, 40, 60)


def test_flags_are_false_and_area_unknown_when_left_out() -> None:
    record = truth([BOX], [0])
    assert record.crowd.tolist() == record.difficult.tolist() == [False]
    assert np.isnan(record.area).all()
    assert len(record) == 1


def test_arrays_are_copied_and_read_only() -> None:
    crowd = np.array([True])
    record = truth([BOX], [0], crowd=crowd)
    crowd[0] = False
    assert record.crowd.tolist() == [True]
    with pytest.raises(ValueError, match="read-only"):
        record.area[0] = 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"crowd": [True, False]}, r"crowd must be \[1\]"),
        ({"difficult": ["no"]}, r"difficult must be \[1\]"),
        ({"area": [[3.0]]}, r"area must be \[1\]"),
        ({"area": [-1.0]}, "area must be square pixels"),
        ({"area": [np.inf]}, "area must be square pixels"),
    ],
)
def test_wrong_columns_are_refused(columns, message) -> None:
    with pytest.raises(ContractError, match=message):
        truth([BOX], [0], **columns)


def test_truth_with_scores_and_predictions_without_are_refused() -> None:
    with pytest.raises(ContractError, match="truth has no scores"):
        Truth(found([BOX], [0], [0.5]))
    with pytest.raises(ContractError, match="have no scores"):
        EvaluationSet(CLASSES, [truth()], [Detections([BOX], [0], None, CLASSES, SIZE_HW)])


def test_counts_sizes_classes_and_ids_must_agree() -> None:
    with pytest.raises(ContractError, match="1 pictures have truth and 0"):
        EvaluationSet(CLASSES, [truth()], [])
    with pytest.raises(ContractError, match="upright"):
        EvaluationSet(CLASSES, [truth()], [found(size_hw=SIZE_HW[::-1])])
    other = ClassMap(("cat", "bird", "dog"))
    with pytest.raises(ClassMapError, match="picture 0's predictions"):
        EvaluationSet(CLASSES, [truth()], [found(classes=other)])
    with pytest.raises(ContractError, match="image id 7 occurs more than once"):
        EvaluationSet(CLASSES, [truth(image_id=7), truth(image_id=7)], [found(), found()])


@pytest.mark.parametrize(
    ("ids", "order"),
    [([30, 4, 11], [1, 2, 0]), (["b", "a", "c"], [1, 0, 2]), ([2, "a", 1], [0, 1, 2]), ([2, None, 1], [0, 1, 2])],
)
def test_order_of_evaluation_follows_ids_of_one_type(ids, order) -> None:
    data = EvaluationSet(CLASSES, [truth(image_id=i) for i in ids], [found() for _ in ids])
    assert data.order.tolist() == order


def test_columns_lead_back_to_pictures_and_rows() -> None:
    data = random_set(5)
    columns = data.columns
    assert len(columns.label) == sum(len(part) for part in data.predictions)
    for picture, index, label, xywh, score in zip(
        columns.picture, columns.index, columns.label, columns.xywh, columns.score, strict=True
    ):
        row = data.predictions[picture]
        x1, y1, x2, y2 = row.boxes_xyxy[index].astype(float)
        assert (label, score) == (row.labels[index], row.scores[index])
        assert xywh.tolist() == [x1, y1, x2 - x1, y2 - y1]


def test_area_is_that_of_the_box_where_it_is_not_given() -> None:
    data = one_picture(truth([BOX, BOX], [0, 0], area=[np.nan, 5.0]), found())
    assert data.columns.truth_area.tolist() == [1200.0, 5.0]
