"""Folders for the results of one run: numbered where the name exists, marked as no pictures to predict on."""

from __future__ import annotations

from pathlib import Path

from multibox.errors import MultiboxError, OptionError

__all__ = ["RUN_MARKER", "discard_empty_folder", "new_run_folder"]

RUN_MARKER = ".multibox-run"
"""Name of an empty file in folders that hold results: no walk through the folders above takes pictures from them."""


def new_run_folder(project: str, name: str, *, exist_ok: bool) -> Path:
    """Create project/name, or project/name-2, -3 … when it exists and may not be reused.

    A new one is marked with a hidden file, so that its pictures are not taken for pictures to predict on.
    """
    if Path(name).name != name or name in {"", ".", ".."}:
        raise OptionError(f"name={name!r} must be a plain folder name; put the path into project")
    try:
        parent = Path(project).expanduser()
    except RuntimeError:  # ~somebody who is not known here
        raise OptionError(f"project={project!r} names an unknown home folder; write the path out") from None
    for number in range(1, 1_000_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            (folder / RUN_MARKER).touch()
        except FileExistsError:
            if not exist_ok:
                continue
            if not folder.is_dir():
                raise OptionError(f"{folder} is a file; choose another name") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MultiboxError(f"{folder}: cannot be created ({reason}); choose a writable project=") from None
        return folder
    raise OptionError(f"{project}/{name}: too many run folders; choose another name")


def discard_empty_folder(folder: Path) -> bool:
    """Remove a run folder that holds no results; whether it did. One that a caller had before stays."""
    if [entry.name for entry in folder.iterdir()] != [RUN_MARKER]:
        return False
    (folder / RUN_MARKER).unlink()
    folder.rmdir()
    return True
