"""Detections after matching: the one form from which every curve, average and resample is counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.records import Columns, EvaluationSet

__all__ = ["FALSE", "IGNORED", "TRUE", "Judged", "positives", "ranked"]

FALSE, TRUE, IGNORED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Judged:
    """The verdict on every detection of a set under one protocol, for T overlap thresholds.

    Detections come class by class, best score first; equal scores keep the order of evaluation.

    Args:
        row: [D] indexes into the set's columns.
        picture: [D] picture of each detection, 0 … N−1.
        label: [D] class, ascending.
        score: [D] float64.
        rank: [D] place among the detections of its picture and class, from 0.
        outcome: [T, D] int8, FALSE, TRUE or IGNORED.
        truth: [T, D] int32 index into the truth columns of the object it was matched to (also where IGNORED), or −1.
        positives: [C, N] objects that are asked for, by class and picture.
    """

    row: NDArray[np.int64]
    picture: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    rank: NDArray[np.int64]
    outcome: NDArray[np.int8]
    truth: NDArray[np.int32]
    positives: NDArray[np.int64]

    def of_class(self, label: int) -> slice:
        """Where the detections of a class are."""
        return slice(*(int(i) for i in np.searchsorted(self.label, [label, label + 1])))


def positives(data: EvaluationSet, asked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[C, N] how many of the `asked` true objects each picture has of each class."""
    columns, pictures = data.columns, len(data)
    cell = columns.truth_label[asked] * pictures + columns.truth_picture[asked]
    return np.bincount(cell, minlength=len(data.class_map) * pictures).reshape(len(data.class_map), pictures)


def ranked(columns: Columns, *, best: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the detections by class and then descending score, and their ranks within picture and class.

    Only the `best` of each picture and class are kept, if given. Both are [D].
    """
    group = np.lexsort((-columns.score, columns.picture, columns.label))
    picture, label = columns.picture[group], columns.label[group]
    starts = np.flatnonzero(np.r_[True, (np.diff(picture) != 0) | (np.diff(label) != 0)][: len(group)])
    rank = np.empty(len(group), np.int64)
    rank[group] = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    rows = np.lexsort((-columns.score, columns.label))
    if best is not None:
        rows = rows[rank[rows] < best]
    return rows, rank[rows]
