"""The examination of a data set, and its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from multibox.data.records import Dataset
from multibox.doctor.anchors import AnchorProposal, propose_anchors
from multibox.doctor.box_checks import check_boxes, check_classes, class_counts
from multibox.doctor.kinds import FINDING_KINDS, OWN_KINDS, CheckFinding, Level, Policy
from multibox.doctor.picture_checks import SIDES_SWAP, check_duplicates, check_files, in_stored_frame
from multibox.doctor.scan import Scan, scan_pictures
from multibox.errors import OptionError
from multibox.spec.card import ModelCard

__all__ = ["Examination", "examine"]

Status = Literal["clean", "warnings", "errors"]
DEEP_ONLY = ("damaged or cut-off pixels", "near-duplicates")
CHECKED = (
    "annotations",
    "picture headers, sizes and EXIF orientation",
    "exact duplicates",
    "boxes",
    "classes and splits",
)
EXAMPLES = 5


@dataclass
class Examination:
    """What the doctor found.

    Args:
        dataset: what was examined.
        policy: the level of each kind.
        findings: every finding, also those at level `ignore`.
        scan: what the picture files say.
        deep: whether every picture was decoded.
        anchors: how objects fit the default boxes of a model and better ones, where a model was given.
        model: its name.
    """

    dataset: Dataset
    policy: Policy
    findings: list[CheckFinding]
    scan: Scan
    deep: bool
    anchors: AnchorProposal | None = None
    model: str = ""
    counts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        counts: Counter[str] = Counter()
        for finding in self.findings:
            counts[finding.kind] += finding.count
        self.counts = {kind: counts[kind] for kind in FINDING_KINDS if counts[kind]}  # in a fixed order

    def level(self, level: Level) -> dict[str, int]:
        """Counts of the kinds found that are at a level."""
        return {kind: count for kind, count in self.counts.items() if self.policy[kind] == level}

    @property
    def status(self) -> Status:
        """Of the worst finding; those ignored do not count."""
        if self.level("error"):
            return "errors"
        return "warnings" if self.level("warn") or self.level("fix") else "clean"

    def of_kind(self, kind: str) -> list[CheckFinding]:
        """All findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def lines(self, *, examples: int = EXAMPLES) -> Iterator[str]:
        """For people: worst first, a line for each kind, its first findings, how many more; 0 examples: kinds alone."""
        for level in ("error", "fix", "warn"):
            for kind, count in self.level(level).items():
                entry = FINDING_KINDS[kind]
                can = "" if entry.repair is None or level == "warn" else f" (fix=FOLDER: {entry.repair})"
                yield f"{level}: {count} × {kind}: {entry.meaning}{can}"
                found = self.of_kind(kind)
                yield from (f"  {finding}" for finding in found[:examples])
                if examples and count > min(len(found), examples):
                    yield f"  … and {count - min(len(found), examples)} more"
        for kind, count in self.level("ignore").items():
            yield f"ignored: {count} × {kind}: {FINDING_KINDS[kind].meaning}"
        yield "checked: " + ", ".join(CHECKED + (DEEP_ONLY if self.deep else ()))
        if not self.deep:
            yield "not checked: " + ", ".join(DEEP_ONLY) + " (they need every picture decoded: deep=true)"

    def in_short(self) -> str:
        """How many errors and warnings, on one line."""
        parts = [
            f"{sum(found.values())} {name}"
            for name, found in (
                ("errors", self.level("error")),
                ("warnings", {**self.level("warn"), **self.level("fix")}),
            )
            if found
        ]
        return "clean" if not parts else ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        dataset = self.dataset
        names = dataset.class_map.names
        splits = {role or "none": counts for role, counts in class_counts(dataset).items()}
        return {
            "data": dataset.origin,
            "status": self.status,
            "deep": self.deep,
            "checked": [*CHECKED, *(DEEP_ONLY if self.deep else ())],
            "not_checked": [] if self.deep else list(DEEP_ONLY),
            "pictures": len(dataset),
            "boxes": dataset.num_boxes,
            "splits": list(dataset.splits),
            "classes": {
                name: {split: int(counts[label]) for split, counts in splits.items()}
                for label, name in enumerate(names)
            },
            "counts": {
                kind: {
                    "level": self.policy[kind],
                    "count": count,
                    "listed": len(self.of_kind(kind)),
                    "meaning": FINDING_KINDS[kind].meaning,
                    "repair": FINDING_KINDS[kind].repair,
                }
                for kind, count in self.counts.items()
            },
            "findings": [finding.to_dict(self.policy[finding.kind]) for finding in self.findings],
            "anchors": None if self.anchors is None else {"model": self.model, **self.anchors.to_dict()},
        }


def examine(
    dataset: Dataset,
    *,
    policy: Policy | None = None,
    model: ModelCard | None = None,
    deep: bool = False,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Examination:
    """Examine a data set and its pictures. Nothing is changed.

    Args:
        dataset: as read; read_dataset(…, check_pictures=False) saves reading every header twice.
        policy: the level of each kind of finding; the defaults of FINDING_KINDS when left out.
        model: also tell how the objects fit this model's default boxes.
        deep: decode every picture, which finds damaged pixels and near-duplicates.
        workers: threads that read pictures.
        progress: called with the number of pictures done since the last call.

    Raises:
        OptionError: fewer than one worker.
    """
    if workers < 1:
        raise OptionError(f"workers must be at least 1, got {workers}")
    scan = scan_pictures(dataset, deep=deep, workers=workers, progress=progress)
    sizes_hw = known_sizes_hw(dataset, scan)
    findings = [
        *_of_reader(dataset),
        *check_files(dataset, scan),
        *check_duplicates(dataset, scan),
        *check_boxes(dataset, sizes_hw),
        *check_classes(dataset),
    ]
    if model is None:
        return Examination(dataset, policy or Policy(), findings, scan, deep)
    maps, size_hw = model.feature_sizes_hw, model.preprocess.size_hw
    anchors = propose_anchors(dataset, sizes_hw, model.anchors, feature_sizes_hw=maps, size_hw=size_hw)
    return Examination(dataset, policy or Policy(), findings, scan, deep, anchors, model.name)


def known_sizes_hw(dataset: Dataset, scan: Scan) -> NDArray[np.int32]:
    """[P, 2] (height, width) of the frame that boxes lie in: the files' sizes, else the declared ones, else −1."""
    sizes_hw = scan.sizes_hw.copy()
    unknown = sizes_hw[:, 0] < 0
    for picture in np.flatnonzero(scan.orientations >= SIDES_SWAP).tolist():
        unknown[picture] |= in_stored_frame(dataset, scan, picture)
    declared = dataset.columns.sizes_hw
    sizes_hw[unknown] = np.where(declared[unknown].min(axis=1, initial=2**30)[:, None] > 0, declared[unknown], -1)
    return sizes_hw


def _of_reader(dataset: Dataset) -> Iterator[CheckFinding]:
    """What the reader found, without what the doctor finds itself, and in full."""
    findings = dataset.findings
    for kind, count in findings.counts.items():
        kept = findings.of_kind(kind)
        if kind in OWN_KINDS or not kept:
            continue
        for finding in kept[:-1]:
            yield CheckFinding(kind, finding.path, finding.where, finding.message)
        last = kept[-1]
        yield CheckFinding(kind, last.path, last.where, last.message, count=count - len(kept) + 1)
