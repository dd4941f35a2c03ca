"""The list of model builders. A builder is a function of keyword arguments that returns a `DetectionNetwork`.

Another package adds builders through the entry point group `multibox.models`: each entry point there is a builder.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from multibox.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from multibox.models.network import DetectionNetwork

__all__ = ["ENTRY_POINTS", "arguments_of", "create_model", "list_models", "register_model"]

ENTRY_POINTS = "multibox.models"
_BUILDERS: dict[str, Callable[..., DetectionNetwork]] = {}
_MODULES = ("vgg", "ssdlite", "tinyssd", "bpn", "backbones", "graph")
"""The modules of this package that register builders."""


def register_model(builder: Callable[..., DetectionNetwork]) -> Callable[..., DetectionNetwork]:
    """Decorator: make a builder known under its function name.

    Raises:
        OptionError: the name is taken.
    """
    name = builder.__name__
    if name in _BUILDERS:
        raise OptionError(f"a model named {name!r} is registered already; give the new builder another name")
    _BUILDERS[name] = builder
    return builder


def _builders() -> dict[str, Callable[..., DetectionNetwork]]:
    for module in _MODULES:
        importlib.import_module(f"multibox.models.{module}")
    for entry in entry_points(group=ENTRY_POINTS):
        builder = entry.load()
        if builder.__name__ not in _BUILDERS:  # unless it was registered by its own decorator
            register_model(builder)
    return _BUILDERS


def list_models() -> list[str]:
    """Names of all builders that need no arguments, sorted."""
    needed = {name: _needs(builder) for name, builder in _builders().items()}
    return sorted(name for name, arguments in needed.items() if not arguments)


def _needs(builder: Callable[..., DetectionNetwork]) -> list[str]:
    """The arguments without which a builder builds nothing."""
    parameters = inspect.signature(builder).parameters.values()
    return [one.name for one in parameters if one.default is one.empty and one.kind is one.KEYWORD_ONLY]


def arguments_of(name: str) -> list[str]:
    """The names of a builder's arguments.

    Raises:
        OptionError: unknown model; the message names the nearest one.
    """
    builders = _builders()
    if name not in builders:
        raise OptionError(f"unknown model {name!r}; {did_you_mean(name, builders)}")
    return list(inspect.signature(builders[name]).parameters)


def create_model(name: str, /, **arguments: Any) -> DetectionNetwork:
    """Build a detector with random weights.

    Args:
        name: a name from `list_models`.
        arguments: keyword arguments of the builder, JSON values only; they are kept with the detector so that its
            saved weights can rebuild it.

    Raises:
        OptionError: unknown model or argument; the message names the nearest one.
    """
    known = arguments_of(name)
    for key in arguments:
        if key not in known:
            raise OptionError(f"model {name!r} has no argument {key!r}; {did_you_mean(key, known)}")
    detector = _BUILDERS[name](**arguments)
    detector.builder, detector.arguments = name, dict(arguments)
    return detector
