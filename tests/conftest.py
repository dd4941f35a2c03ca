"""Shared fixtures: where the real data lies, and a disk that is full."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent / "models"))  # lets every test import `toy_cascades`

# A busy machine is no failure.
settings.register_profile("whole", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    """Whatever a test draws without a seed of its own is the same in every run and after every other test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the generator that other packages draw from)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


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


@pytest.fixture
def without_torch(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """`multibox ARGS` in a process of its own that cannot import torch; gives its exit status, output and errors."""
    program = "import sys; sys.modules['torch'] = None; from multibox.cli import main; main()"

    def call(*args: str | Path) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return call


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--allowed-skips", metavar="FILE", help="fail if a test is skipped for a reason that no line of FILE allows"
    )


def pytest_configure(config: pytest.Config) -> None:
    # The daily run has fewer made-up examples.
    settings.load_profile("quick" if config.option.markexpr == "not slow" else "whole")
    file = config.getoption("--allowed-skips")
    if file is not None and not hasattr(config, "workerinput"):  # with several processes the first one judges
        config.pluginmanager.register(_Skips(Path(file)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each file stays in one process, all exports in the same one, which makes a graph once; the longest go first."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group("export" if folder == "export" else str(item.path)))
    items.sort(key=lambda item: (item.path.name != "test_readme.py", item.path.parent.name != "export"))


class _Skips:
    """Collects the reasons of skipped tests and modules, and fails the run for one that is not allowed."""

    def __init__(self, file: Path) -> None:
        lines = file.read_text(encoding="utf-8").splitlines()
        self._allowed = re.compile("|".join(f"(?:{line})" for line in lines if line and not line.startswith("#")))
        self._refused: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple) and not self._allowed.search(report.longrepr[2]):
            self._refused[report.nodeid] = report.longrepr[2]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._refused:
            terminalreporter.section("skipped without leave", red=True)
            for test, reason in self._refused.items():
                terminalreporter.line(f"{test}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
