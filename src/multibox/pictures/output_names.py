"""File names for the results of pictures: distinct, safe on every system, inside one folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from multibox.pictures.sources import Source

__all__ = ["unique_output_names"]

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
    suffixes = [source.path.suffix.lstrip(".") for source in sources]
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


def _name_parts(source: Source) -> list[str]:
    """Folders and stem, without the root."""
    path = source.path
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
