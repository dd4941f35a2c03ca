"""Looking at the picture files: headers and file sizes always, every pixel when asked for (`deep`)."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from multibox.data.picture_files import facts_to_know
from multibox.data.records import Dataset
from multibox.errors import ImageError, one_line
from multibox.pictures.read import picture_facts, read_picture

__all__ = ["HASH_HW", "Scan", "scan_pictures"]

HASH_HW = (16, 17)
"""Rows and columns of the grey thumbnail whose 16 × 16 differences of neighbours are the perceptual hash."""

_T = TypeVar("_T")
_MIDDLE_WH = (64, 64)
_CHUNK = 1 << 20
_ORIENTATION_TAG = 0x0112


@dataclass
class Scan:
    """What the files of P pictures say.

    Args:
        sizes_hw: [P, 2] int32 (height, width) of the upright picture, −1 where the header cannot be read.
        orientations: [P] int8 EXIF orientation, 1 to 8.
        file_sizes: [P] int64 bytes, −1 where there is no file.
        digests: picture → digest of the file's bytes, for files that share their size with another.
        thumbnails: [P, 16, 17] uint8 grey, all 0 for a picture not decoded; None without `deep`.
        failures: picture → (kind of finding, what is wrong).
        notes: (picture, kind of finding) of what else a header says and a user should know.
    """

    sizes_hw: NDArray[np.int32]
    orientations: NDArray[np.int8]
    file_sizes: NDArray[np.int64]
    thumbnails: NDArray[np.uint8] | None = None
    digests: dict[int, bytes] = field(default_factory=dict)
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)
    notes: list[tuple[int, str]] = field(default_factory=list)


def scan_pictures(
    dataset: Dataset, *, deep: bool = False, workers: int = 1, progress: Callable[[int], None] | None = None
) -> Scan:
    """Look at every picture file of a data set.

    Args:
        dataset: its pictures are read and nothing is written.
        deep: decode every picture, to find damaged pixels and to make thumbnails for near-duplicates.
        workers: threads; decoding leaves Python's lock free, reading headers hardly does.
        progress: called with the number of pictures done since the last call.
    """
    count = len(dataset)
    scan = Scan(np.full((count, 2), -1, np.int32), np.ones(count, np.int8), np.full(count, -1, np.int64))
    if deep:
        scan.thumbnails = np.zeros((count, *HASH_HW), np.uint8)

    def one(index: int) -> None:
        _look(scan, index, dataset.picture_path(index))

    with _quiet():
        for done, _ in enumerate(_mapped(one, range(count), workers), start=1):
            if progress is not None and (done % 64 == 0 or done == count):
                progress(done % 64 or 64)
        candidates = _sharing_size(scan.file_sizes)
        for index, digest in zip(
            candidates, _mapped(lambda i: _digest(dataset.picture_path(i)), candidates, workers), strict=True
        ):
            if digest is not None:
                scan.digests[index] = digest
    return scan


def _mapped(function: Callable[[int], _T], items: range | list[int], workers: int) -> Iterator[_T]:
    if workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings about odd metadata; around all threads, as the filters are the whole process's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _look(scan: Scan, index: int, path: Path) -> None:
    """Fill the entries of one picture; threads never write to the same one."""
    try:
        status = os.stat(path)  # noqa: PTH116 (speed)
    except (OSError, ValueError):
        scan.failures[index] = ("picture_missing", "there is no such file")
        return
    scan.file_sizes[index] = status.st_size
    try:
        facts = picture_facts(path)
    except ImageError as error:
        scan.failures[index] = ("picture_unreadable", f"the picture {error.reason}")
        return
    scan.sizes_hw[index] = facts.size_hw
    scan.notes += [(index, kind) for kind in facts_to_know(facts)]
    scan.orientations[index] = orientation_of(path)
    if scan.thumbnails is None:
        return
    try:
        scan.thumbnails[index] = _thumbnail(path, int(scan.orientations[index]))
    except ImageError as error:
        scan.failures[index] = ("picture_truncated", f"the picture {error.reason}")
    except Exception as error:  # decoders meet hostile bytes and raise almost anything
        scan.failures[index] = ("picture_truncated", f"the pixels cannot be decoded ({one_line(error)})")


def orientation_of(path: Path) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it cannot be read."""
    try:
        with Image.open(path) as image:
            value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # corrupt EXIF raises anything from SyntaxError to struct.error
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _thumbnail(path: Path, orientation: int) -> NDArray[np.uint8]:
    """The picture decoded to its end, upright, as [16, 17] uint8 grey."""
    small = _small_jpeg(path)
    if small is None:
        small = Image.fromarray(np.ascontiguousarray(read_picture(path))).convert("L")
    elif orientation > 1:
        small.getexif()[_ORIENTATION_TAG] = orientation
        ImageOps.exif_transpose(small, in_place=True)
    return np.asarray(small.resize(HASH_HW[::-1], Image.Resampling.BOX))


def _small_jpeg(path: Path) -> Image.Image | None:
    """A JPEG in grey, as it is stored; None for other formats, and beyond the size that Pillow itself opens.

    It is decoded to a part of its size for a fraction of the time; all its bytes are still read, so damage is found.
    """
    try:
        with Image.open(path) as image:
            if image.format not in {"JPEG", "MPO"}:
                return None
            image.draft("L", _MIDDLE_WH)
            return image.convert("L").resize(_MIDDLE_WH, Image.Resampling.BOX)
    except Image.DecompressionBombError:
        return None


def _sharing_size(file_sizes: NDArray[np.int64]) -> list[int]:
    _, inverse, counts = np.unique(file_sizes, return_inverse=True, return_counts=True)
    shared = (counts[inverse.reshape(-1)] > 1) & (file_sizes >= 0)
    return [int(i) for i in np.flatnonzero(shared)]


def _digest(path: Path) -> bytes | None:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as stream:
            while block := stream.read(_CHUNK):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()
