"""Lets the tests of this folder share `short_runs`, and what several of them start from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 12 small JPEG pictures in YOLO's format: 9 to learn from, 3 to validate on; two classes."""
    pytest.importorskip("torch", reason="the train extra is not installed")
    from short_runs import write_pictures

    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., object]]:
    """`commands(ARGS …)` starts the program in a process of its own, without the seconds that importing torch takes."""
    pytest.importorskip("torch", reason="the train extra is not installed")
    from short_runs import Commands

    with Commands(tmp_path_factory.mktemp("commands")) as started:
        yield started
