"""Import of packages that report their use to their makers, without that report."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from multibox.errors import MissingDependencyError

__all__ = ["import_quietly"]

REPORTING = "openvino_telemetry"  # what OpenVINO and NNCF send reports with, if it can be imported


def import_quietly(package: str, *, purpose: str, extra: str) -> ModuleType:
    """OpenVINO or NNCF, which send a report over the network when imported; not here.

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
