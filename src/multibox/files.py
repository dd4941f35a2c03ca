"""Files that a user keeps: each appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_move", "atomic_path", "atomic_write"]


def atomic_write(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write a file; text as UTF-8 with its line ends as they are. `durable` is that of `atomic_path`.

    Raises:
        OSError: it cannot be written; what had the name before is untouched, and nothing is left beside it.
    """
    with atomic_path(path, durable=durable) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; what stands there at the end of the block gets the name `path`.

    For writers that want a path or write piece by piece. The content is on the disk before the file has its name, so
    that a crash or a full disk leaves the old file or the new one. An error within the block removes the new one.

    A link is followed, and a device or a pipe is written to as it is.

    Args:
        path: the file to write.
        durable: wait until the file is on the disk, which takes milliseconds. Without it the file is as whole for
            every program, and only a crash of the machine can lose it: for thousands of small files that can be made
            again.

    Raises:
        OSError: it cannot be written.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        atomic_move(partial, path, durable=durable)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_move(made: Path, path: Path, *, durable: bool = True) -> None:
    """Give a finished file, or folder of files, its name in the same file system; a file of that name is replaced.

    Args:
        made: the file or folder.
        path: its name.
        durable: put it on the disk before it has its name; see `atomic_path`.

    Raises:
        OSError: it cannot be written or moved.
    """
    parts = made.rglob("*") if made.is_dir() else [made]
    for part in parts if durable else ():
        if part.is_file():
            with part.open("rb+") as file:
                os.fsync(file.fileno())
    made.replace(path)
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk, where the system has a way to."""
    if os.name != "posix":
        return
    with suppress(OSError):  # file systems without it exist; the file itself is whole
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
