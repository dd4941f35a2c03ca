"""Silence around other packages, and what it must not swallow."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from multibox.quiet import silenced

SHOTS, LINES = 50, 2000


def test_nothing_is_written_while_it_lasts(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced():
        sys.stdout.write("python\n")
        os.write(1, b"native output\n")
        os.write(2, b"native error\n")
        with silenced(errors_only=True):
            os.write(2, b"deeper\n")
        os.write(1, b"still\n")
    os.write(1, b"after\n")
    os.write(2, b"after\n")
    assert capfd.readouterr() == ("after\n", "after\n")


def test_it_can_leave_output_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced(errors_only=True):
        os.write(1, b"result\n")
        os.write(2, b"chatter\n")
    assert capfd.readouterr() == ("result\n", "")


def test_threads_that_are_silent_at_once_lose_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    """As interpreters that are opened by the workers of a stream whose results are being printed."""

    def open_many() -> None:
        for _ in range(SHOTS):
            with silenced(errors_only=True):
                os.write(2, b"chatter\n")

    threads = [threading.Thread(target=open_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(LINES):
        os.write(1, b"result\n")
    for thread in threads:
        thread.join()
    os.write(2, b"after\n")
    assert capfd.readouterr() == ("result\n" * LINES, "after\n")


def test_descriptors_survive_threads_that_silence_everything(capfd: pytest.CaptureFixture[str]) -> None:
    def silence_often() -> None:
        for _ in range(SHOTS):
            with silenced():
                os.write(1, b"chatter\n")

    threads = [threading.Thread(target=silence_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(1, b"after\n")
    sys.stdout.write("python too\n")
    sys.stdout.flush()
    assert capfd.readouterr() == ("after\npython too\n", "")
