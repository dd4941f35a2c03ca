"""The lists of Pascal VOC: ImageSets/Main/<split>.txt with a picture a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from multibox.data.contents import decoded
from multibox.data.findings import DataError
from multibox.data.names import spelling, usual_split
from multibox.data.reading import Reading
from multibox.data.tree import folder_of, stem_of, suffix_of
from multibox.pictures.read import PICTURE_SUFFIXES

__all__ = ["Listed", "SplitLists", "key_of", "list_files"]

FOLDERS = ("imagesets/main", "imagesets")
_ORDER = ("train", "val", "test")
_UNIONS = frozenset({"trainval", "all", "default"})
_NUMBERED = re.compile(r"(.*\S)\s+(-1|0|1)")


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a list: the key of the picture (see `key_of`), its name as written, and its split."""

    key: str
    written: str
    split: str | None


def key_of(path: str) -> str:
    """The key by which lists, annotation files and pictures agree: the path without suffix in any spelling."""
    plain = re.sub(r"^(\./)+", "", path.replace("\\", "/"))
    known = suffix_of(plain) in PICTURE_SUFFIXES or suffix_of(plain) == ".xml"
    return spelling(plain.rpartition(".")[0] if known else plain)


def list_files(files: list[str]) -> list[str]:
    """Of the files of a tree, the lists."""
    texts = [file for file in files if suffix_of(file) == ".txt"]
    for folder in FOLDERS:
        found = [file for file in texts if spelling(folder_of(file)).endswith(folder)]
        if found:
            return found
    return []


class SplitLists:
    """The lists of a data set.

    cat_train.txt, whose lines end in −1, 0 or 1, says which pictures of train.txt show a cat and is no split; where
    there is no train.txt, such lists together stand for it. hard_val.txt without numbers is a split of its own.

    Args:
        reading: the data set; the lists are text files in its tree.
        wanted: the one split to read, if not all.

    Raises:
        DataError: a list cannot be read, or there are lists, but none for the wanted split.
    """

    def __init__(self, reading: Reading, wanted: str | None) -> None:
        self._reading, self._wanted = reading, wanted
        self._lines: dict[str, list[tuple[str, bool]]] = {}
        self.of_classes: list[str] = []
        files = [] if reading.tree.is_file else list_files(reading.tree.files)
        self.folder = folder_of(files[0]) if files else ""
        for file in files:
            self._lines[stem_of(file)] = list(self._read(file))
        self._fold_class_lists()
        names = [self._matching(wanted)] if wanted is not None and files else list(self._lines)
        self._names = sorted(names, key=_rank)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def _read(self, file: str) -> Iterator[tuple[str, bool]]:
        """(name, whether a number follows it) of each line."""
        try:
            lines = decoded((self._reading.tree.root / file).read_bytes()).splitlines()
        except (OSError, ValueError) as error:
            raise DataError(self._reading.tree.root / file, f"cannot be read ({error})", "save it as UTF-8") from None
        for line in lines:
            text = line.strip()
            numbered = _NUMBERED.fullmatch(text)
            whole = bool(numbered) and bool(self._reading.pictures.with_stem(key_of(text).rpartition("/")[2]))
            if text:
                yield (numbered[1], True) if numbered and not whole else (text, False)

    def _fold_class_lists(self) -> None:
        roles = [*self._lines, *_ORDER, "trainval"]
        for name, lines in list(self._lines.items()):
            role = next((role for role in roles if spelling(name).endswith(f"_{spelling(role)}")), None)
            if role is None or not lines or not all(has_number for _, has_number in lines) or name == self._wanted:
                continue
            self.of_classes.append(name)
            del self._lines[name]
            if role not in self._lines or f"from {role}" in self._lines:
                self._lines.setdefault(f"from {role}", []).extend(lines)
        for name in [name for name in self._lines if name.startswith("from ")]:
            self._lines[name.removeprefix("from ")] = list(dict.fromkeys(self._lines.pop(name)))

    def _matching(self, wanted: str) -> str:
        exact = wanted if wanted in self._lines else None
        name = exact or next((n for n in self._lines if usual_split(n) == usual_split(wanted)), None)
        if name is None:
            there = f"there are {', '.join(sorted(self._lines, key=_rank))}"
            raise DataError(
                self._reading.tree.root / self.folder,
                f"has no list {wanted}.txt ({there})",
                "choose a split it has, or add the list",
            )
        return name

    def __iter__(self) -> Iterator[Listed]:
        """Every line once: a picture belongs to the first list that names it."""
        seen: set[str] = set()
        for name in self._names:
            split = None if name == "default" else usual_split(name)
            for written, _ in self._lines[name]:
                key = key_of(written)
                if key in seen:
                    if name not in _UNIONS or self._wanted is not None:
                        self._reading.findings.add("in_several_splits", written, f"{name}.txt")
                    continue
                seen.add(key)
                yield Listed(key, written, split if self._wanted is None else self._wanted)


def _rank(name: str) -> tuple[bool, int, str]:
    usual = usual_split(name)
    return name in _UNIONS, _ORDER.index(usual) if usual in _ORDER else len(_ORDER), name
