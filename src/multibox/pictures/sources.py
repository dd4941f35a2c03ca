"""Expand what people type (files, folders, patterns, addresses, "-") into one flat list of picture sources.

Nothing is decoded and nothing is downloaded here: a `Source` is a few strings, and `Source.read` does the work.
"""

from __future__ import annotations

import fnmatch
import http.client
import os
import re
import sys
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

import multibox
from multibox.errors import ImageError
from multibox.pictures.read import PICTURE_SUFFIXES, one_line, read_picture
from multibox.run_folders import RUN_MARKER

__all__ = ["Expansion", "Source", "expand_sources", "unique_output_names"]

URL_TIMEOUT_S = 30.0
"""How long a server may stay silent, and a quarter of how long a whole download may take."""
URL_MAX_BYTES = 256 << 20
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
        return _name_parts(self)[-1]

    def read(self, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 RGB of the upright picture, or ImageError; see `multibox.pictures.read.read_picture`."""
        if self.kind == "url":
            return _read_url(self.location, self.name, max_pixels)
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


# ------------------------------------------------------------------------------------------------ addresses


def _without_password(url: str) -> str:
    return re.sub(r"//[^/?#]*@", "//", url)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https and nothing else, so that a redirect cannot lead to file: or ftp: addresses."""
    opener = urllib.request.OpenerDirector()
    handlers = (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    )
    for handler in handlers:
        opener.add_handler(handler())
    return opener


def _request(url: str, shown: str) -> urllib.request.Request:
    """The address with spaces and letters beyond ASCII encoded, as browsers do."""
    try:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.username is not None or re.search(r"[\x00-\x1f]", url):
            raise ValueError("it needs a host, and no user name, password or control character")
        port = "" if parts.port is None else f":{parts.port}"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname.encode("idna").decode()
        path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
        query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        plain = urllib.parse.urlunsplit((parts.scheme, host + port, path or "/", query, ""))
    except ValueError as error:
        raise ImageError(shown, f"is not a usable address ({one_line(error)})", "correct it") from error
    agent = f"multibox/{multibox.__version__}"
    return urllib.request.Request(plain, headers={"User-Agent": agent, "Accept": "image/*,*/*;q=0.5"})


def _read_url(url: str, shown: str, max_pixels: int | None) -> NDArray[np.uint8]:
    request = _request(url, shown)
    try:
        with _opener().open(request, timeout=URL_TIMEOUT_S) as response:
            kind = str(response.headers.get_content_type())
            data = _download(response.read1, shown, int(response.headers.get("Content-Length") or 0))
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"the server answered {error.code} {one_line(error.reason)}".rstrip()
        raise ImageError(shown, reason, "check the address, or open it in a browser") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        _refuse_connection(shown, error)
    try:
        return read_picture(data, name=shown, max_pixels=max_pixels)
    except ImageError as error:
        if kind.startswith("image/"):
            raise
        raise ImageError(shown, f"{error.reason}; the server calls it {one_line(kind)}", error.remedy) from error


def _download(read1: Callable[[int], bytes], shown: str, promised: int) -> bytes:
    """The whole answer; a server that sends too much, too slowly or less than promised is refused."""
    chunks: list[bytes] = []
    deadline, length = time.monotonic() + 4 * URL_TIMEOUT_S, 0
    while length <= URL_MAX_BYTES and promised <= URL_MAX_BYTES:
        chunk = read1(1 << 18)
        if not chunk:
            if length < promised:
                reason = f"the connection ended after {length:,} of {promised:,} bytes"
                raise ImageError(shown, reason, "try again")
            return b"".join(chunks)
        chunks.append(chunk)
        length += len(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError
    raise ImageError(shown, f"is longer than {URL_MAX_BYTES:,} bytes", "download it and give the file")


def _refuse_connection(shown: str, error: Exception) -> NoReturn:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        raise ImageError(shown, "the server does not answer in time", "try again later") from error
    reason = one_line(getattr(cause, "strerror", None) or cause or type(error).__name__)
    raise ImageError(shown, f"cannot be downloaded ({reason})", "check the address and the network") from error


# ------------------------------------------------------------------------------------------------ output names

_UNSAFE = re.compile(r'[<>:"/\\|?*]+')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_MAX_NAME_BYTES = 180  # of the 255 that file systems allow, so that suffixes fit behind


def unique_output_names(sources: Sequence[Source]) -> list[str]:
    """One file name stem per source, all distinct, also where upper and lower case are the same.

    A stem that occurs once stays as it is. Others get what tells them apart in front (folders, "a_cat") or behind
    (the suffix, "cat_jpg"), or at last a number. The names hold no separators and suit Windows as well. Append the
    suffix of the output to them (`name + ".json"`); they may contain dots themselves.
    """
    groups: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        groups.setdefault(_fold(_safe(source.stem)), []).append(index)
    names = {group[0]: _safe(sources[group[0]].stem) for group in groups.values() if len(group) == 1}
    taken = {_fold(name) for name in names.values()}
    for group in groups.values():
        if len(group) == 1:
            continue
        for index, name in zip(group, _tell_apart([sources[index] for index in group]), strict=True):
            chosen, number = name, 2
            while _fold(chosen) in taken:
                chosen, number = f"{name}_{number}", number + 1
            taken.add(_fold(chosen))
            names[index] = chosen
    return [names[index] for index in range(len(sources))]


def _tell_apart(sources: Sequence[Source]) -> list[str]:
    """The shortest of: suffix behind, one folder in front, two folders, … with which all names differ."""
    parts = [_name_parts(source) for source in sources]
    suffixes = [_path_of(source).suffix.lstrip(".") for source in sources]
    options: list[list[str]] = []
    for depth in range(1, max(map(len, parts)) + 1):
        plain = ["_".join(part[-depth:]) for part in parts]
        options += [plain, ["_".join(filter(None, pair)) for pair in zip(plain, suffixes, strict=True)]]
    # A suffix tells more than a folder only where it is all that differs, so plain names are tried first.
    for option in [*options[::2], *options[1::2]]:
        names = [_safe(name) for name in option]
        if len({_fold(name) for name in names}) == len(names):
            return names
    return [_safe(part[-1]) for part in parts]


def _path_of(source: Source) -> PurePosixPath:
    if source.kind == "stdin":
        return PurePosixPath("stdin")
    if source.kind == "url":
        parts = urllib.parse.urlsplit(source.location)
        host = parts.netloc.rpartition("@")[2]
        return PurePosixPath(host + urllib.parse.unquote(parts.path)) if parts.path else PurePosixPath(host)
    return PurePosixPath(os.path.abspath(source.location).replace("\\", "/"))  # noqa: PTH100


def _name_parts(source: Source) -> list[str]:
    """Folders and stem, without the root."""
    path = _path_of(source)
    parts = [part for part in path.parts[:-1] if part not in {"/", ".", ".."}]
    return [*parts, path.stem]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _safe(text: str) -> str:
    """Text as a file name that every system accepts, that is not hidden and stays in its folder."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = _UNSAFE.sub("_", "".join(char if char.isprintable() else "_" for char in text))
    text = text.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(". ") or "picture"
    return f"_{text}" if _RESERVED.fullmatch(text) else text
