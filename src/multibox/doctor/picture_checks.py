"""Findings about picture files: unreadable, of another size than declared, turned, or there more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from multibox.data.names import usual_split
from multibox.data.records import Dataset
from multibox.doctor.kinds import FINDING_KINDS, CheckFinding
from multibox.doctor.scan import Scan

__all__ = ["SIDES_SWAP", "check_duplicates", "check_files", "in_stored_frame", "near_pairs", "split_of", "split_role"]

MARGIN = 2
"""Grey levels by which a pixel must outshine its neighbour: noise of compression in even areas is no difference."""

LARGEST_DISTANCE = 15
"""Of 256 bits. With 16 bands, two hashes this close agree in one band at least, so no pair is overlooked."""

BANDS = 16
HASH_BITS = 256
LARGEST_GREY_DIFFERENCE = 6.0
SMALLEST_CONTRAST = 4.0
"""Standard deviation in grey levels; pictures of one colour all look alike, and only equal bytes say more."""

SIDES_SWAP = 5
"""The least EXIF orientation whose upright picture is as wide as the stored one is high."""

_BLOCK = 512


def split_role(name: str | None) -> str | None:
    """The usual name of a split: train, val or test; other names as they are."""
    return None if name is None else usual_split(name)


def split_of(dataset: Dataset, index: int) -> str | None:
    """The split of a picture by its usual name."""
    code = int(dataset.columns.split_codes[index])
    return None if code < 0 else split_role(dataset.columns.split_names[code])


def check_files(dataset: Dataset, scan: Scan) -> Iterator[CheckFinding]:
    """What is wrong with single files."""
    for index, (kind, message) in sorted(scan.failures.items()):
        yield CheckFinding(kind, dataset.paths[index], "", message, (index,))
    for index, kind in sorted(scan.notes):
        yield CheckFinding(kind, dataset.paths[index], "", FINDING_KINDS[kind].meaning, (index,))
    for index in np.flatnonzero(scan.sizes_hw[:, 0] > 0).tolist():
        actual = (int(scan.sizes_hw[index, 0]), int(scan.sizes_hw[index, 1]))
        declared, orientation = dataset.declared_size_hw(index), int(scan.orientations[index])
        if declared is not None and declared != actual:
            kind = "size_turned" if declared == actual[::-1] else "size_differs"
            stated = f"declared {declared[1]} × {declared[0]}, upright it is {actual[1]} × {actual[0]} pixels"
            yield CheckFinding(kind, dataset.paths[index], "", stated, (index,))
        if orientation != 1:
            message = f"EXIF orientation {orientation}; check that its boxes fit the upright picture"
            yield CheckFinding("exif_rotated", dataset.paths[index], "", message, (index,))


def in_stored_frame(dataset: Dataset, scan: Scan, picture: int) -> bool:
    """Whether the boxes of a picture were drawn on the stored pixels instead of the upright picture.

    So it is where the declared size is the stored one, unless the boxes fit into the upright picture only.
    """
    actual = scan.sizes_hw[picture]
    if scan.orientations[picture] < SIDES_SWAP or actual[0] == actual[1] or actual[0] < 0:
        return False
    if dataset.declared_size_hw(picture) != (int(actual[1]), int(actual[0])):
        return False
    far = dataset[picture].boxes_xyxy[:, 2:].max(axis=0, initial=0)
    return bool((far <= actual).all() or (far > actual[::-1]).any())


def check_duplicates(dataset: Dataset, scan: Scan) -> Iterator[CheckFinding]:
    """Groups of equal files, and of pictures that look the same (needs thumbnails)."""
    by_digest: dict[tuple[int, bytes], list[int]] = {}
    for index, digest in scan.digests.items():
        by_digest.setdefault((int(scan.file_sizes[index]), digest), []).append(index)
    groups = [sorted(group) for group in by_digest.values() if len(group) > 1]
    first_of = {index: group[0] for group in groups for index in group}
    for group in sorted(groups):
        yield _group_finding(dataset, group, "duplicate", "the same bytes")
    if scan.thumbnails is not None:
        chosen = np.flatnonzero(scan.thumbnails.std(axis=(1, 2)) >= SMALLEST_CONTRAST)
        pairs = near_pairs(scan.thumbnails[chosen])
        linked = [(int(chosen[a]), int(chosen[b])) for a, b in pairs.tolist()]
        for group in _groups(linked, first_of.get):
            yield _group_finding(dataset, group, "near_duplicate", "nearly the same to look at")


def _group_finding(dataset: Dataset, group: list[int], stem: str, how: str) -> CheckFinding:
    splits = {split_of(dataset, index) for index in group} - {None}
    kind = f"{stem}_across" if len(splits) > 1 else f"{stem}_within"
    named = [f"{dataset.paths[i]} ({split_of(dataset, i) or 'no split'})" for i in group[1:5]]
    others = ", ".join(named) + (f" and {len(group) - 5} more" if len(group) > 5 else "")
    boxes = {dataset[i].boxes_xyxy.tobytes() + dataset[i].labels.tobytes() for i in group}
    note = "" if len(boxes) == 1 or stem != "duplicate" else "; their boxes differ"
    return CheckFinding(
        kind, dataset.paths[group[0]], split_of(dataset, group[0]) or "", f"{how}: {others}{note}", tuple(group)
    )


def _groups(pairs: list[tuple[int, int]], first_of: Callable[[int, int], int]) -> list[list[int]]:
    """Connected pictures; of those with equal bytes, which are a finding already, a pair alone makes no group."""
    parent: dict[int, int] = {}

    def root(index: int) -> int:
        while parent.setdefault(index, index) != index:
            parent[index] = index = parent[parent[index]]
        return index

    for a, b in pairs:
        parent[root(a)] = root(b)
    members: dict[int, list[int]] = {}
    for index in sorted(parent):
        members.setdefault(root(index), []).append(index)
    return sorted(group for group in members.values() if len({first_of(i, i) for i in group}) > 1)


def near_pairs(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[K, 2] pairs a < b of [P, 16, 17] grey thumbnails that show nearly the same.

    Two tests must agree: the difference hashes (256 bits) are at most 15 bits apart, and the thumbnails at most 6
    grey levels on average.
    """
    count = len(thumbnails)
    steps = thumbnails[:, :, 1:].astype(np.int16) - thumbnails[:, :, :-1]
    bits = (steps > MARGIN).reshape(count, HASH_BITS)
    # Bits of one band come from all over the picture: an even sky would make many pictures agree in a row of bits.
    packed = np.packbits(bits[:, np.random.default_rng(0).permutation(bits.shape[1])], axis=1)
    bands = np.ascontiguousarray(packed).view(np.uint16)
    flat = thumbnails.reshape(count, thumbnails.shape[1] * thumbnails.shape[2]).astype(np.int16)
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        starts = np.flatnonzero(np.diff(bands[order, band], prepend=-1, append=-1).astype(bool))
        for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if high - low > 1:
                found.update(_close_pairs(order[low:high], packed, flat))
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _close_pairs(
    members: NDArray[np.int64], packed: NDArray[np.uint8], flat: NDArray[np.int16]
) -> Iterator[tuple[int, int]]:
    members = np.sort(members)
    for start in range(0, len(members), _BLOCK):
        rows = members[start : start + _BLOCK]
        distance = _POPULATION[packed[rows][:, None] ^ packed[members][None]].sum(axis=2, dtype=np.int16)
        for a, b in zip(*np.nonzero(distance <= LARGEST_DISTANCE), strict=True):
            first, second = int(rows[a]), int(members[b])
            if first < second and np.abs(flat[first] - flat[second]).mean() <= LARGEST_GREY_DIFFERENCE:
                yield first, second


_POPULATION = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
