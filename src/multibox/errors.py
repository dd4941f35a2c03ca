"""The exceptions of multibox, and words that messages share.

Every message says what is wrong, with which thing, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ClassMapError",
    "ContractError",
    "ImageError",
    "MissingDependencyError",
    "ModelFileError",
    "MultiboxError",
    "OptionError",
    "counted",
    "did_you_mean",
    "first_line",
    "install_command",
    "last_line",
    "one_line",
]


class MultiboxError(Exception):
    """Base of everything multibox raises on purpose; the command line prints it as one line."""


class ContractError(MultiboxError, ValueError):
    """A value breaks one of the data contracts (shape, dtype, range); the message shows expected and actual."""


class ClassMapError(ContractError):
    """Two class lists that must agree do not, or a class is unknown; the message shows the difference."""


class ImageError(MultiboxError):
    """A picture cannot be read. `source` names it."""

    def __init__(self, source: str, reason: str, remedy: str) -> None:
        super().__init__(f"{source}: {reason}; {remedy}")
        self.source, self.reason, self.remedy = source, reason, remedy


class ModelFileError(MultiboxError):
    """A model file is missing, damaged, foreign or from a newer version. `source` names it."""

    def __init__(self, source: str, reason: str, remedy: str) -> None:
        super().__init__(f"{source}: {reason}; {remedy}")
        self.source, self.reason, self.remedy = source, reason, remedy


class OptionError(MultiboxError, ValueError):
    """An option or a name is unknown or has an impossible value."""


def install_command(extra: str) -> str:
    """How to add an extra to the environment."""
    return f"pip install 'multibox[{extra}]' (in a checkout of it: pip install '.[{extra}]')"


class MissingDependencyError(MultiboxError, ImportError):
    """An optional package is needed for what was asked. `extra` is the extra of multibox that brings it, if any."""

    def __init__(self, package: str, purpose: str, extra: str | None) -> None:
        command = f"pip install {package}" if extra is None else install_command(extra)
        super().__init__(f"{purpose} needs the package {package!r}; install it with: {command}")
        self.package, self.extra = package, extra


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A sentence that names the nearest choice, or lists all choices when none is near.

    >>> did_you_mean("ssd30_vgg16", ["ssd300_vgg16", "tinyssd256"])
    "did you mean 'ssd300_vgg16'?"
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name.casefold(), [c.casefold() for c in known], n=1, cutoff=0.6)
    if near:
        match = next(c for c in known if c.casefold() == near[0])
        return f"did you mean {match!r}?"
    return f"known: {', '.join(known)}"


def first_line(error: BaseException) -> str:
    r"""The first line of an error's text that says something, or the name of its kind.

    >>> first_line(ValueError("\n  too long\n  by far"))
    'too long'
    """
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """The last line of an error's text that says something, or the name of its kind.

    >>> last_line(MemoryError())
    'MemoryError'
    """
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def counted(count: int, one: str, several: str = "") -> str:
    """A number and its noun: 1 picture, 2 pictures."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def one_line(text: object) -> str:
    """Text that prints everywhere on one line: control characters and undecodable bytes become escapes."""
    plain = str(text)
    if plain.isprintable():
        return plain  # a half of a UTF-16 pair is not printable, so this encodes
    plain = plain.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)
