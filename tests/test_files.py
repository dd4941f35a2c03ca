"""A file that a user keeps appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multibox.files import atomic_path, atomic_write


def test_text_and_bytes_arrive_unchanged(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.txt", "é\r\nb\n")
    atomic_write(tmp_path / "b.bin", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "é\r\nb\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin"]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    goal = tmp_path / "model.onnx"
    goal.write_bytes(b"earlier")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        *{"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[failing], full
    )
    with pytest.raises(OSError, match="No space"):
        atomic_write(goal, b"new")
    monkeypatch.undo()
    assert goal.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [goal]


def test_an_interrupt_within_the_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_path(tmp_path / "page.html") as partial:
            partial.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        happened.append("sync")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        happened.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    atomic_write(tmp_path / "a", b"1")
    assert happened[:2] == ["sync", "rename"]


def test_a_link_is_followed_and_a_device_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    goal, link = tmp_path / "deep" / "goal", tmp_path / "link"
    goal.write_bytes(b"old")
    link.symlink_to(goal)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert goal.read_bytes() == b"new"
    atomic_write(Path(os.devnull), b"nothing")
    assert not Path(os.devnull).is_file()
