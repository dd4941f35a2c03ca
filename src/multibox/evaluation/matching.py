"""Matching detections with true objects as COCO and PASCAL VOC do; every number is counted from the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, OptionError, did_you_mean
from multibox.evaluation.pairs import Pairs, find_pairs
from multibox.evaluation.records import EvaluationColumns, EvaluationSet

__all__ = [
    "AREA_RANGES",
    "FALSE",
    "IGNORED",
    "IOU_THRESHOLDS",
    "MAX_DETECTIONS",
    "TRUE",
    "MatchedDetections",
    "Protocol",
    "describe",
    "match",
    "match_coco",
    "match_voc",
    "positives",
]

FALSE, TRUE, IGNORED = 0, 1, 2
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Square pixels; both ends belong to a range, so an object of exactly 32² is small and medium. From COCO's tools."""

MAX_DETECTIONS = 100
"""Best detections of a picture that count, for each class."""

_BELOW_ONE = 1 - 1e-10  # a threshold of 1 means "equal but for rounding"

Protocol = Literal["coco", "voc"]


@dataclass(frozen=True, eq=False)
class MatchedDetections:
    """The outcome of every detection of a set under one protocol, for T overlap thresholds.

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


def _ranked(columns: EvaluationColumns, *, best: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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


def _result(
    data: EvaluationSet,
    rows: NDArray[np.int64],
    rank: NDArray[np.int64],
    outcome: NDArray[np.int8],
    truth: NDArray[np.int32],
    *,
    asked: NDArray[np.bool_],
) -> MatchedDetections:
    columns, asked_for = data.columns, positives(data, asked)
    picture, label, score = columns.picture[rows], columns.label[rows], columns.score[rows]
    return MatchedDetections(rows, picture, label, score, rank, outcome, truth, asked_for)


def match(data: EvaluationSet, protocol: Protocol, iou: float) -> MatchedDetections:
    """The outcomes of a protocol at one threshold (T = 1).

    Raises:
        OptionError: no such protocol.
        ContractError: `iou` outside (0, 1].
    """
    if protocol not in get_args(Protocol):
        raise OptionError(f"unknown protocol {protocol!r}; {did_you_mean(str(protocol), get_args(Protocol))}")
    if not 0 < iou <= 1:
        raise ContractError(f"an IoU threshold must be above 0 and at most 1, got {iou}")
    if protocol == "voc":
        return match_voc(data, iou=iou)
    return match_coco(data, thresholds=[iou], areas=["all"])[0]


def describe(protocol: Protocol, iou: float) -> str:
    """The protocol in a few words, for titles and results."""
    return f"{protocol.upper()} matching at IoU {iou:g}"


def match_coco(
    data: EvaluationSet, *, thresholds: Sequence[float] | NDArray[np.float64], areas: Sequence[str]
) -> tuple[MatchedDetections, ...]:
    """One `MatchedDetections` for each name of `AREA_RANGES` in `areas`, with the given overlap thresholds.

    Detections are taken best first. Each goes to the free object it overlaps most, among those that are asked for
    and then among the ignored (crowd, outside the size range); of equal overlaps the later object wins. A crowd
    region is never used up. A detection is ignored if its object is, or if it has none and is itself outside the
    size range. `difficult` means nothing to COCO.
    """
    columns = data.columns
    limits = np.minimum(np.asarray(thresholds, np.float64), _BELOW_ONE)
    ranges = np.array([AREA_RANGES[name] for name in areas]).reshape(-1, 2, 1)
    rows, rank = _ranked(columns, best=MAX_DETECTIONS)
    ignored = columns.truth_crowd | (columns.truth_area < ranges[:, 0]) | (columns.truth_area > ranges[:, 1])
    pairs = find_pairs(columns, at_least=float(limits.min(initial=1)), same_class=True, crowd_regions=True)
    matched = _greedy(columns, pairs, rows, limits=limits, ignored=ignored)

    own_area = columns.xywh[rows, 2] * columns.xywh[rows, 3]
    outside = (own_area < ranges[:, 0]) | (own_area > ranges[:, 1])
    results = []
    for a in range(len(areas)):
        truth = matched[a][:, rows]
        aside = np.where(truth >= 0, _at(ignored[a], truth), outside[a])
        outcome = np.where(aside, IGNORED, np.where(truth >= 0, TRUE, FALSE)).astype(np.int8)
        results.append(_result(data, rows, rank, outcome, truth, asked=~ignored[a]))
    return tuple(results)


def _greedy(
    columns: EvaluationColumns,
    pairs: Pairs,
    rows: NDArray[np.int64],
    *,
    limits: NDArray[np.float64],
    ignored: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """[A, T, D] the object of every detection, or −1. Only detections that overlap something are visited."""
    areas = len(ignored)
    matched = np.full((areas, len(limits), len(columns.label)), -1, np.int32)
    taken = np.zeros((areas, len(limits), len(columns.truth_label)), bool)
    starts = np.searchsorted(pairs.detection, rows, side="left")
    stops = np.searchsorted(pairs.detection, rows, side="right")
    visited = np.flatnonzero(stops > starts)
    for row, start, stop in zip(rows[visited].tolist(), starts[visited].tolist(), stops[visited].tolist(), strict=True):
        truth, iou = pairs.truth[start:stop], pairs.iou[start:stop]
        crowd = columns.truth_crowd[truth]
        free = (~taken[:, :, truth] | crowd) & (iou >= limits[:, None])
        asked = free & ~ignored[:, None, truth]
        overlap = np.where(np.where(asked.any(axis=2, keepdims=True), asked, free), iou, -1.0)
        last_best = overlap.shape[2] - 1 - overlap[:, :, ::-1].argmax(axis=2)
        a, t = np.nonzero(free.any(axis=2))
        chosen = truth[last_best[a, t]]
        matched[a, t, row] = chosen
        taken[a, t, chosen] = True
    return matched


def _at(flags: NDArray[np.bool_], index: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The flags at these places; False where the place is −1, also if there are no flags at all."""
    return np.append(flags, False)[index]


def match_voc(data: EvaluationSet, *, iou: float = 0.5, area: str = "all") -> MatchedDetections:
    """The outcomes at one overlap threshold (T = 1), as in VOC's development kit.

    Best score first, each detection takes the object of its class that it overlaps most (the first one of equals).
    Too little overlap, or an object that is already taken: false. A difficult object makes it count neither way.
    Two things VOC does not know are treated like difficult: crowd regions, and objects outside a size range of
    `AREA_RANGES`; then a detection that overlaps nothing and is itself outside the range does not count either.
    """
    columns = data.columns
    smallest, largest = AREA_RANGES[area]
    aside = columns.truth_difficult | columns.truth_crowd
    aside |= (columns.truth_area < smallest) | (columns.truth_area > largest)
    rows, rank = _ranked(columns, best=None)
    nearest = _most_overlapped(columns, iou)[rows]
    own_area = columns.xywh[rows, 2] * columns.xywh[rows, 3]

    hit = np.flatnonzero(nearest >= 0)
    set_aside = aside[nearest[hit]]
    counted = hit[~set_aside]
    first = counted[np.unique(nearest[counted], return_index=True)[1]]
    outcome = np.full(len(rows), FALSE, np.int8)
    outcome[(nearest < 0) & ((own_area < smallest) | (own_area > largest))] = IGNORED
    outcome[hit[set_aside]] = IGNORED
    outcome[first] = TRUE
    truth = np.where(outcome == FALSE, -1, nearest).astype(np.int32)
    return _result(data, rows, rank, outcome[None], truth[None], asked=~aside)


def _most_overlapped(columns: EvaluationColumns, iou: float) -> NDArray[np.int64]:
    """[D] the object of the same class that each detection overlaps most and by at least `iou`, or −1."""
    pairs = find_pairs(columns, at_least=iou, same_class=True, crowd_regions=False)
    order = np.lexsort((pairs.truth, -pairs.iou, pairs.detection))
    detection, first = np.unique(pairs.detection[order], return_index=True)
    nearest = np.full(len(columns.label), -1, np.int64)
    nearest[detection] = pairs.truth[order][first]
    return nearest
