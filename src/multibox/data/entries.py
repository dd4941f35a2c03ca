"""What annotation files say, in one form for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Entry", "Evidence", "Object"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What makes a file or folder look like a format.

    Args:
        text: what was found, for people.
        sure: whether it is a mark that only this format leaves (a data.yaml, the folders of Pascal VOC), and not just
            files of its kind.
    """

    text: str
    sure: bool = True


@dataclass(slots=True)
class Object:
    """One object of an annotation file.

    Args:
        where: its place in the file.
        name: its class; None where it is given by `class_id` alone, or not at all.
        xyxy: corners (x1, y1, x2, y2) in pixels of the upright picture; None where they cannot be read.
        written: what the file says of the place, for messages.
        class_id: its class as a number; an index where there is a class list.
        flags, area: as in `Builder.add_box`; the area as written.
    """

    where: str
    name: str | None
    xyxy: Sequence[float] | None
    written: object = None
    class_id: int | None = None
    flags: int = 0
    area: object = None


@dataclass(slots=True)
class Entry:
    """What an annotation file says of one picture; the arguments are those of `Reading.add_picture` where not said.

    Args:
        picture: the name of the picture as written.
        met: how many objects and shapes the file lists for it, counted on its list.
        objects: those that could be boxes.
        others: (kind of finding, place, message) of the shapes that are none.
        notes: likewise, of what is to be known about objects that are boxes.
    """

    picture: str
    met: int = 0
    objects: list[Object] = field(default_factory=list)
    others: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    size_hw: tuple[Any, Any] = (None, None)
    image_id: int | str | None = None
    split: str | None = None
