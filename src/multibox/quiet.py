"""Import of packages that report their use to their makers, without that report."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import ModuleType

from multibox.errors import MissingDependencyError

__all__ = ["import_quietly", "silenced"]

REPORTING = "openvino_telemetry"  # what OpenVINO and NNCF send reports with, if it can be imported


def import_quietly(package: str, *, purpose: str, extra: str) -> ModuleType:
    """OpenVINO or NNCF, which send a report over the network when imported, and others; not here.

    Both do without their reporting package when it is absent, so it is kept from being found while they load. A process
    that has loaded it before keeps what it has.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    hidden = REPORTING not in sys.modules
    if hidden:
        sys.modules[REPORTING] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(error.name or package, purpose, extra) from None
    finally:
        if hidden:
            sys.modules.pop(REPORTING, None)


@contextmanager
def silenced() -> Iterator[None]:
    """Without anything on standard output and error, of the whole process: native libraries write there by themselves.

    What other threads write meanwhile is lost too.
    """
    kept = []
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
        for number in (1, 2):
            with suppress(OSError):  # closed
                kept.append((number, os.dup(number)))
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # a program without a console has none
                stream.flush()
        try:
            for number, _ in kept:
                os.dup2(nowhere.fileno(), number)
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
