"""The check that follows every export: the written file is run, and refused if it is not the network it came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data import Dataset
from multibox.errors import ClassMapError
from multibox.evaluation import EvaluationSet
from multibox.export.verify.accuracy import Cost, cost, predictions
from multibox.export.verify.artefact import Artefact, EagerReference, Seen
from multibox.export.verify.compare import Agreement, TensorDifference, agreement, found_again, tensor_differences
from multibox.export.verify.runners import RunFailedError
from multibox.files import atomic_write
from multibox.spec.card import ModelCard

__all__ = ["Report", "Tolerances", "verify"]

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Tolerances:
    """How much an export may differ.

    Args:
        box_px: a coordinate of a detection, in pixels of the picture.
        score: a score.
        relative: a number of the raw outputs or the network's input, as a part of the largest one. Float32 sums in
            another order differ by about 1e-6 of it.
        head_px, head_score: detections of an in-graph head against post-processing of the same raw outputs.
        max_drop: AP50 (and AP) on the data set.
    """

    box_px: float = 0.1
    score: float = 1e-3
    relative: float = 1e-3
    head_px: float = 0.02
    head_score: float = 1e-5
    max_drop: float = 0.01


@dataclass
class Report:
    """What the check of one file found; `failures` is empty when it passed.

    `found_again` is, for int8, the part of the network's confident detections that the file finds too. `sha256` is of
    each file that was checked, so that a report can be told to belong to it.
    """

    file: str
    head: str
    precision: str
    tolerances: Tolerances
    failures: list[str] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)
    tensors: list[TensorDifference] = field(default_factory=list)
    detections: Agreement | None = None
    head_alone: Agreement | None = None
    found_again: float | None = None
    accuracy: Cost | None = None
    notes: list[str] = field(default_factory=list)
    quantisation: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        return not self.failures

    @property
    def judges_tensors(self) -> bool:
        """Whether raw outputs beyond the tolerance are a failure; int8 is judged by AP."""
        return self.precision == "float32"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "passed": self.passed,
            "failures": self.failures,
            "head": self.head,
            "precision": self.precision,
            "pictures": self.pictures,
            "tolerances": asdict(self.tolerances),
            "tensors_judged": self.judges_tensors,
            "tensors": [row.to_dict() for row in self.tensors],
            "detections": None if self.detections is None else self.detections.to_dict(),
            "head_alone": None if self.head_alone is None else self.head_alone.to_dict(),
            "found_again": self.found_again,
            "accuracy": None if self.accuracy is None else self.accuracy.to_dict(),
            "quantisation": self.quantisation,
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1, allow_nan=False))


def verify(
    path: Path,
    detector: Any,
    card: ModelCard,
    pictures: Sequence[Picture],
    *,
    tolerances: Tolerances | None = None,
    dataset: Dataset | None = None,
    reference: EvaluationSet | None = None,
) -> Report:
    """Run an exported file on pictures and compare it, step by step, with the network it came from.

    Compared are the network's input (whoever prepares it), the raw outputs on every level, what the in-graph head
    makes of its own raw outputs, the detections by class name, and, with a data set, AP. A file whose metadata call it
    int8 is judged by AP and by its head alone; its tensors are only reported.

    Args:
        path: the file, read by nothing but its own metadata.
        detector: the network, in evaluation mode.
        card: how it is meant to be fed and read.
        pictures: [h, w, 3] uint8 RGB, at least one.
        tolerances: what may differ.
        dataset: annotated pictures to measure AP on.
        reference: predictions of the network on them, delivered as the file takes them, if they are known already.

    Raises:
        ModelFileError: the file's runtime cannot open it, or it has no metadata.
    """
    limits = tolerances or Tolerances()
    plain, probed = Artefact(path), Artefact(path, probe=True)
    source = EagerReference(detector, card, picture_hw=plain.picture_hw)
    report = Report(path.name, plain.head, plain.metadata.get("precision", "float32"), limits)
    _check_names(report, plain, card)
    faults = plain.faults(card)
    if faults:
        report.failures += faults
        return report
    expected = list(source.see(pictures))
    try:
        inside, given = list(probed.see(pictures)), list(plain.see(pictures))
        _check_tensors(report, expected, inside, card)
        _check_detections(report, expected, inside, given, card)
        report.pictures["compared"] = len(pictures)
        if dataset is not None:
            _check_accuracy(report, source, plain, dataset, reference)
    except RunFailedError as error:
        report.failures.append(f"it cannot be run: {error}")
    return report


def _check_names(report: Report, artefact: Artefact, card: ModelCard) -> None:
    try:
        card.class_map.require_same(artefact.card.class_map, mine="the model", theirs="the file")
    except ClassMapError as error:
        report.failures.append(f"metadata: other classes than the model's ({error})")
    if artefact.card.preprocess != card.preprocess:
        theirs, ours = artefact.card.preprocess.to_dict(), card.preprocess.to_dict()
        changed = [f"{key} {theirs[key]} instead of {ours[key]}" for key in ours if theirs[key] != ours[key]]
        report.failures.append(f"metadata: other preprocessing than the model's: {'; '.join(changed)}")


def _check_tensors(report: Report, expected: Sequence[Seen], inside: Sequence[Seen], card: ModelCard) -> None:
    report.tensors = tensor_differences(zip(expected, inside, strict=True), card, relative=report.tolerances.relative)
    for row in report.tensors:
        if row.holds or not (report.judges_tensors or row.output == "network_input"):
            continue
        where = f"{row.output}, level {row.level}" if row.level else row.output
        report.failures.append(f"{where}: differs by {row.largest:.6g}, allowed is {row.tolerance:.6g}")


def _check_detections(
    report: Report, expected: Sequence[Seen], inside: Sequence[Seen], given: Sequence[Seen], card: ModelCard
) -> None:
    limits = report.tolerances
    ours, theirs = [seen.found for seen in expected], [seen.found for seen in given]
    both = [(seen.from_raw, seen.found) for seen in inside if seen.from_raw is not None]
    if both:
        report.head_alone = agreement(both, card.postprocess, box_px=limits.head_px, score=limits.head_score)
        if not report.head_alone.holds:
            report.failures.append(f"head {report.head}: {_first(report.head_alone)}")
    if not any(len(found) for found in ours + theirs):
        _nothing_found(report, card)
    if not report.judges_tensors:
        report.found_again = found_again(ours, theirs)
        return
    report.detections = agreement(
        zip(ours, theirs, strict=True), card.postprocess, box_px=limits.box_px, score=limits.score
    )
    if not report.detections.holds:
        report.failures.append(f"detections: {_first(report.detections)}")


def _nothing_found(report: Report, card: ModelCard) -> None:
    """Without a detection nothing shows whether the head in the file is right; raw outputs show themselves."""
    text = (
        f"nothing scores above conf={card.postprocess.score_threshold:g} on the pictures of the check, so no detection "
        "could be compared; give data=… with objects that the model finds, or a lower conf"
    )
    if report.head == "raw":
        report.notes.append(text)
    else:
        report.failures.append(f"head {report.head}: {text}")


def _first(found: Agreement) -> str:
    lines = found.unexplained or []
    return f"{len(lines)} of {found.expected + found.given} do not agree; {lines[0]}"


def _check_accuracy(
    report: Report,
    source: EagerReference,
    artefact: Artefact,
    dataset: Dataset,
    reference: EvaluationSet | None,
) -> None:
    before = reference or predictions(source, dataset, name="network")
    try:
        after = predictions(artefact, dataset, name=report.file)
    except ClassMapError as error:
        report.failures.append(f"accuracy: {error}")
        return
    report.accuracy = cost(before, after)
    report.pictures["measured"] = len(before)
    unread = len(dataset) - len(before)
    if unread:
        report.notes.append(
            f"{unread} of {len(dataset)} pictures cannot be read and were left out: multibox check names them"
        )
    for metric, words in (("ap50", "AP50"), ("ap", "AP")):
        drop = report.accuracy.drop(metric)
        if drop > report.tolerances.max_drop:
            worst = report.accuracy.worst()
            report.failures.append(
                f"accuracy: {words} falls by {drop:.4f} ({report.accuracy.before[metric]:.4f} to "
                f"{report.accuracy.after[metric]:.4f}), allowed is {report.tolerances.max_drop:g}"
                + (f"; most in {worst}" if worst else "")
            )
