"""What is wrong with annotations: counted by kind, with examples, and never a reason to drop a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from multibox.errors import MultiboxError, one_line

__all__ = ["KINDS", "Account", "DataError", "Finding", "Findings", "Severity"]

Severity = Literal["info", "warning", "error"]

# Kind: (severity, what it means). "error" is for what could not be kept or is certainly wrong.
KINDS: dict[str, tuple[Severity, str]] = {
    "unparsable_box": ("error", "the coordinates are no four finite numbers; the box is lost"),
    "unparsable_annotation": ("error", "an annotation file or a part of it cannot be read; its picture is not used"),
    "wrong_columns": ("error", "a row has another number of columns than the header; its box is lost"),
    "unknown_class": ("error", "the class is not in the class list; the box is lost"),
    "unknown_picture": ("error", "the box belongs to a picture that is not listed; the box is lost"),
    "size_unknown": ("error", "relative boxes cannot be put into pixels without the picture's size; they are lost"),
    "label_without_picture": ("error", "a label file has no picture; its boxes are lost"),
    "label_not_read": ("error", "a label file lies where none is looked for; its boxes are lost"),
    "split_without_annotations": ("error", "no picture of a split has an annotation file; the split is not read"),
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
    "picture_not_read": ("warning", "a picture is of a kind that is not read, such as HEIC"),
    "picture_ambiguous": ("warning", "several files could be the picture that is meant"),
    "picture_outside": ("warning", "a picture lies outside the data folder; it is read, but never copied or linked"),
    "picture_pages": ("warning", "a picture file has further pages or frames; the first is used"),
    "picture_scaled": ("warning", "a picture does not say which value is white; its values were scaled by their range"),
    "same_stem": ("warning", "several pictures have the name of one annotation file"),
    "degenerate_box": ("warning", "a box has no area or its corners are swapped; it was kept as it is"),
    "not_normalised": (
        "warning",
        "coordinates far outside 0…1 where YOLO text counts in picture sides; kept as they are",
    ),
    "split_missing": ("warning", "a split that is named is not there; the others were read"),
    "in_several_splits": ("warning", "a picture is listed in several splits; the first was kept"),
    "duplicate_picture": ("warning", "a picture is listed twice; it was kept once"),
    "several_annotations": ("error", "a picture is annotated several times; one annotation was kept"),
    "repeated_annotation": ("warning", "a picture was annotated by several people; one annotation was read"),
    "sidecar_stale": ("warning", "labels were changed after multibox.jsonl was written; its flags were ignored there"),
    "no_annotation_file": ("info", "a picture has no annotation file and counts as a picture without objects"),
    "annotation_not_read": ("info", "a file that could hold annotations is none of this format and was not read"),
    "unlisted_picture": ("info", "a picture or annotation is in no list, or is named by no annotation"),
    "list_of_class": ("info", "a list says which pictures show a class; it was not read as a split"),
    "no_class_list": ("info", "no class list was given; the classes are those in use, in sorted order"),
    "class_groups": ("info", "a category without boxes is only the group of the others; it was left out"),
    "polygon_to_box": ("info", "a polygon or mask was replaced by the box around it"),
    "no_box": ("info", "a point, line or tag is no box and was left out"),
    "score_ignored": ("info", "a score beside a box was ignored"),
    "detail_not_kept": ("info", "segmentations, key points, poses or parts beside a box are not kept"),
    "path_repaired": ("info", "a path was read in another spelling because the written one does not exist"),
    "ids_compared": ("info", "ids are text in one place and numbers in another; they were compared as numbers"),
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
    each of them can be looked up. Whole numbers are in `counts`, `lost_boxes` and `lost_files`: the annotation files
    that could not be read, whose boxes nobody can count.
    """

    EXAMPLES = 5
    LOST_EXAMPLES = 10_000

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.lost_boxes = self.lost_files = 0
        self._kept: dict[str, list[Finding]] = {}

    def add(
        self,
        kind: str,
        path: object,
        where: str = "",
        message: str = "",
        *,
        lost: int = 0,
        lost_files: int = 0,
        count: int = 1,
    ) -> None:
        """Count a finding `count` times, and the boxes and annotation files that it loses; keep it if there is room."""
        severity, meaning = KINDS[kind]
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.lost_boxes += lost
        self.lost_files += lost_files
        kept = self._kept.setdefault(kind, [])
        if len(kept) < (self.LOST_EXAMPLES if lost or lost_files else self.EXAMPLES):
            kept.append(Finding(kind, severity, str(path), where, message or meaning))

    def merge(self, other: Findings) -> None:
        """Add everything another collection holds."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            kept = self._kept.setdefault(kind, [])
            kept += other._kept[kind][: self.LOST_EXAMPLES - len(kept)]
        self.lost_boxes += other.lost_boxes
        self.lost_files += other.lost_files

    @property
    def has_loss(self) -> bool:
        """Whether a box or an annotation file could not be read; commands then end with the exit status 1."""
        return bool(self.lost_boxes or self.lost_files)

    def loss(self) -> str:
        """What could not be read, in words: "3 boxes and 1 annotation file"; "" where nothing is lost."""
        parts = [
            f"{count} {what}" if count == 1 else f"{count} {plural}"
            for count, what, plural in (
                (self.lost_boxes, "box", "boxes"),
                (self.lost_files, "annotation file", "annotation files"),
            )
            if count
        ]
        return " and ".join(parts)

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


@dataclass
class Account:
    """What a reader met, counted where it opens a file or a list, and what became of it other than being read.

    Args:
        files_met, files_read, files_named: annotation files; those named are in the findings.
        pictures_met, pictures_named: entries for pictures.
        boxes_met, shapes_named: boxes and shapes; the shapes named are no boxes (points, tags, repeated annotations).
    """

    files_met: int = 0
    files_read: int = 0
    files_named: int = 0
    pictures_met: int = 0
    pictures_named: int = 0
    boxes_met: int = 0
    shapes_named: int = 0

    def prove(self, source: object, pictures: int, boxes: int, lost_boxes: int) -> None:
        """Refuse a data set in which something that was met is neither read nor in the findings.

        Args:
            source: what was read.
            pictures, boxes: how many the data set holds.
            lost_boxes: how many boxes are in the findings.

        Raises:
            DataError: the numbers differ.
        """
        for what, met, read, named in (
            ("annotation files", self.files_met, self.files_read, self.files_named),
            ("pictures", self.pictures_met, pictures, self.pictures_named),
            ("boxes", self.boxes_met, boxes, self.shapes_named + lost_boxes),
        ):
            if met != read + named:
                reason = f"{met} {what} were met, but {read} were read and {named} are in the findings"
                raise DataError(source, reason, "this is a fault of multibox; please report it with the data set")
