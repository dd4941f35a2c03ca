"""Where the points are lost: six kinds of error, what each costs in AP, and pictures to look at.

The kinds and their repairs follow TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, sections 2.2 and 2.3).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError
from multibox.evaluation.accumulate import INTERPOLATION, class_values
from multibox.evaluation.matching import (
    AREA_RANGES,
    FALSE,
    IGNORED,
    TRUE,
    MatchedDetections,
    Protocol,
    describe,
    match,
    positives,
)
from multibox.evaluation.pairs import Pairs, find_pairs
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.tables import defined, number, text_table

__all__ = ["ErrorExample", "ErrorKind", "ErrorSplit", "ErrorType", "error_split"]

ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]

_MEANING: dict[ErrorKind, str] = {
    "classification": "right place, wrong class",
    "localisation": "right class, box too far off",
    "both": "wrong class and box too far off",
    "duplicate": "object already found by a better detection",
    "background": "nothing there",
    "missed": "object not found, nor nearly found by an error above",
}


@dataclass(frozen=True)
class ErrorExample:
    """One error to look at: indexes of the picture, of the detection and of the object in their `Detections`.

    `detection` is None for a missed object, `truth` where no object is near. `iou` is their overlap.
    """

    picture: int
    detection: int | None
    truth: int | None
    predicted: str | None
    true: str | None
    score: float | None
    iou: float | None


@dataclass(frozen=True)
class ErrorType:
    """One kind of error: how often, and by how much AP would rise if it alone were repaired (None: undefined)."""

    kind: ErrorKind
    meaning: str
    count: int
    ap_gain: float | None
    examples: tuple[ErrorExample, ...]


@dataclass(frozen=True)
class ErrorSplit:
    """All errors of a model. Gains do not add up: repairs help each other.

    `false_positive_gain` is that of removing every false detection, `false_negative_gain` that of asking only for
    what was found.
    """

    ap: float | None
    true_positives: int
    errors: tuple[ErrorType, ...]
    false_positive_gain: float | None
    false_negative_gain: float | None
    protocol: str

    def __getitem__(self, kind: ErrorKind) -> ErrorType:
        """One kind of error."""
        return next(error for error in self.errors if error.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; undefined numbers are null."""
        errors = [{**asdict(error), "examples": [asdict(row) for row in error.examples]} for error in self.errors]
        return {**asdict(self), "errors": errors}

    def table(self, *, digits: int = 4) -> str:
        """A line per kind of error."""
        rows = [[e.kind, str(e.count), number(e.ap_gain, digits), e.meaning] for e in self.errors]
        gains = f"all false positives {number(self.false_positive_gain, digits)}, "
        gains += f"all false negatives {number(self.false_negative_gain, digits)}"
        header = ("error", "count", "AP gain", "meaning")
        table = text_table(header, rows, flush_left=(0, 3))
        return f"{table}\ngain of repairing {gains}; AP {number(self.ap, digits)}\n{self.protocol}"


def error_split(
    data: EvaluationSet,
    *,
    protocol: Protocol = "coco",
    iou: float = 0.5,
    background_iou: float = 0.1,
    examples: int = 10,
) -> ErrorSplit:
    """Sort every false detection and every object not found into one kind of error.

    A false detection is, by the first that fits: localisation (an object of its class overlaps by `background_iou`
    up to `iou`), classification (one of another class by `iou` or more), duplicate (a found one of its class by `iou`
    or more), background (none by `background_iou`), both (the rest). An object not found is missed unless a
    classification or localisation error points to it.

    Repairs: classification gets the right class, localisation the right box, in both cases only the best detection
    for each object not found and the others are removed; both, duplicate and background are removed; missed objects
    are no longer asked for.

    Args:
        data: truth and predictions.
        protocol: whose matching and whose AP.
        iou: the overlap that makes a hit.
        background_iou: the overlap below which a detection has nothing to do with an object.
        examples: how many examples of each kind to keep: the highest scores, for missed the largest objects.

    Raises:
        OptionError, ContractError: an unknown protocol, impossible thresholds, a negative number of examples.
    """
    if not 0 < background_iou < iou or examples < 0:
        raise ContractError(
            f"expected 0 < background_iou < iou and examples of 0 or more, got {background_iou}, {iou} and {examples}"
        )
    return _Split(data, protocol, iou, background_iou).result(examples)


class _Split:
    """What sorting, repairing and picking examples share: [D] arrays by matched detection, [G] by truth column."""

    def __init__(self, data: EvaluationSet, protocol: Protocol, iou: float, background_iou: float) -> None:
        self.data, self.iou = data, iou
        self.matched = match(data, protocol, iou)
        self.measure = INTERPOLATION[protocol]
        self.protocol = f"{describe(protocol, iou)}, background below IoU {background_iou:g}"
        columns, outcome, truth = data.columns, self.matched.outcome[0], self.matched.truth[0]
        self.asked = ~columns.truth_crowd & ~(columns.truth_difficult & (protocol == "voc"))
        self.asked &= columns.truth_area <= AREA_RANGES["all"][1]
        self.found = np.zeros(len(self.asked), bool)
        self.found[truth[outcome == TRUE]] = True

        pairs = find_pairs(columns, at_least=background_iou, same_class=False, crowd_regions=False)
        same = columns.label[pairs.detection] == columns.truth_label[pairs.truth]
        asked = self.asked[pairs.truth]
        self.same_iou, self.same_truth = self._nearest(pairs, asked & same)
        self.other_iou, self.other_truth = self._nearest(pairs, asked & ~same)
        self.taken_iou, self.taken_truth = self._nearest(pairs, asked & same & self.found[pairs.truth])
        self.kinds = self._kinds(outcome == FALSE, background_iou)
        self.target, self.overlap = self._targets()
        near = self.target[(self.kinds == "classification") | (self.kinds == "localisation")]
        self.missed = self.asked & ~self.found
        self.missed[near] = False

    def _nearest(self, pairs: Pairs, among: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """[D] the greatest overlap among some pairs and its object; 0 and −1 where there is none."""
        detection, truth, iou = pairs.detection[among], pairs.truth[among], pairs.iou[among]
        order = np.lexsort((truth, -iou, detection))
        who, first = np.unique(detection[order], return_index=True)
        best_iou, best_truth = np.zeros(len(self.data.columns.label)), np.full(len(self.data.columns.label), -1)
        best_iou[who], best_truth[who] = iou[order][first], truth[order][first]
        return best_iou[self.matched.row], best_truth[self.matched.row]

    def _kinds(self, false: NDArray[np.bool_], background_iou: float) -> NDArray[Any]:
        fits: dict[ErrorKind, NDArray[np.bool_]] = {
            "localisation": (self.same_iou >= background_iou) & (self.same_iou < self.iou),
            "classification": self.other_iou >= self.iou,
            "duplicate": self.taken_iou >= self.iou,
            "background": np.maximum(self.same_iou, self.other_iou) < background_iou,
        }
        return np.where(false, np.select(list(fits.values()), list(fits), "both"), "")

    def _targets(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """[D] the object that each error is about, or −1, and the overlap with it."""
        target, overlap = np.full(len(self.kinds), -1), np.zeros(len(self.kinds))
        for kind, truth, iou in (
            ("localisation", self.same_truth, self.same_iou),
            ("classification", self.other_truth, self.other_iou),
            ("both", self.other_truth, self.other_iou),
            ("duplicate", self.taken_truth, self.taken_iou),
        ):
            chosen = self.kinds == kind
            target[chosen], overlap[chosen] = truth[chosen], iou[chosen]
        return target, overlap

    def result(self, examples: int) -> ErrorSplit:
        base = self._ap(self.matched)
        found_only = positives(self.data, self.found)
        no_false = replace(self.matched, outcome=np.where(self.matched.outcome == FALSE, IGNORED, self.matched.outcome))
        errors = []
        for kind in get_args(ErrorKind):
            count = self.missed.sum() if kind == "missed" else (self.kinds == kind).sum()
            gain = defined(self._ap(self._repaired(kind)) - base)
            errors.append(ErrorType(kind, _MEANING[kind], int(count), gain, tuple(self._examples(kind, examples))))
        return ErrorSplit(
            ap=defined(base),
            true_positives=int((self.matched.outcome == TRUE).sum()),
            errors=tuple(errors),
            false_positive_gain=defined(self._ap(no_false) - base),
            false_negative_gain=defined(self._ap(replace(self.matched, positives=found_only)) - base),
            protocol=self.protocol,
        )

    def _repaired(self, kind: ErrorKind) -> MatchedDetections:
        if kind == "missed":
            return replace(self.matched, positives=self.matched.positives - positives(self.data, self.missed))
        chosen = self.kinds == kind
        outcome, label = self.matched.outcome[0].copy(), self.matched.label.copy()
        outcome[chosen] = IGNORED
        if kind in ("classification", "localisation"):
            useful = np.flatnonzero(chosen)
            useful = useful[~self.found[self.target[useful]]]
            useful = useful[np.argsort(-self.matched.score[useful], kind="stable")]
            useful = useful[np.unique(self.target[useful], return_index=True)[1]]
            outcome[useful] = TRUE
            label[useful] = self.data.columns.truth_label[self.target[useful]]
        order = np.lexsort((-self.matched.score, label))
        in_order = {name: getattr(self.matched, name)[order] for name in ("row", "picture", "score", "rank")}
        truth = self.matched.truth[:, order]
        return replace(self.matched, label=label[order], outcome=outcome[None, order], truth=truth, **in_order)

    def _ap(self, matched: MatchedDetections) -> float:
        """Mean over the classes that have objects before any repair; NaN without.

        A class of which nothing is asked any more is perfect if nothing false is left of it.
        """
        values = {label: row[self.measure][0, 0] for label, row in class_values(matched, [self.measure])}
        for label in np.flatnonzero(self.matched.positives.any(axis=1)).tolist():
            if label not in values:
                values[label] = float(not (matched.outcome[0, matched.of_class(label)] == FALSE).any())
        return float(np.mean(list(values.values()))) if values else float("nan")

    def _examples(self, kind: ErrorKind, limit: int) -> list[ErrorExample]:
        columns, names = self.data.columns, self.data.class_map.names
        if kind == "missed":
            lost = np.flatnonzero(self.missed)
            lost = lost[np.argsort(-columns.truth_area[lost], kind="stable")][:limit]
            where = zip(columns.truth_picture[lost].tolist(), columns.truth_index[lost].tolist(), strict=True)
            labels = columns.truth_label[lost].tolist()
            return [
                ErrorExample(p, None, t, None, names[c], None, None) for (p, t), c in zip(where, labels, strict=True)
            ]
        chosen = np.flatnonzero(self.kinds == kind)
        chosen = chosen[np.argsort(-self.matched.score[chosen], kind="stable")][:limit]
        return [self._example(int(place)) for place in chosen]

    def _example(self, place: int) -> ErrorExample:
        columns, names = self.data.columns, self.data.class_map.names
        row, target = int(self.matched.row[place]), int(self.target[place])
        near = target >= 0
        return ErrorExample(
            picture=int(columns.picture[row]),
            detection=int(columns.index[row]),
            truth=int(columns.truth_index[target]) if near else None,
            predicted=names[int(columns.label[row])],
            true=names[int(columns.truth_label[target])] if near else None,
            score=float(columns.score[row]),
            iou=float(self.overlap[place]) if near else None,
        )
