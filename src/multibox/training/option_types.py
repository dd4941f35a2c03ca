"""Options with a type, limits and a meaning: read from texts and checked when they are set, listed for help."""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from multibox.errors import OptionError, did_you_mean

__all__ = ["Option", "OptionSection", "Within"]


class Within(NamedTuple):
    """The numbers that an option can be: low … high, without low itself when `above`."""

    low: float
    high: float = math.inf
    meaning: str = ""
    above: bool = False

    def require(self, name: str, value: float) -> None:
        """Raise OptionError unless the value is one of them."""
        if math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low):
            return
        limits = f"{self.low:g} or more" if math.isinf(self.high) else f"from {self.low:g} to {self.high:g}"
        if self.above:
            limits = f"above {self.low:g}, up to {self.high:g}"
        raise OptionError(f"{name} must be {limits}{self.meaning and f' ({self.meaning})'}, got {value!r}")


_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def _yes_or_no(value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        value = value.split(",") if value.strip() else ()
    if not isinstance(value, list | tuple):
        value = (value,)
    return tuple(_number(part) for part in value)


def _text(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError
    return str(value)


_READERS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    bool: ("true or false", _yes_or_no),
    int: ("a whole number", _whole),
    float: ("a number", _number),
    str: ("a text", _text),
    tuple: ("numbers with commas", _numbers),
}


@dataclass(frozen=True)
class Option:
    """One option of a section.

    Args:
        name: as it is written.
        kind: bool, int, float, str, or tuple for several numbers.
        choices: the only texts it can be; empty for any.
        within: the numbers it can be, each of several.
        optional: whether it can be None, which is written as an empty text.
        default: what it is when left out.
        help: its text in the section's docstring.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    within: Within | None
    optional: bool
    default: Any
    help: str

    def read(self, value: Any) -> Any:
        """A value of the option's type, also from a text.

        Raises:
            OptionError: it cannot be read, or is out of range.
        """
        if self.optional and (value is None or value == ""):
            return None
        expected, convert = _READERS[self.kind]
        try:
            found = convert(value)
        except (TypeError, ValueError, OverflowError):
            raise OptionError(f"{self.name}={value!r}: expected {expected}") from None
        if self.choices and found not in self.choices:
            raise OptionError(f"{self.name}={value!r}: {did_you_mean(found, self.choices)}")
        for number in found if self.kind is tuple else (found,):
            if self.within is not None:
                self.within.require(self.name, number)
        return found


@dataclass(frozen=True)
class OptionSection:
    """Base of dataclasses whose fields are options: reads and checks every value when one is made.

    A field's annotation says what it can be (`Annotated[float, Within(0, 1)]`, `Literal["a", "b"]`, with `| None`), the
    `Args` of the docstring what it means.
    """

    def __post_init__(self) -> None:
        for option in self.options():
            object.__setattr__(self, option.name, option.read(getattr(self, option.name)))

    @classmethod
    @cache
    def options(cls) -> tuple[Option, ...]:
        """Every option of the section."""
        hints, texts = typing.get_type_hints(cls, include_extras=True), _explanations(cls)
        return tuple(_option(item.name, hints[item.name], item.default, texts[item.name]) for item in fields(cls))


def _option(name: str, hint: Any, default: Any, help: str) -> Option:
    optional, choices, within = get_origin(hint) in (typing.Union, types.UnionType), (), None
    if optional:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is Annotated:
        hint, within = get_args(hint)
    if get_origin(hint) is Literal:
        hint, choices = str, get_args(hint)
    return Option(name, get_origin(hint) or hint, choices, within, optional, default, help)


def _explanations(section: type) -> dict[str, str]:
    """The texts of the `Args` of a class's docstring, by name, each on one line."""
    body = inspect.cleandoc(section.__doc__ or "").partition("Args:\n")[2].split("\n\n")[0]
    entries = (entry.strip().partition(":") for entry in re.split(r"\n(?=    \w)", "\n" + body))
    return {name: " ".join(text.split()) for name, _, text in entries if name}
