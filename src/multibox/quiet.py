"""Other packages, without what they report to their makers or write on the terminal."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import ModuleType

from multibox.errors import MissingDependencyError

__all__ = ["import_quietly", "silenced"]

REPORTING = "openvino_telemetry"  # what OpenVINO and NNCF send reports with, if it can be imported

# Of two threads that put the descriptors away, the second would put back what the first had put in their place.
_silence = threading.RLock()


def import_quietly(package: str, *, purpose: str, extra: str) -> ModuleType:
    """A package; OpenVINO and NNCF without the report that they send over the network when imported.

    They do without their reporting package when it is absent, so it is kept from being found while they load. A process
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
def silenced(*, errors_only: bool = False) -> Iterator[None]:
    """Without anything on standard output and error, of the whole process: native libraries write there by themselves.

    What other threads write meanwhile is lost too.

    Args:
        errors_only: leave standard output alone, where other threads may be writing results.
    """
    kept: list[tuple[int, int]] = []
    with _silence, open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # a program without a console has none
                stream.flush()
        for number in (2,) if errors_only else (1, 2):
            with suppress(OSError):  # closed
                kept.append((number, os.dup(number)))
        try:
            for number, _ in kept:
                os.dup2(nowhere.fileno(), number)
            if errors_only:
                yield
            else:
                with redirect_stdout(nowhere), redirect_stderr(nowhere):
                    yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
