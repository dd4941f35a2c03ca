"""PASCAL VOC's matching: every detection looks only at the object it overlaps most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.coco_matching import AREA_RANGES
from multibox.evaluation.judged import FALSE, IGNORED, TRUE, Judged, positives, ranked
from multibox.evaluation.pairs import find_pairs
from multibox.evaluation.records import Columns, EvaluationSet

__all__ = ["match_voc"]


def match_voc(data: EvaluationSet, *, iou: float = 0.5, area: str = "all") -> Judged:
    """The verdicts at one overlap threshold (T = 1), as in VOC's development kit.

    Best score first, each detection takes the object of its class that it overlaps most (the first one of equals).
    Too little overlap, or an object that is already taken: false. A difficult object makes it count neither way.
    Two things VOC does not know are treated like difficult: crowd regions, and objects outside a size range of
    `AREA_RANGES`; then a detection that overlaps nothing and is itself outside the range does not count either.
    """
    columns = data.columns
    smallest, largest = AREA_RANGES[area]
    aside = columns.truth_difficult | columns.truth_crowd
    aside |= (columns.truth_area < smallest) | (columns.truth_area > largest)
    rows, rank = ranked(columns, best=None)
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
    return Judged(
        row=rows,
        picture=columns.picture[rows],
        label=columns.label[rows],
        score=columns.score[rows],
        rank=rank,
        outcome=outcome[None],
        truth=np.where(outcome == FALSE, -1, nearest)[None].astype(np.int32),
        positives=positives(data, ~aside),
    )


def _most_overlapped(columns: Columns, iou: float) -> NDArray[np.int64]:
    """[D] the object of the same class that each detection overlaps most and by at least `iou`, or −1."""
    pairs = find_pairs(columns, at_least=iou, same_class=True, crowd_regions=False)
    order = np.lexsort((pairs.truth, -pairs.iou, pairs.detection))
    detection, first = np.unique(pairs.detection[order], return_index=True)
    nearest = np.full(len(columns.label), -1, np.int64)
    nearest[detection] = pairs.truth[order][first]
    return nearest
