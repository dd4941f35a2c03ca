"""The categories of COCO files as one class list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.class_lists import class_map_of
from multibox.data.findings import DataError
from multibox.data.reading import Reading
from multibox.spec.classes import ClassMap

__all__ = ["Categories"]


class Categories:
    """Collects the categories of one file after the other; all must list the same.

    Roboflow's exports begin with a category for the project, which has no boxes and is the supercategory of all
    others, sometimes under the name of one of them. It is left out.
    """

    def __init__(self) -> None:
        self._source: Path | None = None
        self._names: dict[int, str] = {}  # by id, in the order of the labels
        self._groups: set[Any] = set()
        self.used: set[int] = set()

    def add(self, file: Path, data: dict[str, Any]) -> dict[Any, int]:
        """The label for each category id of a file.

        Raises:
            DataError: it has no categories, or they are damaged.
            ClassMapError: it lists other categories than the file before.
        """
        categories = data.get("categories")
        if not isinstance(categories, list) or not categories:
            raise DataError(file, 'has no list under "categories"', "add the categories with their ids and names")
        try:
            names = {int(entry["id"]): str(entry["name"]) for entry in categories}
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise DataError(file, f"has a category without id or name ({error!r})", "complete it") from None
        if len(names) != len(categories):
            raise DataError(file, "has two categories with the same id", "give each category its own id")
        order = _class_order(data)
        ids = order if isinstance(order, list) and sorted(order) == sorted(names) else sorted(names)
        ordered = {class_id: names[class_id] for class_id in ids}
        if self._source is None:
            self._source, self._names = file, ordered
        elif list(ordered.items()) != list(self._names.items()):
            mine, theirs = (class_map_of(file, list(n.values()), list(n)) for n in (self._names, ordered))
            mine.require_same(theirs, mine=str(self._source), theirs=str(file))
        self._groups = {entry.get("supercategory") for entry in categories if int(entry["id"]) != ids[0]}
        return {class_id: label for label, class_id in enumerate(ids)}

    def finish(self, reading: Reading) -> tuple[ClassMap, NDArray[np.int64] | None]:
        """The class list, and the label for each label given out (None: the same)."""
        assert self._source is not None
        names, ids = list(self._names.values()), list(self._names)
        if len(names) > 1 and 0 not in self.used and self._groups == {names[0]}:
            reading.findings.add("class_groups", self._source.name, "", f"the category {names[0]!r} has no box")
            relabel = np.arange(-1, len(names) - 1, dtype=np.int64)
            return class_map_of(self._source, names[1:], ids[1:]), np.maximum(relabel, 0)
        return class_map_of(self._source, names, ids), None


def _class_order(data: dict[str, Any]) -> Any:
    info = data.get("info")
    own = info.get("multibox") if isinstance(info, dict) else None
    return own.get("class_order") if isinstance(own, dict) else None
