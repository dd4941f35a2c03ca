"""What is wrong with annotations: counted by kind, with examples, and never a reason to drop a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from multibox.errors import MultiboxError
from multibox.pictures.read import one_line

__all__ = ["KINDS", "DataError", "Finding", "Findings", "Severity"]

Severity = Literal["info", "warning", "error"]

# Kind: (severity, what it means). "error" is for what could not be kept or is certainly wrong.
KINDS: dict[str, tuple[Severity, str]] = {
    "unparsable_box": ("error", "the coordinates are no four finite numbers; the box is lost"),
    "unparsable_annotation": ("error", "an annotation cannot be read; what it says is lost"),
    "unknown_class": ("error", "the class is not in the class list; the box is lost"),
    "unknown_picture": ("error", "the box belongs to a picture that is not listed; the box is lost"),
    "size_unknown": ("error", "relative boxes cannot be put into pixels without the picture's size; they are lost"),
    "label_without_picture": ("error", "a label file has no picture; its boxes are lost"),
    "size_turned": (
        "error",
        "the declared sides are those of the upright picture, swapped; boxes may lie in that frame",
    ),
    "size_differs": ("warning", "the declared size is not the picture's"),
    "size_unusable": ("warning", "the declared size is no pair of positive numbers and was ignored"),
    "area_unusable": ("warning", "the area given for a box is no finite number of at least 0 and was ignored"),
    "conflicting_size": ("warning", "rows of one picture declare different sizes; the first was kept"),
    "picture_missing": ("warning", "there is no picture file"),
    "picture_unreadable": ("warning", "the picture file cannot be read"),
    "degenerate_box": ("warning", "a box has no area or its corners are swapped; it was kept as it is"),
    "not_normalised": (
        "warning",
        "coordinates far outside 0…1 where YOLO text counts in picture sides; kept as they are",
    ),
    "in_several_splits": ("warning", "a picture is listed in several splits; the first was kept"),
    "duplicate_picture": ("warning", "a picture is listed twice; it was kept once"),
    "sidecar_stale": ("warning", "labels were changed after multibox.jsonl was written; its flags were ignored there"),
    "no_annotation_file": ("info", "a picture has no annotation file and counts as a picture without objects"),
    "unlisted_picture": ("info", "a picture or annotation is in no list of ImageSets"),
    "no_class_list": ("info", "no class list was given; the classes are those in use, in sorted order"),
    "polygon_to_box": ("info", "a polygon was replaced by the box around it"),
    "score_ignored": ("info", "a score beside a box was ignored"),
    "detail_not_kept": ("info", "segmentations, key points, poses or parts beside a box are not kept"),
    "path_repaired": ("info", "a path was read in another spelling because the written one does not exist"),
}


class DataError(MultiboxError):
    """A data set is structurally broken or not what it was said to be. `source` names the file or folder."""

    def __init__(self, source: object, reason: str, remedy: str) -> None:
        super().__init__(f"{one_line(source)}: {one_line(reason)}; {one_line(remedy)}")
        self.source, self.reason, self.remedy = str(source), reason, remedy


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about: a kind of `KINDS`, the file, the place in it (line, object, picture), and a sentence."""

    kind: str
    severity: Severity
    path: str
    where: str
    message: str

    def __str__(self) -> str:
        place = f"{self.path}, {self.where}" if self.where else self.path
        return one_line(f"{place}: {self.message}")

    def in_short(self) -> str:
        """Without the message where it says no more than the kind does."""
        return str(self) if self.message != KINDS[self.kind][1] else str(self).removesuffix(f": {self.message}")


class Findings:
    """A bounded collection: a count for each kind, and the first findings of it.

    Iteration gives the findings kept: `EXAMPLES` of each kind, but `LOST_EXAMPLES` where boxes were lost, so that
    each of them can be looked up. Whole numbers are in `counts` and `lost_boxes`.
    """

    EXAMPLES = 5
    LOST_EXAMPLES = 10_000

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.lost_boxes = 0
        self._kept: dict[str, list[Finding]] = {}

    def add(
        self, kind: str, path: object, where: str = "", message: str = "", *, lost: int = 0, count: int = 1
    ) -> None:
        """Count a finding `count` times, `lost` boxes of it being lost; an example is kept if there is room."""
        severity, meaning = KINDS[kind]
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.lost_boxes += lost
        kept = self._kept.setdefault(kind, [])
        if len(kept) < (self.LOST_EXAMPLES if lost else self.EXAMPLES):
            kept.append(Finding(kind, severity, str(path), where, message or meaning))

    def merge(self, other: Findings) -> None:
        """Add everything another collection holds."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            kept = self._kept.setdefault(kind, [])
            kept += other._kept[kind][: self.LOST_EXAMPLES - len(kept)]
        self.lost_boxes += other.lost_boxes

    def of_kind(self, kind: str) -> list[Finding]:
        """The findings of one kind that were kept."""
        return list(self._kept.get(kind, ()))

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[Finding]:
        for kept in self._kept.values():
            yield from kept

    def summary(self) -> list[str]:
        """Lines for people, worst first: a line for each kind, a line for the first example, one for every lost box."""
        lines = []
        for severity in ("error", "warning", "info"):
            for kind, count in self.counts.items():
                if KINDS[kind][0] != severity:
                    continue
                lines.append(f"{severity}: {count} × {kind}: {KINDS[kind][1]}")
                shown = self._kept[kind] if severity == "error" else self._kept[kind][:1]
                lines += [f"  {finding.in_short()}" for finding in shown]
        return lines
