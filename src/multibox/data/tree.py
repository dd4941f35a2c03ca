"""The files below a folder, found by name in any spelling."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from multibox.data.names import is_web_address, parts_of, spelling, split_in_path
from multibox.pictures.read import PICTURE_SUFFIXES

__all__ = ["Found", "Tree", "folder_of", "picture_stem", "stem_of", "suffix_of"]

_ANNOTATIONS = frozenset({".txt", ".xml", ".json"})


def folder_of(path: str) -> str:
    """The folder of a relative path, "" for the root."""
    return path.rpartition("/")[0]


def stem_of(path: str) -> str:
    """The file name without its last suffix."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def suffix_of(path: str) -> str:
    """The last suffix in lower case, with its dot; "" where there is none."""
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""


def picture_stem(file: str) -> str:
    """The stem of the picture that an annotation file is named for: a of a.xml, a.jpg.json and a.txt.bak."""
    stem = stem_of(file)
    while suffix_of(stem) in PICTURE_SUFFIXES or suffix_of(stem) in _ANNOTATIONS:
        stem = stem_of(stem)
    return stem


@dataclass(frozen=True, slots=True)
class Found:
    """A picture file that was asked for.

    Args:
        path: where it is, relative to the root of the tree, or absolute; None where it is not certain which is meant.
        exact: whether this is the path that was written.
        others: what else it could be.
    """

    path: str | None
    exact: bool = False
    others: tuple[str, ...] = ()


class Tree:
    """The files below a folder as relative paths with slashes; hidden files and folders are left out.

    A data set given as one file has a tree as well: that of `root`, with this file as its only annotation file. Such a
    tree is walked only when a file is not found where it should be.

    Args:
        place: the folder or file that was given.
        root: the folder to look through; that of the file when left out.
    """

    def __init__(self, place: Path, root: Path | None = None) -> None:
        self.place, self.is_file = place, place.is_file()
        self.root = root or (place.parent if self.is_file else place)

    @cached_property
    def files(self) -> list[str]:
        """All files, in a fixed order."""
        return list(_walk(self.root))

    def annotations(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes, in any letter case; of a tree given as one file, that file."""
        if self.is_file:
            return [Path(os.path.relpath(self.place, self.root)).as_posix()]
        return [file for suffix in suffixes for file in self._by_suffix.get(suffix, ())]

    @cached_property
    def pictures(self) -> list[str]:
        """The picture files."""
        return [file for file in self.files if suffix_of(file) in PICTURE_SUFFIXES]

    def pictures_in(self, folders: Iterable[str]) -> list[str]:
        """The pictures that lie in these folders themselves, without walking through the tree."""
        found = []
        for folder in folders:
            place = self.root / folder
            names = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
            paths = (f"{folder}/{name}" if folder else name for name in names if not name.startswith("."))
            found += [path for path in paths if suffix_of(path) in PICTURE_SUFFIXES]
        return found

    @cached_property
    def _by_suffix(self) -> dict[str, list[str]]:
        return _grouped(self.files, suffix_of)

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(self.files)

    @cached_property
    def _spelt(self) -> dict[str, list[str]]:
        return _grouped(self.files, spelling)

    @cached_property
    def _named(self) -> dict[str, list[str]]:
        return _grouped(self.pictures, lambda file: spelling(file.rpartition("/")[2]))

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        return _grouped(self.pictures, lambda file: spelling(stem_of(file)))

    @cached_property
    def _folder_names(self) -> frozenset[str]:
        return frozenset(spelling(part) for folder in self._folders for part in folder.split("/") if part)

    def has(self, path: str) -> bool:
        """Whether there is a file with exactly this relative path."""
        if self.is_file and "files" not in self.__dict__:
            return (self.root / path).is_file()
        return path in self._exact

    def spelt(self, path: str) -> str | None:
        """The file with this relative path in any spelling; None where there is none, or more than one."""
        if self.has(path):
            return path
        found = self._spelt.get(spelling(path), ())
        return found[0] if len(found) == 1 else None

    def with_stem(self, stem: str) -> list[str]:
        """The pictures, in any folder, whose names without suffix are this one in any spelling."""
        return self._stems.get(spelling(stem), [])

    @cached_property
    def _annotation_stems(self) -> dict[str, list[str]]:
        files = [file for file in self.files if suffix_of(file) not in PICTURE_SUFFIXES]
        return _grouped(files, lambda file: spelling(picture_stem(file)))

    def named_like(self, picture: str) -> list[str]:
        """The files that are no pictures, in any folder, and are named for a picture of this name."""
        return self._annotation_stems.get(spelling(stem_of(picture)), [])

    def relative(self, path: str) -> str:
        """An absolute path relative to the root, if it lies below it; every other path as it is."""
        start = os.path.join(os.path.abspath(self.root), "")  # noqa: PTH100, PTH118 (resolve() would follow links)
        return path.removeprefix(start).replace(os.sep, "/") if path.startswith(start) else path

    def located(self, written: str) -> str | None:
        """The folder or file that a configuration calls `written`, relative to the root; None where there is none.

        It may be in another spelling, and begin with folders of another machine or of another starting point, such as
        the `..` of a notebook's folder. A folder that exists, or is named like a split, is not passed over.
        """
        path = posixpath.normpath(written.replace("\\", "/"))
        if (self.root / path).exists():
            return self.relative(path)
        known = {**{spelling(folder): folder for folder in self._folders}, **{k: v[0] for k, v in self._spelt.items()}}
        for parts in parts_of(written):
            keys = [spelling(part) for part in parts]
            for start in range(len(keys)):
                found = known.get("/".join(keys[start:]))
                if any(split_in_path(f"{key}/x") for key in keys[:start]):
                    break
                if found is not None and self._certain(written, [*keys, ""], Found(f"{found}/")):
                    return found
        return None

    @cached_property
    def _folders(self) -> frozenset[str]:
        folders: set[str] = set()
        for folder in {folder_of(file) for file in self.files}:
            parts = folder.split("/")
            folders.update("/".join(parts[:end]) for end in range(1, len(parts) + 1))
        return frozenset(folders)

    def find(self, written: str, folders: Sequence[str] = ("",)) -> Found:
        """The picture that an annotation file calls `written`.

        It is looked for below each of `folders` as it is written; then everywhere under the longest end of the path
        that one file has, in any spelling; then likewise with another suffix. A folder that exists is not passed over:
        train/a.jpg is never read from val/a.jpg.
        """
        if is_web_address(written):
            return self._respelt(written, folders)
        for folder in folders:
            path = posixpath.normpath(posixpath.join(folder, written))
            if path.startswith(("../", "/")):
                if (self.root / path).is_file():
                    return Found(self.relative(path), exact=True)
            elif self.has(path):
                return Found(path, exact=True)
        return self._respelt(written, folders)

    def _respelt(self, written: str, folders: Sequence[str]) -> Found:
        for parts in parts_of(written):
            keys = [spelling(part) for part in parts]
            stem = keys[-1] if not suffix_of(keys[-1]) else stem_of(keys[-1])
            for last, files in ((keys[-1], self._named), (keys[-1], self._stems), (stem, self._stems)):
                found = self._by_end([*keys[:-1], last], files.get(last, ()), files is self._stems, folders)
                if found is not None and self._certain(written, keys, found):
                    return found
        return Found(None)

    def _by_end(self, keys: list[str], files: Sequence[str], by_stem: bool, folders: Sequence[str]) -> Found | None:
        """Of `files`, the one whose path ends like `keys` for longest."""
        if not files:
            return None
        shown = {file: (spelling(file).rpartition(".")[0] if by_stem else spelling(file)) for file in files}
        for length in range(len(keys), 0, -1):
            end = "/" + "/".join(keys[-length:])
            hits = [file for file, key in shown.items() if f"/{key}".endswith(end)]
            for folder in folders if len(hits) > 1 else ():
                below = [file for file in hits if folder_of(file) == folder]
                hits = below if len(below) == 1 else hits
            if len(hits) > 1:
                return Found(None, others=tuple(hits))
            if hits:
                return Found(hits[0])
        return None

    def _certain(self, written: str, keys: list[str], found: Found) -> bool:
        """Whether a relative path was not cut behind a folder that this tree has elsewhere."""
        if found.path is None or is_web_address(written) or written[:1] in "/\\" or written[1:2] == ":":
            return True
        folders = set(spelling(folder_of(found.path)).split("/"))
        return not any(key in self._folder_names and key not in folders for key in keys[:-1])


def _grouped(files: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(key(file), []).append(file)
    return groups


def _walk(root: Path) -> Iterator[str]:
    """The files below a folder; a linked folder that was walked already is left out, so that circles end."""
    visited = {os.path.realpath(root)}
    start = len(os.path.join(root, ""))  # noqa: PTH118 (speed)
    for place, folders, files in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = os.path.join(place, name)  # noqa: PTH118
            if name.startswith(".") or (os.path.islink(path) and os.path.realpath(path) in visited):  # noqa: PTH114
                continue
            visited.add(os.path.realpath(path))
            kept.append(name)
        folders[:] = kept
        prefix = os.path.join(place, "")[start:].replace(os.sep, "/")  # noqa: PTH118
        yield from (prefix + name for name in sorted(files) if not name.startswith("."))
