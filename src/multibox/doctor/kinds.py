"""What the doctor can find, how bad each is unless told otherwise, and what `fix` does about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from multibox.data.findings import KINDS
from multibox.errors import OptionError, did_you_mean

__all__ = ["FINDING_KINDS", "CheckFinding", "FindingKind", "Level", "Policy"]

Level = Literal["error", "warn", "fix", "ignore"]
LEVELS: tuple[Level, ...] = get_args(Level)
_OF_SEVERITY: dict[str, Level] = {"error": "error", "warning": "warn", "info": "ignore"}


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A kind of finding: its level by default, what it means, what a repaired copy does about it (None: nothing)."""

    level: Level
    meaning: str
    repair: str | None = None
    deep: bool = False


_NOT_READ = "it is not in the copy, as it could not be read"
_DROP_PICTURE = "the picture is left out"
_DROP_BOX = "the box is left out"
_FILE_SIZE = "the size of the file is declared"

_OWN: dict[str, FindingKind] = {
    "picture_missing": FindingKind("error", "there is no picture file", _DROP_PICTURE),
    "picture_unreadable": FindingKind("error", "the picture file cannot be read", _DROP_PICTURE),
    "picture_truncated": FindingKind(
        "error", "the header is right, but the pixels cannot be decoded", _DROP_PICTURE, True
    ),
    "size_differs": FindingKind("error", "the declared size is not the picture's; boxes may be misplaced", _FILE_SIZE),
    "size_turned": FindingKind(
        "error",
        "the declared sides are those of the upright picture, swapped; boxes may lie in that frame",
        "boxes in the frame before turning are turned with the picture, and the upright size is declared",
    ),
    "picture_pages": FindingKind("warn", KINDS["picture_pages"][1]),
    "picture_scaled": FindingKind("warn", KINDS["picture_scaled"][1]),
    "exif_rotated": FindingKind(
        "warn", "shown turned by its EXIF orientation; boxes drawn by tools that ignore it are misplaced"
    ),
    "duplicate_across": FindingKind(
        "error",
        "the same file in several splits: what is measured was trained on",
        "it stays in test, else in validation, and leaves train",
    ),
    "duplicate_within": FindingKind("warn", "the same file several times in one split", "the first is kept"),
    "near_duplicate_across": FindingKind(
        "fix",
        "nearly the same picture in several splits: what is measured was trained on",
        "it stays in test, else in validation, and leaves train",
        True,
    ),
    "near_duplicate_within": FindingKind(
        "warn", "nearly the same picture several times in one split", "the first is kept", True
    ),
    "degenerate_box": FindingKind("error", "a box has no area or swapped corners", _DROP_BOX),
    "boxes_far_outside": FindingKind("error", "less than a quarter of a box lies in its picture", _DROP_BOX),
    "boxes_outside": FindingKind("fix", "a box reaches outside its picture", "the box is cut at the picture's edge"),
    "boxes_duplicated": FindingKind("fix", "two boxes of one class cover the same place", "the first is kept"),
    "boxes_two_classes": FindingKind("warn", "two boxes of different classes cover the same place"),
    "boxes_tiny": FindingKind("warn", "a box has a side of less than 3 pixels", _DROP_BOX),
    "boxes_extreme_ratio": FindingKind("warn", "a box is more than 20 times as long as it is wide", _DROP_BOX),
    "empty": FindingKind("warn", "a picture without objects", _DROP_PICTURE),
    "class_unused": FindingKind("warn", "a class of the class list has no box"),
    "class_not_in_train": FindingKind("error", "a class to be found in validation or test has no box in train"),
    "class_not_in_validation": FindingKind("warn", "a class of train has no box in validation: it cannot be measured"),
    "class_names_alike": FindingKind("warn", "class names differ only in case, spaces or punctuation"),
    "imbalance": FindingKind("warn", "some classes have less than a fiftieth of the boxes of the most frequent one"),
}

# Of the readers' findings, those whose level is not that of their severity.
_LEVELS: dict[str, Level] = {
    "not_normalised": "error",
    "in_several_splits": "error",
    "no_annotation_file": "warn",
    "unlisted_picture": "warn",
    "path_repaired": "warn",
}
_REPAIRS: dict[str, str] = {
    "unparsable_annotation": _NOT_READ,
    "wrong_columns": _NOT_READ,
    "unparsable_box": _NOT_READ,
    "unknown_class": _NOT_READ,
    "unknown_picture": _NOT_READ,
    "size_unknown": _NOT_READ,
    "label_without_picture": _NOT_READ,
    "label_not_read": _NOT_READ,
    "split_without_annotations": _NOT_READ,
    "several_annotations": _NOT_READ,
    "not_normalised": "boxes that lie outside the picture by it are left out",
    "in_several_splits": "it is in the first of these splits only",
    "duplicate_picture": "it is in the copy once",
    "conflicting_size": _FILE_SIZE,
    "size_unusable": _FILE_SIZE,
}


def _of_readers() -> dict[str, FindingKind]:
    return {
        kind: FindingKind(_LEVELS.get(kind, _OF_SEVERITY[severity]), meaning, _REPAIRS.get(kind))
        for kind, (severity, meaning) in KINDS.items()
    }


FINDING_KINDS: dict[str, FindingKind] = {**_of_readers(), **_OWN}
"""Every kind of finding, the readers' and the doctor's own."""

OWN_KINDS = frozenset(_OWN)


class Policy:
    """The level of every kind of finding.

    `error` findings make the exit status 1, and a repaired copy repairs them where there is a way. `fix` findings are
    warnings that a repaired copy repairs, `warn` findings warnings that it leaves alone. Those at `ignore` are counted.

    >>> Policy.parse("boxes_outside=error,empty=ignore")["empty"]
    'ignore'
    """

    def __init__(self, levels: Mapping[str, str] | None = None) -> None:
        self._levels: dict[str, Level] = {kind: entry.level for kind, entry in FINDING_KINDS.items()}
        for kind, level in (levels or {}).items():
            self._levels[_known_kind(kind)] = _known_level(kind, level)

    @classmethod
    def parse(cls, text: str) -> Policy:
        """From "kind=level,kind=level".

        Raises:
            OptionError: an unknown kind or level, or `fix` for what cannot be repaired.
        """
        levels: dict[str, str] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            kind, equals, level = part.partition("=")
            if not equals:
                raise OptionError(f"policy: {part!r} has no level; write {part}={'|'.join(LEVELS)}")
            levels[kind.strip()] = level.strip()
        return cls(levels)

    def __getitem__(self, kind: str) -> Level:
        return self._levels[kind]

    def repairs(self, kind: str) -> bool:
        """Whether a repaired copy repairs this kind."""
        return self[kind] in {"error", "fix"} and FINDING_KINDS[kind].repair is not None


def _known_kind(kind: str) -> str:
    if kind not in FINDING_KINDS:
        raise OptionError(f"policy: unknown kind of finding {kind!r}; {did_you_mean(kind, FINDING_KINDS)}")
    return kind


def _known_level(kind: str, text: str) -> Level:
    level = next((level for level in LEVELS if level == text), None)
    if level is None:
        raise OptionError(f"policy: {kind} must be {', '.join(LEVELS)}, got {text!r}")
    if level == "fix" and FINDING_KINDS[kind].repair is None:
        raise OptionError(f"policy: {kind} cannot be repaired without a person; choose error, warn or ignore")
    return level


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """One finding.

    Args:
        kind: a key of FINDING_KINDS.
        path: the picture or annotation file; "" for what concerns the whole data set.
        where: the place in it, such as "box 3".
        message: one sentence of facts.
        pictures: indexes of the pictures concerned, several for duplicates.
        boxes: positions of the boxes concerned within the first of these pictures.
        count: what it counts for; more than 1 where a reader kept only some of its findings.
    """

    kind: str
    path: str
    where: str
    message: str
    pictures: tuple[int, ...] = ()
    boxes: tuple[int, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        return ": ".join(filter(None, (", ".join(filter(None, (self.path, self.where))), self.message)))

    def to_dict(self, level: Level) -> dict[str, Any]:
        """JSON form."""
        return {
            "kind": self.kind,
            "level": level,
            "path": self.path,
            "where": self.where,
            "message": self.message,
            "pictures": list(self.pictures),
            "boxes": list(self.boxes),
            "count": self.count,
        }
