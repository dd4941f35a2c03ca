"""Class lists: contiguous index, original id and name, kept together wherever a model or a data set goes."""

from __future__ import annotations

import operator
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from multibox.errors import ClassMapError, OptionError, did_you_mean

__all__ = ["COCO_CLASSES", "VOC_CLASSES", "ClassMap", "select_classes"]

# Line breaks and other control characters, and halves of UTF-16 pairs: names that no text file could hold.
_UNWRITABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True)
class ClassMap:
    """An ordered list of classes.

    The index of a class is its position, 0 … C−1, and is what labels hold everywhere in multibox. Background is
    never a class here. `ids` are the identifiers of the data set the classes come from (COCO's run from 1 to 90
    with gaps); they are used only when reading or writing that data set's own formats.

    Args:
        names: C distinct, non-empty names on one line each.
        ids: C distinct integers; 0 … C−1 when left out.

    Raises:
        ClassMapError: empty, unwritable or repeated names, repeated ids, or a count that does not match.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.names, str | Mapping):
            raise ClassMapError(f"class names must be a list of strings, got {self.names!r}")
        names = tuple(self.names)
        ids = _integers(self.ids) or tuple(range(len(names)))
        if not names:
            raise ClassMapError("a class map needs at least one class; background is never one of them")
        for index, name in enumerate(names):
            if not isinstance(name, str) or not name.strip():
                raise ClassMapError(f"class {index} has no name: {name!r}; every class needs a non-empty string")
            if any(unicodedata.category(char) in _UNWRITABLE for char in name):
                raise ClassMapError(f"class {index}: a line break or control character in the name {name!r}; remove it")
        if len(ids) != len(names):
            raise ClassMapError(f"{len(names)} class names but {len(ids)} ids; give one id for each name")
        for what, values in (("name", names), ("id", ids)):
            repeated = [str(value) for value, count in Counter[Any](values).items() if count > 1]
            if repeated:
                raise ClassMapError(f"class {what} used more than once: {', '.join(repeated)}")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "ids", ids)

    @classmethod
    def from_ids(cls, names_by_id: Mapping[int, str]) -> ClassMap:
        """A class map in ascending order of the original ids."""
        ordered = sorted(names_by_id.items())
        return cls(tuple(name for _, name in ordered), tuple(class_id for class_id, _ in ordered))

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _index_of_name(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _index_of_id(self) -> dict[int, int]:
        return {class_id: index for index, class_id in enumerate(self.ids)}

    def index(self, name: str) -> int:
        """Index of a class by its exact name."""
        try:
            return self._index_of_name[name]
        except KeyError:
            raise ClassMapError(f"unknown class {name!r}; {did_you_mean(name, self.names)}") from None

    def index_of_id(self, class_id: int) -> int:
        """Index of a class by its original id."""
        try:
            return self._index_of_id[class_id]
        except KeyError:
            raise ClassMapError(f"unknown class id {class_id}; known ids: {_short(self.ids)}") from None

    def select(self, wanted: Iterable[str | int]) -> tuple[int, ...]:
        """Indexes for a mixed list of names and indexes, as a user types them (``["cat", 16]``), each once.

        A string of digits is an index unless a class has that very name. One string alone is one class.
        """
        items = [wanted] if isinstance(wanted, str) else wanted
        return tuple(dict.fromkeys(self._resolve(item) for item in items))

    def _resolve(self, item: str | int) -> int:
        if isinstance(item, str):
            text = item if item in self._index_of_name else item.strip()
            if text in self._index_of_name or not text.removeprefix("-").isdecimal():
                return self.index(text)
            index = int(text) if len(text) < 20 else len(self)  # int() refuses very long numbers
        else:
            try:
                index = operator.index(item)
            except TypeError:
                raise ClassMapError(f"a class is chosen by its name or index, not by {item!r}") from None
        if not 0 <= index < len(self):
            raise ClassMapError(f"class index {item} is outside 0…{len(self) - 1}; use an index in it, or a name")
        return index

    def require_same(self, other: ClassMap, *, mine: str, theirs: str) -> None:
        """Raise with the difference unless both maps hold the same classes in the same order with the same ids."""
        if self == other:
            return
        lines = [f"the classes of {mine} ({len(self)}) and of {theirs} ({len(other)}) differ:"]
        for index in range(max(len(self), len(other))):
            left, right = self._entry(index), other._entry(index)
            if left != right:
                lines.append(f"  {index}: {left} | {right}")
        raise ClassMapError("\n".join(lines))

    def _entry(self, index: int) -> str:
        return f"{self.names[index]} (id {self.ids[index]})" if index < len(self) else "nothing"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"names": list(self.names), "ids": list(self.ids)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassMap:
        """Inverse of `to_dict`."""
        return cls(data["names"], tuple(data["ids"]))


def _integers(values: Iterable[int]) -> tuple[int, ...]:
    values = tuple(values)
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise ClassMapError(f"class ids must be integers, got {values}") from None


def _short(values: Sequence[int], limit: int = 12) -> str:
    shown = ", ".join(str(v) for v in values[:limit])
    return shown if len(values) <= limit else f"{shown}, … ({len(values)} in all)"


_VOC_NAMES = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa
train tvmonitor
"""

# The position is the id, counted from 1; "-" marks the ten ids that COCO never used.
_COCO_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -, backpack, umbrella, -, -,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -, dining table, -, -, toilet, -, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, -, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""

VOC_CLASSES = ClassMap(tuple(_VOC_NAMES.split()))
"""The twenty classes of PASCAL VOC in their customary (alphabetical) order."""

COCO_CLASSES = ClassMap.from_ids(
    {i: name.strip() for i, name in enumerate(_COCO_NAMES.split(","), start=1) if name.strip() != "-"}
)
"""The eighty classes of COCO with their ids 1 … 90."""


def select_classes(class_map: ClassMap, text: str) -> tuple[int, ...]:
    """Indexes for "cat,dog", "15,16" or "[cat, 16]"; a name with a comma in it can be given alone."""
    if text in class_map.names:
        return class_map.select(text)
    wanted = [part.strip().strip("'\"") for part in text.strip("[]() ").split(",")]
    if not any(wanted):
        raise OptionError(f"classes={text}: names no class; write classes=cat,dog, or leave it out for all classes")
    return class_map.select(part for part in wanted if part)
