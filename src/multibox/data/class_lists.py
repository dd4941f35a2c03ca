"""Class lists of formats that have none, or only names: `classes.json`, `classes.txt`, or the classes in use."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.findings import DataError, Findings
from multibox.errors import ClassMapError
from multibox.spec.classes import ClassMap

__all__ = [
    "CLASS_FILE",
    "LabelCoder",
    "class_map_of",
    "read_class_file",
    "usable_area",
    "whole_number",
    "write_class_file",
]

CLASS_FILE = "classes.json"
TEXT_FILES = ("classes.txt", "labels.txt")


def class_map_of(source: object, names: list[str], ids: list[int] | None = None) -> ClassMap:
    """A class map, or a DataError that names the file it was read from."""
    try:
        return ClassMap(tuple(names), tuple(ids or ()))
    except ClassMapError as error:
        raise DataError(source, str(error), "correct the class list") from None


def write_class_file(path: Path, class_map: ClassMap) -> None:
    """Write names and original ids as JSON: {"names": […], "ids": […]}."""
    path.write_text(json.dumps(class_map.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_class_file(path: Path, *, text: bool = True) -> ClassMap | None:
    """The class map in `path` (JSON), else in a classes.txt or labels.txt beside it (a name a line), else None."""
    if path.is_file():
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
            return class_map_of(path, list(data["names"]), [int(i) for i in data["ids"]])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(path, f"is no class list ({error!r})", 'it must hold {"names": […], "ids": […]}') from None
    for name in TEXT_FILES if text else ():
        if (path.parent / name).is_file():
            lines = (path.parent / name).read_text(encoding="utf-8-sig").splitlines()
            return class_map_of(path.parent / name, [line.strip() for line in lines if line.strip()])
    return None


class LabelCoder:
    """Numbers classes as rows name them; what they are is settled once all rows are read.

    With a class map only its classes are known. Without one every class met is: ordered by its id where rows give
    ids, by name where they give names only.
    """

    def __init__(self, class_map: ClassMap | None) -> None:
        self._class_map = class_map
        self._codes: dict[tuple[str | None, int | None], int | None] = {}
        self._met: list[tuple[str | None, int | None]] = []

    def code(self, name: str | None, class_id: int | None) -> int | None:
        """A number for the class, or None where it is unknown. With a class map `class_id` is the index in it."""
        key = (name, class_id)
        if key not in self._codes:
            self._codes[key] = self._new_code(name, class_id)
        return self._codes[key]

    def _new_code(self, name: str | None, class_id: int | None) -> int | None:
        if self._class_map is None:
            if not name and class_id is None:
                return None
            self._met.append((name, class_id))
            return len(self._met) - 1
        names = self._class_map.names
        if name is None:
            return class_id if class_id is not None and 0 <= class_id < len(names) else None
        index = next((names.index(n) for n in (name, name.strip()) if n in names), None)
        return index if class_id is None or class_id == index else None

    def finish(self, source: object, findings: Findings, remedy: str) -> tuple[ClassMap, NDArray[np.int64] | None]:
        """The class map, and the label for each code given out (None: codes are labels)."""
        if self._class_map is not None:
            return self._class_map, None
        if not self._met:
            raise DataError(source, "names no class anywhere", remedy)
        findings.add("no_class_list", source)
        if all(class_id is None for _, class_id in self._met):
            names = [(name or "").strip() for name, _ in self._met]
            ordered = sorted(set(names))
            return class_map_of(source, ordered), np.array([ordered.index(name) for name in names], np.int64)
        return self._by_id(source)

    def _by_id(self, source: object) -> tuple[ClassMap, NDArray[np.int64]]:
        names_by_id: dict[int, str] = {}
        for name, class_id in self._met:
            if class_id is None:
                raise DataError(
                    source, f"class {name!r} has an id in some rows only", "give every row its class_id, or none"
                )
            if name and names_by_id.setdefault(class_id, name) != name:
                raise DataError(
                    source, f"class id {class_id} is called {names_by_id[class_id]!r} and {name!r}", "make them agree"
                )
        for _, class_id in self._met:
            names_by_id.setdefault(int(class_id or 0), str(class_id))
        ordered = sorted(names_by_id)
        class_map = class_map_of(source, [names_by_id[i] for i in ordered], ordered)
        return class_map, np.array([class_map.index_of_id(int(i or 0)) for _, i in self._met], np.int64)


def whole_number(value: Any) -> int | None:
    """An int from 3, 3.0, "3" or "3.0"; None from anything else."""
    try:
        number = float(value)
        return int(value) if isinstance(value, int) else int(number) if number.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None


def usable_area(value: Any, findings: Findings, path: object, where: str) -> float | None:
    """The area given for a box; None where there is none, and with a finding where it cannot be one."""
    if value is None or value == "":
        return None
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        area = math.nan
    if 0 <= area < math.inf:
        return area
    findings.add("area_unusable", path, where, f"area is {str(value)[:40]}, no finite number of at least 0; ignored")
    return None
