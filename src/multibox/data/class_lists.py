"""Class lists: `classes.json`, a text with a name a line, or the classes in use."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.contents import is_label_row
from multibox.data.findings import DataError, Findings
from multibox.data.names import spelling
from multibox.data.tree import Tree
from multibox.errors import ClassMapError
from multibox.files import atomic_write
from multibox.spec.classes import ClassMap

__all__ = [
    "CLASS_FILE",
    "LabelCoder",
    "class_list_files",
    "class_map_of",
    "find_class_list",
    "read_class_file",
    "read_names",
    "usable_area",
    "whole_number",
    "write_class_file",
]

CLASS_FILE = "classes.json"
CLASS_LISTS = (CLASS_FILE, "classes.txt", "obj.names", "_darknet.labels", "labels.txt", "notes.json")
"""Names of class lists, the surest first. Label Studio keeps the categories in notes.json as well."""

DEEPEST = 2
"""Folders between the root and a class list, at most: labels/train/classes.txt."""


def class_map_of(source: object, names: list[str], ids: list[int] | None = None) -> ClassMap:
    """A class map, or a DataError that names the file it was read from."""
    try:
        return ClassMap(tuple(names), tuple(ids or ()))
    except ClassMapError as error:
        raise DataError(source, str(error), "correct the class list") from None


def write_class_file(path: Path, class_map: ClassMap) -> None:
    """Write names and original ids as JSON: {"names": […], "ids": […]}."""
    atomic_write(path, json.dumps(class_map.to_dict(), ensure_ascii=False, indent=1) + "\n")


def read_class_file(path: Path) -> ClassMap:
    """The class map that `write_class_file` wrote.

    Raises:
        DataError: it is damaged.
    """
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
        return class_map_of(path, list(data["names"]), [int(i) for i in data["ids"]])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(path, f"is no class list ({error!r})", 'it must hold {"names": […], "ids": […]}') from None


def class_list_files(tree: Tree) -> list[str]:
    """The class lists of a tree, the one to be used first: `classes.json`, or else text with a name a line.

    For a data set given as one file, only those beside it.
    """
    if tree.is_file:
        return [name for name in CLASS_LISTS if (tree.root / name).is_file()]
    rank = {name: position for position, name in enumerate(CLASS_LISTS)}
    found = [file for file in tree.files if spelling(file.rpartition("/")[2]) in rank]
    found += [file for file in tree.files if file.lower().endswith(".names") and file not in found]
    ordered = [(file.count("/"), rank.get(spelling(file.rpartition("/")[2]), len(rank)), file) for file in found]
    return [file for depth, _, file in sorted(ordered) if depth <= DEEPEST]


def find_class_list(tree: Tree) -> ClassMap | None:
    """The class list that lies nearest to the root of a tree; None where there is none.

    Raises:
        DataError: it is damaged, or disagrees with one of the same name in another folder.
    """
    read = ((file, _read_list(tree.root / file)) for file in class_list_files(tree))
    lists = [(file, class_map) for file, class_map in read if class_map is not None]
    for file, class_map in lists[1:]:
        alike = file.count("/") == lists[0][0].count("/") and Path(file).name == Path(lists[0][0]).name
        if alike and class_map.names != lists[0][1].names:
            reason = f"lists other classes than {lists[0][0]} ({', '.join(class_map.names[:5])})"
            raise DataError(tree.root / file, reason, "make them agree, or remove one")
    return lists[0][1] if lists else None


def _read_list(path: Path) -> ClassMap | None:
    """One class list; None for a label file that has the name of one, and for JSON without categories."""
    if path.suffix.lower() == ".json":
        if spelling(path.name) == CLASS_FILE:
            return read_class_file(path)
        try:
            categories = json.loads(path.read_bytes().decode("utf-8-sig"))["categories"]
            return class_map_of(path, [c["name"] for c in sorted(categories, key=lambda c: int(c["id"]))])
        except (ValueError, KeyError, TypeError):
            return None
    return read_names(path)


def read_names(path: Path) -> ClassMap | None:
    """The class list in a text with a name a line; None for an empty file and for a label file.

    Raises:
        DataError: it is no text, or an empty line would shift the names.
    """
    try:
        lines = [line.strip() for line in path.read_bytes().decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(path, f"is no UTF-8 text ({error.reason})", "save it as UTF-8") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or all(is_label_row(line) for line in lines if line):
        return None
    return class_map_of(path, lines)


class LabelCoder:
    """Numbers classes as rows name them; what they are is settled once all rows are read.

    With a class map only its classes are known. Without one every class met is: ordered by its id where rows give
    ids, by name where they give names only.
    """

    def __init__(self, class_map: ClassMap | None) -> None:
        self._class_map = class_map
        self._codes: dict[tuple[str | None, int | None], int | None] = {}
        self._met: list[tuple[str | None, int | None]] = []

    @property
    def is_closed(self) -> bool:
        """Whether there is a class list, so that no class can be added."""
        return self._class_map is not None

    def names(self) -> list[str]:
        """The names of the classes that are known or were met."""
        return list(self._class_map.names) if self._class_map else [name for name, _ in self._met if name]

    def code(self, name: str | None, class_id: int | None) -> int | None:
        """A number for the class, or None where it is unknown. With a class map `class_id` is the index in it."""
        key = (name, class_id)
        if key not in self._codes:
            self._codes[key] = self._new_code(name, class_id)
        return self._codes[key]

    def _new_code(self, name: str | None, class_id: int | None) -> int | None:
        if self._class_map is None:
            name = None if name is None else name.strip()
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
            names = [name or "" for name, _ in self._met]
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
