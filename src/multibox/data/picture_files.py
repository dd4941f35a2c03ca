"""The picture files of a data set: do they exist, have they the declared size, and where does a copy of them go."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from multibox.data.findings import DataError, Findings
from multibox.data.names import is_web_address
from multibox.data.records import Dataset
from multibox.data.write_report import WriteReport
from multibox.errors import ImageError, counted
from multibox.files import atomic_path
from multibox.pictures.read import PictureFacts, picture_facts

__all__ = [
    "CopyMode",
    "actual_size_hw",
    "check_sizes",
    "facts_to_know",
    "flat_names",
    "named_flat",
    "place_pictures",
    "stored_path",
]

CopyMode = Literal["false", "true", "link"]
_RESERVED = '<>:"|?*\\'


def actual_size_hw(path: Path, shown: str, findings: Findings) -> tuple[int, int] | None:
    """(height, width) of the upright picture from its header, or None and a finding.

    What else the header says and a user should know goes into `findings` too.
    """
    if not path.is_file():
        message = "it is an address on the web; download it and name the file" if is_web_address(shown) else ""
        findings.add("picture_missing", shown, "", message)
        return None
    try:
        facts = picture_facts(path)
    except ImageError as error:
        findings.add("picture_unreadable", shown, "", f"the picture {error.reason}")
        return None
    for kind in facts_to_know(facts):
        findings.add(kind, shown)
    return facts.size_hw


def facts_to_know(facts: PictureFacts) -> list[str]:
    """The kinds of findings that the header of a picture gives rise to."""
    kinds = {"picture_pages": facts.more_frames, "picture_scaled": facts.white_unknown}
    return [kind for kind, true in kinds.items() if true]


def check_sizes(dataset: Dataset, findings: Findings) -> NDArray[np.int32]:
    """[P, 2] int32 (height, width) of every upright picture from its header, −1 where it cannot be read.

    Missing files, and declared sizes that are not the upright ones, are added to `findings`; nothing is changed. A
    declared size with the two sides swapped is what tools leave that drew boxes without applying the EXIF orientation.
    """
    sizes_hw = np.full((len(dataset), 2), -1, np.int32)
    for i in range(len(dataset)):
        shown = dataset.paths[i]
        actual = actual_size_hw(dataset.root / shown, shown, findings)
        if actual is None:
            continue
        sizes_hw[i] = actual
        declared = dataset.declared_size_hw(i)
        if declared is None or declared == actual:
            continue
        stated = (
            f"declared {declared[1]} × {declared[0]}, the upright picture is {actual[1]} × {actual[0]} (width × height)"
        )
        if declared == actual[::-1]:
            hint = "the boxes may have been drawn without the EXIF orientation; look at one and turn them if so"
            findings.add("size_turned", shown, "", f"{stated}; {hint}")
        else:
            findings.add("size_differs", shown, "", stated)
    return sizes_hw


def named_flat(dataset: Dataset, report: WriteReport) -> list[str]:
    """A file name for each picture of a data set, as `flat_names` makes them; the report says how many are new."""
    names, renamed = flat_names(list(dataset.paths))
    if renamed:
        report.note(f"{counted(renamed, 'picture')} renamed because of equal or unusable names")
    return names


def flat_names(paths: Sequence[str]) -> tuple[list[str], int]:
    """A file name for each path, distinct even without suffix and case, and how many differ from their own.

    Equal names get their folders in front (a/x.jpg → a_x.jpg), and a number where that is not enough.
    """
    taken: set[str] = set()
    out, renamed = [], 0
    for path in paths:
        plain = path.replace("\\", "/")
        plain = urlsplit(plain).path if is_web_address(plain) else plain
        parts = [_clean(part) for part in PurePosixPath(plain).parts if part not in {"/", "..", "."}]
        name = next(_candidates(parts or ["picture"], taken))
        renamed += name != PurePosixPath(path).name
        taken.add(PurePosixPath(name).stem.casefold())
        out.append(name)
    return out, renamed


def _candidates(parts: list[str], taken: set[str]) -> Iterator[str]:
    for depth in range(1, min(len(parts), 3) + 1):
        name = "_".join(parts[-depth:])
        if PurePosixPath(name).stem.casefold() not in taken:
            yield name
    plain = PurePosixPath(parts[-1])
    for number in range(2, len(taken) + 3):
        name = f"{plain.stem}-{number}{plain.suffix}"
        if PurePosixPath(name).stem.casefold() not in taken:
            yield name


def _clean(part: str) -> str:
    """A file name that every file system, XML and a list with one name a line can hold."""
    kept = "".join(c if c.isprintable() and c not in _RESERVED else "_" for c in part)
    while kept != (inner := kept.strip().strip(".")):  # a dot at the end is no suffix, and Windows drops it
        kept = inner
    return kept or "picture"


def stored_path(dataset: Dataset, index: int, base: Path) -> str:
    """How a file in `base` names a picture that stays where it is: relative inside `base`, absolute elsewhere.

    A web address stays as it is.
    """
    if is_web_address(dataset.paths[index]):
        return dataset.paths[index]
    picture = Path(os.path.abspath(dataset.picture_path(index)))  # noqa: PTH100 (resolve() would follow links)
    try:
        return picture.relative_to(os.path.abspath(base)).as_posix()  # noqa: PTH100
    except ValueError:
        return str(picture)


def place_pictures(dataset: Dataset, targets: Sequence[Path], copy: CopyMode, report: WriteReport) -> None:
    """Copy or link every picture to its target. One that is already there stays; another is never overwritten.

    Already there is the same file, a link to it, or a file with the very same bytes, as an earlier copy is. A picture
    that a path with ".." finds outside the data folder is not copied, and of an absolute path only what is a picture:
    such a path may be a trap.

    Raises:
        DataError: a target is taken by another file.
        OSError: a picture cannot be copied; nothing of it is left.
    """
    if copy == "false":
        report.note(f"{counted(len(dataset), 'picture stays', 'pictures stay')} where they are")
        return
    done = "linked" if copy == "link" else "copied"
    placed = missing = outside = no_picture = fallbacks = 0
    for folder in {target.parent for target in targets}:
        folder.mkdir(parents=True, exist_ok=True)
    for i, target in enumerate(targets):
        source = dataset.picture_path(i)
        if ".." in PurePosixPath(dataset.paths[i]).parts:
            outside += 1
        elif not source.is_file():
            missing += 1
        elif PurePath(dataset.paths[i]).is_absolute() and not _is_picture(source):
            no_picture += 1
        elif target.exists():
            if not _is_same(source, target):
                raise DataError(target, "exists and is another picture", "choose an empty folder")
        else:
            fallbacks += _place(source, target, copy)
            placed += 1
    report.note(f"{counted(placed, 'picture')} {done}")
    if fallbacks:
        report.note(f"{counted(fallbacks, 'picture')} copied, because this file system cannot link them")
    if missing:
        report.note(f"{counted(missing, 'picture is', 'pictures are')} missing and could not be {done}")
    if no_picture:
        report.note(f"{counted(no_picture, 'file')} outside the data folder, no picture that can be read, not {done}")
    if outside:
        report.note(f"{counted(outside, 'picture')} outside the data folder not {done}; move them into it")


def _is_picture(path: Path) -> bool:
    try:
        return bool(picture_facts(path))
    except ImageError:
        return False


def _is_same(source: Path, target: Path) -> bool:
    """Whether both are one file, or a file and its copy."""
    if target.samefile(source):
        return True
    return target.is_file() and filecmp.cmp(source, target, shallow=False)


def _place(source: Path, target: Path, copy: CopyMode) -> bool:
    """Whether a link was wanted and a copy was made."""
    if copy == "link":
        try:
            target.symlink_to(source.resolve())
            return False
        except OSError:  # Windows without the privilege, FAT and network file systems
            pass
    with atomic_path(target, durable=False) as partial:
        shutil.copyfile(source, partial)
    return copy == "link"
