"""Names as tools write them: which spellings mean one file, and which words name one split."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

__all__ = ["is_web_address", "parts_of", "spelling", "split_in_file_name", "split_in_path", "usual_split"]

_SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SUBSETS = frozenset({"minitrain", "minival"})
_YEAR = re.compile(r"[-_]?(19|20)\d\d$")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])")


def spelling(text: str) -> str:
    """A key that is the same for all spellings of a name: letter case, Unicode form and %20 do not count."""
    if "%" in text:
        text = unquote(text)
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def usual_split(name: str) -> str:
    """The usual name of a split: train, val or test for their aliases in any letter case; other names as they are."""
    return _SPLIT_OF_WORD.get(name.casefold(), name)


def split_in_path(path: str) -> str | None:
    """The split that the folders of a relative path name, if any: images/Valid/a.jpg → val, train2017/a.jpg → train."""
    for folder in path.split("/")[:-1] if not path.startswith("/") else ():
        split = _SPLIT_OF_WORD.get(_YEAR.sub("", folder).casefold())
        if split is not None:
            return split
    return None


def split_in_file_name(path: str) -> str | None:
    """The split that an annotation file is for, by its own name or else by its folders.

    >>> split_in_file_name("annotations/instances_train2017.json"), split_in_file_name("valid/_annotations.csv")
    ('train', 'val')
    """
    words = re.split(r"[^a-z]+", PurePosixPath(path).stem.casefold())
    named = {_SPLIT_OF_WORD.get(word, word) for word in words if word in _SPLIT_OF_WORD or word in _SUBSETS}
    return named.pop() if len(named) == 1 else split_in_path(path)


def is_web_address(text: str) -> bool:
    """Whether text is an address such as https://host/a.jpg."""
    return _ADDRESS.match(text) is not None


def parts_of(written: str) -> Iterable[list[str]]:
    """The parts of a path in the ways that it can be meant, the plainest first.

    Backslashes separate, a drive or the host of an address is left out, %20 may stand for a blank, and an address may
    name the file behind `?d=`, as Label Studio does.
    """
    if is_web_address(written):
        address = urlsplit(written)
        written = f"{address.path}?{address.query}" if address.query else address.path
    found: list[list[str]] = []
    for text in (written, unquote(written), unquote(written).partition("?")[0], unquote(written).partition("?d=")[2]):
        parts = [part for part in _DRIVE.sub("", text).replace("\\", "/").split("/") if part not in {"", ".", ".."}]
        if parts and parts not in found:
            found.append(parts)
    return found
