"""Shared fixtures: where the real data lies, and a disk that is full."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent / "models"))  # lets every test import `toy_cascades`


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real pictures with boxes: MULTIBOX_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("MULTIBOX_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}; set MULTIBOX_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Outputs of the original runtime: MULTIBOX_REFERENCE, or ../shared/reference beside the checkout."""
    folder = Path(os.environ.get("MULTIBOX_REFERENCE", ROOT.parent / "shared" / "reference")) / "ssdlite_coco"
    if not folder.is_dir():
        pytest.skip(f"no reference folder {folder}; set MULTIBOX_REFERENCE to run this test")
    return folder


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """`with full_disk(n):` no file can grow beyond n bytes, so that a write stops half way as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX's")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limited
