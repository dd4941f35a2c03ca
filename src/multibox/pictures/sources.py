"""Expand what people type (files, folders, patterns, addresses, "-") into one flat list of picture sources.

Nothing is decoded and nothing is downloaded here: a `Source` is a few strings, and `Source.read` does the work.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ImageError, one_line
from multibox.pictures.read import PICTURE_SUFFIXES, read_picture
from multibox.run_folders import RUN_MARKER

__all__ = ["Expansion", "Source", "expand_sources"]

_URL_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_MAGIC = re.compile(r"[*?[]")
_CHECK_PATH = "check the path"


@dataclass(frozen=True, slots=True)
class Source:
    """One picture to read: `name` is what is printed, `location` is what is opened.

    A file's location is its path, an address's the address, and standard input's "-" (it can be read once).
    """

    name: str
    kind: Literal["file", "url", "stdin"]
    location: str
    stream: BinaryIO | None = field(default=None, repr=False, compare=False)

    @property
    def stem(self) -> str:
        """The name without folders and suffix, as the start of the name of an output file."""
        return self.path.stem

    @property
    def path(self) -> PurePosixPath:
        """Where it comes from: a path on this machine, host and path of an address, or "stdin"."""
        if self.kind == "stdin":
            return PurePosixPath("stdin")
        if self.kind == "url":
            parts = urllib.parse.urlsplit(self.location)
            host = parts.netloc.rpartition("@")[2]
            return PurePosixPath(host + urllib.parse.unquote(parts.path)) if parts.path else PurePosixPath(host)
        return PurePosixPath(os.path.abspath(self.location).replace("\\", "/"))  # noqa: PTH100  (links stay)

    def read(self, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 RGB of the upright picture, or ImageError; see `multibox.pictures.read.read_picture`."""
        if self.kind == "url":
            from multibox.pictures.urls import read_url  # what speaks HTTP is large

            return read_url(self.location, self.name, max_pixels)
        if self.kind == "stdin":
            return read_picture(self.stream or sys.stdin.buffer, name=self.name, max_pixels=max_pixels)
        return read_picture(self.location, name=self.name, max_pixels=max_pixels)


@dataclass(frozen=True, slots=True)
class Expansion:
    """What `expand_sources` found.

    `problems` holds one error per argument or folder that gave nothing; they stop nobody else. `skipped` counts the
    files in folders that are not pictures by their suffix, and the run folders (RUN_MARKER) that were passed over;
    `skipped_runs` counts the latter alone.
    """

    sources: list[Source]
    problems: list[ImageError]
    skipped: int
    skipped_runs: int = 0


def expand_sources(sources: Sequence[str | os.PathLike[str]], *, stdin: BinaryIO | None = None) -> Expansion:
    """The pictures that `sources` name, in the order given, each once.

    - a file: taken whatever its suffix;
    - a folder: its pictures (PICTURE_SUFFIXES) and those of its subfolders, in natural order ("2" before "10"),
      without hidden ones, without following links in circles, and without the run folders of earlier results
      (RUN_MARKER) below it; a run folder named itself is read;
    - a pattern with * ? [ ] or **, unless a file of that very name exists: what it matches, folders included. Of
      the matched files those with a picture suffix count, or all where the pattern spells the suffix ("*.dat");
    - "-": one picture from standard input (`stdin`);
    - http:// and https:// addresses.

    List files are not expanded: a .txt file is taken as a picture and refused when read.
    """
    walk = _Walk(stdin)
    for source in sources:
        walk.add(os.fsdecode(source))
    return Expansion(
        list(walk.found.values()), list(walk.problems.values()), len(walk.skipped | walk.runs), len(walk.runs)
    )


class _Walk:
    """The state of one expansion: what was found so far, by a key that tells the same file under two spellings."""

    def __init__(self, stdin: BinaryIO | None) -> None:
        self.stdin = stdin
        self.found: dict[str, Source] = {}
        self.problems: dict[str, ImageError] = {}
        self.real_folders: dict[str, str] = {}
        self.skipped: set[str] = set()
        self.runs: set[str] = set()

    def problem(self, name: str, reason: str, remedy: str) -> None:
        error = ImageError(one_line(name), reason, remedy)
        self.problems.setdefault(str(error), error)

    def add(self, text: str) -> None:
        scheme = _URL_SCHEME.match(text)
        if text == "-":
            self._add_stdin()
        elif scheme and scheme[1].lower() in {"http", "https"}:
            self.found.setdefault(text, Source(one_line(_without_password(text)), "url", text))
        elif scheme:
            self.problem(text, f"{scheme[1]} addresses are not read", "give an http or https address or a file")
        else:
            self._add_path(text)

    def _add_stdin(self) -> None:
        stream = self.stdin if self.stdin is not None else getattr(sys.stdin, "buffer", None)
        if stream is None or stream.isatty():
            self.problem("-", "standard input holds no picture", "pipe one in, for example: cat a.jpg | …")
        else:
            self.found.setdefault("-", Source("-", "stdin", "-", stream))

    def _add_path(self, text: str) -> None:
        path = text if os.path.lexists(text) else os.path.expanduser(text)  # noqa: PTH111 - keeps the spelling
        try:
            if not text:
                self.problem("''", "is an empty name", "give the path of a picture")
            elif Path(path).is_dir():
                self._add_folder(path)
            elif _MAGIC.search(path) and not os.path.lexists(path):
                self._add_pattern(path)
            else:
                Path(path).stat()
                self._add_file(path)
        except FileNotFoundError:
            link = os.path.islink(path)  # noqa: PTH114
            self.problem(text, "is a broken link" if link else "there is no such file or folder", _CHECK_PATH)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.problem(text, f"cannot be opened ({one_line(reason)})", _CHECK_PATH)

    def _add_file(self, path: str) -> None:
        self.found.setdefault(self._key(path), Source(one_line(path), "file", path))

    def _add_file_by_suffix(self, path: str) -> bool:
        """Whether the suffix says picture; other files are only counted."""
        wanted = os.path.splitext(path)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122
        if wanted:
            self._add_file(path)
        else:
            self.skipped.add(self._key(path))
        return wanted

    def _key(self, path: str) -> str:
        """The same for two spellings of one file. A link keeps a key of its own: it is a name that someone gave."""
        folder, name = os.path.split(path)
        if folder not in self.real_folders:
            self.real_folders[folder] = os.path.realpath(folder or ".")
        return os.path.normcase(os.path.join(self.real_folders[folder], name))  # noqa: PTH118

    def _add_folder(self, folder: str) -> None:
        problems, runs = len(self.problems), len(self.runs)
        files = [path for inner, entries in self._tree(folder) for path in self._files(inner, entries)]
        pictures = [self._add_file_by_suffix(path) for path in files]  # a list: each file has to be visited
        if not any(pictures) and len(self.problems) == problems:
            others = f" among its {len(files)} files" if files else ""
            others += " besides the run folders in it" if len(self.runs) > runs else ""
            remedy = f"looked for {' '.join(sorted(PICTURE_SUFFIXES))} here and below"
            self.problem(folder, f"this folder holds no picture{others}", remedy)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What is in a folder, in natural order; a folder that cannot be read is a problem, not a silence."""
        try:
            with os.scandir(folder or ".") as entries:
                return sorted(entries, key=lambda entry: _natural_key(entry.name))
        except OSError as error:
            reason = one_line(error.strerror or error)
            self.problem(folder or ".", f"this folder cannot be read ({reason})", "change its permissions")
            return []

    def _tree(self, folder: str) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
        """The folder and all below it with their visible entries, each real folder once, so circles end."""
        seen: set[str] = set()
        start, waiting = folder, [folder]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder or ".")
            if real in seen:
                continue
            seen.add(real)
            found = self._entries(folder)
            if folder != start and any(entry.name == RUN_MARKER for entry in found):
                self.runs.add(os.path.normcase(real))
                continue
            entries = [entry for entry in found if not entry.name.startswith(".")]
            yield folder, entries
            waiting += [_join(folder, entry.name) for entry in reversed(entries) if _is(entry, "dir")]

    def _files(self, folder: str, entries: Sequence[os.DirEntry[str]]) -> Iterator[str]:
        for entry in entries:
            path = _join(folder, entry.name)
            if _is(entry, "file"):
                yield path
            elif entry.is_symlink() and not os.path.exists(path):  # noqa: PTH110
                self.problem(path, "is a broken link", "remove it or restore what it points to")

    def _add_pattern(self, pattern: str) -> None:
        path = Path(pattern)
        parts = path.parts[1:] if path.anchor else path.parts
        matches = list(dict.fromkeys(self._match(path.anchor, parts)))
        spelled_suffix = re.search(r"\.[^.*?\[\]]+$", parts[-1])
        taken = False
        for match in matches:
            if Path(match).is_dir():
                if "**" not in parts:  # with ** the files inside were matched themselves
                    self._add_folder(match)
                    taken = True
            elif spelled_suffix:
                self._add_file(match)
                taken = True
            else:
                taken |= self._add_file_by_suffix(match)
        if not taken:
            found = f"matches {len(matches)} entries, none a picture" if matches else "matches nothing"
            self.problem(pattern, f"this pattern {found}", "check the pattern and the folder it starts from")

    def _match(self, base: str, parts: Sequence[str]) -> Iterator[str]:
        """Paths below `base` that fit the parts of a pattern, in natural order."""
        if not parts:
            yield base
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            for folder, entries in self._tree(base):
                yield from self._match(folder, rest) if rest else self._files(folder, entries)
        elif os.path.lexists(_join(base, part)):  # a real name wins, also one with brackets in it
            yield from self._match(_join(base, part), rest)
        elif _MAGIC.search(part):
            for entry in self._entries(base):
                hidden = entry.name.startswith(".") and not part.startswith(".")
                if not hidden and fnmatch.fnmatch(entry.name, part) and (not rest or _is(entry, "dir")):
                    yield from self._match(_join(base, entry.name), rest)


def _is(entry: os.DirEntry[str], kind: Literal["dir", "file"]) -> bool:
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:  # a link that points to itself
        return False


def _join(folder: str, name: str) -> str:
    return name if folder in {"", "."} else str(Path(folder) / name)


def _natural_key(name: str) -> tuple[list[tuple[int, int | str]], str]:
    pieces = re.split(r"([0-9]+)", name.casefold())
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces], name


def _without_password(url: str) -> str:
    return re.sub(r"//[^/?#]*@", "//", url)
