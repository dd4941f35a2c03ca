"""Shared fixtures: where the real data lies, and the shipped model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
