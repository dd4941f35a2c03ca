"""What annotation files hold: text, JSON and XML from bytes, and what may be an annotation at all."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from multibox.data.shapes import numbers
from multibox.pictures.read import PICTURE_SUFFIXES

__all__ = ["decoded", "is_label_row", "json_head", "json_of", "may_annotate", "picture_names", "xml_of"]

HEAD_BYTES = 1 << 16
DEEPEST = 50
"""Objects and lists within each other at the start of a JSON file; annotation files have fewer than ten."""


LABEL_VALUES = 5
"""Numbers in a line of YOLO text, at least."""

_MARKS = {
    ".xml": re.compile(rb"<(\w+:)?(bndbox|object|annotation)\b", re.I),
    ".json": re.compile(rb'"(bbox|shapes|objects|regions|annotations|coordinates|points|segmentation)"\s*:', re.I),
}
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)")
_PICTURE_NAME = re.compile(
    "[^\\\\/\"'<>|?*\0-\x1f]+\\.(?:" + "|".join(sorted(suffix[1:] for suffix in PICTURE_SUFFIXES)) + r")\b", re.I
)


def is_label_row(line: str) -> bool:
    """Whether a line could be a row of YOLO text: a class number and at least four more numbers."""
    tokens = line.split()
    return len(tokens) >= LABEL_VALUES and numbers(tokens) is not None


def may_annotate(suffix: str, data: bytes) -> bool:
    """Whether the content of a file looks like annotations: of those with this suffix, or else of any format."""
    if suffix in _MARKS:
        return _MARKS[suffix].search(data.replace(b"\0", b"")) is not None
    lines = data.replace(b"\0", b"").decode("utf-8-sig", "replace").splitlines()
    first = next((line for line in lines if line.strip()), "")
    is_text = len(_NUMBER.findall(first)) >= LABEL_VALUES  # in brackets, with commas or a class name before them too
    return is_text or (suffix != ".txt" and any(may_annotate(known, data) for known in _MARKS))


def picture_names(data: bytes) -> set[str]:
    """The file names of pictures in a text of any kind."""
    text = data.replace(b"\0", b"").decode("utf-8", "replace")
    return {name.strip() for name in _PICTURE_NAME.findall(text)}


def decoded(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with its mark.

    Raises:
        ValueError: it is neither.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    text = data.decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds zero bytes: it is no text, or in UTF-16 without a mark")
    return text


def json_of(data: bytes, *, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32.

    Args:
        data: the file.
        hook: called with every object once it is complete; what it returns takes the object's place.

    Raises:
        ValueError: it is damaged, or, where there is no hook, an object has two lists or objects under one key, of
            which one would be lost.
    """
    text = data.decode(json.detect_encoding(data))
    try:
        return json.loads(text, object_hook=hook, object_pairs_hook=None if hook else _without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value is not found[key] and isinstance(value, (list, dict)) and value:
                raise ValueError(f"it has two entries {key!r} in one object")
    return found


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)


def json_head(data: bytes) -> Any:
    """What the start of a JSON file holds, every value that is complete; None for what is no JSON."""
    try:
        text = data.decode(json.detect_encoding(data), "ignore")
    except ValueError:
        return None
    if len(data) < HEAD_BYTES:
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    closing: list[str] = []
    keep = (0, "")
    before = ""
    for token in _TOKEN.finditer(text):
        part, end = token[0], token.end()
        is_key = closing[-1:] == ["}"] and before in {"{", ","}
        if part in "{[":
            closing.append("}" if part == "{" else "]")
            if len(closing) > DEEPEST:
                return None
        elif part in "}]":
            if not closing:
                return None
            closing.pop()
        if part not in ",:" and not is_key and end < len(text):
            keep = (end, "".join(reversed(closing)))
        before = part
    try:
        return json.loads(text[: keep[0]] + keep[1])
    except (ValueError, RecursionError):
        return None


def xml_of(data: bytes) -> ElementTree.Element:
    """The root of an XML file, all tags as local names in lower case.

    Raises:
        ValueError: it is damaged, or declares entities, which can blow a small file up.
    """
    try:
        # Without a document type there are no declarations; UTF-16 hides it from this look and has zero bytes.
        if b"<!DOCTYPE" in data or b"\0" in data:
            _refuse_entities(data)
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, expat.ExpatError, LookupError) as error:
        raise ValueError(str(error)) from None
    for element in root.iter():
        tag = element.tag
        if isinstance(tag, str) and not (tag.islower() and tag.isalnum()):
            element.tag = tag.rpartition("}")[2].lower()
    return root


def _refuse_entities(data: bytes) -> None:
    def refuse(*_: object) -> None:
        raise ElementTree.ParseError("it declares entities")

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    parser.Parse(data, True)
