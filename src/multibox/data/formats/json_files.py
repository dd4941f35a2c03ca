"""What the formats share whose annotations are JSON files that tools write: how they are recognised and read.

A format is told from the others by what its files hold, not by their names: `holds` looks at the content, or at the
complete values of its start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from multibox.data.class_lists import class_list_files, find_class_list
from multibox.data.contents import HEAD_BYTES, json_head, json_of
from multibox.data.entries import Entry, Evidence
from multibox.data.names import split_in_file_name, split_in_path
from multibox.data.reading import Reading
from multibox.data.records import Dataset
from multibox.data.tree import Tree, folder_of
from multibox.spec.classes import ClassMap

__all__ = ["dict_in", "files_that_hold", "find_evidence", "objects_in", "read_files"]

MOST_LOOKED_AT = 60
REMEDY = "add a classes.txt with the class names"


Entries = Callable[[Any], Iterator[tuple[str, Entry]]]
"""From the content of a file: (place, what is said) of each picture."""


def objects_in(data: Any, key: str | None = None) -> list[dict[str, Any]]:
    """The JSON objects in a list, or in the list under a key; what is no object is an empty one.

    Raises:
        ValueError: there is something else than a list under the key.
    """
    if key is not None:
        data = data.get(key) if isinstance(data, dict) else None
        if data is not None and not isinstance(data, list):
            raise ValueError(f"{key} is no list")
    return [item if isinstance(item, dict) else {} for item in data] if isinstance(data, list) else []


def dict_in(data: Any, key: str) -> dict[str, Any]:
    """The JSON object under a key; an empty one where there is none."""
    found = data.get(key) if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def files_that_hold(tree: Tree, holds: Callable[[Any], bool]) -> list[str]:
    """Of the JSON files of a tree, those of a format, by their first 64 KiB; of very many files, some are looked at."""
    files = tree.annotations(".json")
    step = max(1, len(files) // MOST_LOOKED_AT)
    return [file for file in files[::step] if holds(_head(tree.root / file))]


def _head(path: Path) -> Any:
    with path.open("rb") as stream:
        return json_head(stream.read(HEAD_BYTES))


def find_evidence(tree: Tree, holds: Callable[[Any], bool], *, sure: bool = False) -> Evidence | None:
    """The evidence for a format: its files. `sure` is that of `Evidence`."""
    files = files_that_hold(tree, holds)
    if not files:
        return None
    return Evidence("a .json file" if tree.is_file else f"found {files[0]}", sure=sure or tree.is_file)


def read_files(
    tree: Tree,
    images: Path | None,
    *,
    what: str,
    holds: Callable[[Any], bool],
    entries: Entries,
    class_map: ClassMap | None = None,
    own_file: bool = False,
    aside: Collection[str] = (),
) -> Dataset:
    """Read all files of a format in a tree.

    Args:
        tree: where the files are.
        images: the folder of the pictures, if it was given.
        what: what such a file holds, for messages.
        holds: whether the content of a file is of this format.
        entries: what it says of each picture.
        class_map: the class list; looked for in the tree when left out.
        own_file: each picture has a file of its own with its name. Pictures without one have no objects.
        aside: files that hold no annotations, because they hold the class list.
    """
    reading = Reading(
        tree.place, tree, class_map or find_class_list(tree), pictures=None if images is None else Tree(images)
    )
    lists = {*aside, *(() if tree.is_file else class_list_files(tree))}
    files = [file for file in tree.annotations(".json") if file not in lists]
    reading.meet(files=len(files))

    def parsed(content: bytes) -> list[tuple[str, Entry]] | str:
        data = json_of(content)
        return list(entries(data)) if holds(data) else f"it does not hold {what}; another format may read it"

    for file in files:
        found = reading.read(file, parsed)
        if isinstance(found, str):
            reading.unread(file, found)
        elif found is not None:
            _add(reading, found, file, own_file=own_file)
    if own_file:
        reading.add_unannotated()
    reading.note_unlisted()
    return reading.finish(REMEDY)


def _add(reading: Reading, entries: list[tuple[str, Entry]], file: str, *, own_file: bool) -> None:
    for where, entry in entries:
        if own_file:
            path = reading.partner(file, entry.picture)
            split = split_in_path(path) or split_in_path(file)
        else:
            path = reading.find(entry.picture, (folder_of(file), "images", f"{folder_of(file)}/images", ""))
            split = split_in_file_name(file) or split_in_path(path)
        entry.split = entry.split or split
        reading.add(entry, path, file, where)
