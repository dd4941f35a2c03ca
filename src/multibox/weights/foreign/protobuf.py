"""Protocol buffers without their schemas: the wire format and the text format, as numbers of fields and as names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Text", "Wire", "floats", "integers", "parse_text", "read_wire"]

Wire = dict[int, list[int | memoryview]]
"""Field number -> its values in order: integers, and bytes of everything else."""
Text = dict[str, list[Any]]
"""Field name -> its values in order: strings, and messages, which are of this type themselves."""

LONGEST_VARINT = 10  # bytes
DEEPEST = 32  # messages in each other
TOKEN = re.compile(
    r"""\s*(?:\#[^\n]*\s*)*("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>\[\]:;,]|[^\s{}<>\[\]:;,"'#]+)"""
)


def read_wire(data: memoryview) -> Wire:
    """The fields of one message.

    Raises:
        ValueError: not a message, or one that is cut off.
    """
    fields: Wire = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        value: int | memoryview
        if kind == 0:
            value, at = _varint(data, at)
        else:
            if kind == 2:
                size, at = _varint(data, at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError(f"wire type {kind} at byte {at}")
            if at + size > len(data):
                raise ValueError(f"{at + size - len(data)} bytes are missing at the end")
            value, at = data[at : at + size], at + size
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for i in range(LONGEST_VARINT):
        if at + i >= len(data):
            raise ValueError("a number is cut off at the end")
        byte = data[at + i]
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, at + i + 1
    raise ValueError(f"no number at byte {at}")


def integers(values: list[int | memoryview]) -> list[int]:
    """Integers of a repeated field, packed or not."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return found


def floats(values: list[int | memoryview], dtype: str = "<f4") -> NDArray[np.float32]:
    """[N] float32 of a repeated field of this dtype, packed or not."""
    parts = [value for value in values if not isinstance(value, int)]
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype).astype(np.float32)


def parse_text(text: str) -> Text:
    """A message in the text format.

    Raises:
        ValueError: it is none; the message names the line.
    """
    tokens = _tokens(text)
    found = _message(tokens, "", 0)
    return found


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    at, line = 0, 1
    while match := TOKEN.match(text, at):
        line += text.count("\n", at, match.start(1))
        yield match[1], line
        at = match.end()
    rest = re.sub(r"#[^\n]*", "", text[at:]).strip()
    if rest:
        raise ValueError(f"line {line}: {rest[:20]!r} is not understood")


def _message(tokens: Iterator[tuple[str, int]], end: str, depth: int) -> Text:
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} messages in each other")
    found: Text = {}
    line = 1
    for name, line in tokens:
        if name == end:
            return found
        if name in ";,":
            continue
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"line {line}: a name of a field was expected, not {name!r}")
        found.setdefault(name, []).extend(_values(tokens, depth))
    if end:
        raise ValueError(f"the text ends after line {line}, inside a message")
    return found


def _values(tokens: Iterator[tuple[str, int]], depth: int) -> list[Any]:
    """One value, or several in brackets."""
    token, line = _next(tokens)
    if token == ":":
        token, line = _next(tokens)
    if token != "[":
        return [_value(token, line, tokens, depth)]
    found = []
    while (token := _next(tokens)[0]) != "]":
        if token != ",":
            found.append(_value(token, line, tokens, depth))
    return found


def _value(token: str, line: int, tokens: Iterator[tuple[str, int]], depth: int) -> Any:
    if token in "{<":
        return _message(tokens, {"{": "}", "<": ">"}[token], depth + 1)
    if token in "}>[]:;,":
        raise ValueError(f"line {line}: a value was expected, not {token!r}")
    return re.sub(r"\\(.)", r"\1", token[1:-1]) if token[0] in "\"'" else token


def _next(tokens: Iterator[tuple[str, int]]) -> tuple[str, int]:
    found = next(tokens, None)
    if found is None:
        raise ValueError("the text is cut off")
    return found
