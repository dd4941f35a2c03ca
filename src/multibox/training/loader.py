"""From records to batches: decoding, augmentation, order.

Everything random is a function of the seed, the epoch and the picture's number in the data set, not of which worker or
process met it when. So a run can stop after any step and go on as if it had not, and two processes see the same
batches as one.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multibox.core.structures import Target
from multibox.data import Dataset as Annotations
from multibox.errors import ImageError, MultiboxError
from multibox.pictures.read import read_picture
from multibox.spec.preprocess import Preprocess
from multibox.training.augmentation import augment, mosaic, resized
from multibox.training.options import AugmentOptions
from multibox.training.sample import Sample, Transform, check_sample
from multibox.training.workers import prepare_worker

__all__ = [
    "Batch",
    "EpochBatches",
    "TrainingPictures",
    "make_loader",
    "open_cache",
    "to_network",
]

NEIGHBOURS = 50  # pictures tried in place of an unreadable one
SHUFFLE, PICTURE = 0, 1  # first words of the random streams of orders and of pictures


class Batch(NamedTuple):
    """What a step learns from.

    `pixels` [B, H, W, 3] uint8 RGB at network size; `targets` one for each picture; `numbers` [B] which pictures of the
    data set; `failures` what could not be read, as (picture, reason).
    """

    pixels: Tensor
    targets: tuple[Target, ...]
    numbers: tuple[int, ...]
    failures: tuple[tuple[str, str], ...]

    def pin_memory(self) -> Batch:
        """The same batch, its pixels in page-locked memory, from which copying to a GPU does not block."""
        return self._replace(pixels=self.pixels.pin_memory())


class _Cache:
    """Decoded pictures of one worker; it stops growing at `limit` bytes."""

    def __init__(self, limit: float) -> None:
        self.limit, self.used = limit, 0
        self.kept: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def get(self, number: int, read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        if number not in self.kept:
            rgb = read()
            size = rgb.base.nbytes if isinstance(rgb.base, np.ndarray) else rgb.nbytes
            if self.used + size > self.limit:
                return rgb
            self.kept[number] = rgb
            self.used += size
        return self.kept[number]


class _DiskCache:
    """Decoded pictures in one file that all workers map; places and sizes come from `sizes_hw`."""

    def __init__(self, path: Path, sizes_hw: NDArray[np.int32], limit: float) -> None:
        sizes = np.maximum(sizes_hw.astype(np.int64), 0)
        ends = np.cumsum(sizes.prod(axis=1) * 3)
        self.starts, self.sizes = ends - sizes.prod(axis=1) * 3, sizes
        self.held = int(np.searchsorted(ends, limit, side="right"))
        self.path, self.total = path, int(ends[self.held - 1]) if self.held else 0
        self._maps: Any = None
        with path.open("wb") as file:
            _reserve(file, path, self.total + self.held)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}

    def get(self, number: int, read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        if number >= self.held or not self.sizes[number].all():
            return read()
        if self._maps is None:
            self._maps = np.memmap(self.path, np.uint8, "r+")
        start, (height, width) = int(self.starts[number]), self.sizes[number].tolist()
        place = self._maps[start : start + height * width * 3].reshape(height, width, 3)
        if self._maps[self.total + number]:  # written last, so a picture that is half there is not read
            return np.asarray(place)
        rgb = read()
        if rgb.shape == place.shape:
            place[:] = rgb
            self._maps[self.total + number] = 1
        return rgb


def _reserve(file: BinaryIO, path: Path, count: int) -> None:
    """Take the space on the disk now: writing to a mapped file while the disk is full would end the process."""
    try:
        file.truncate(count)
        if count and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, count)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:  # a file system without this
            return
        path.unlink(missing_ok=True)
        size = f"{count / 1e9:.2g} GB of decoded pictures"
        raise MultiboxError(f"{path}: no room for {size} ({error.strerror}); use cache=ram or less cache_gb") from None


@dataclass
class TrainingPictures(Dataset[tuple[NDArray[np.uint8], NDArray[Any], int, tuple[tuple[str, str], ...]]]):
    """A data set of augmented pictures; an item is asked for by (epoch, number).

    Args:
        annotations: the pictures; boxes without area are left out.
        preprocess: whose size and resize rule the pictures get.
        options: augmentation; None only resizes.
        seed: of all that is random.
        transforms: user functions, applied to the decoded picture first, in order.
        ignore_difficult: treat difficult objects as crowds are treated.
        cache: a `_Cache`, `_DiskCache` or None.
    """

    annotations: Annotations
    preprocess: Preprocess
    options: AugmentOptions | None
    seed: int
    transforms: tuple[Transform, ...] = ()
    ignore_difficult: bool = False
    cache: _Cache | _DiskCache | None = None

    def __len__(self) -> int:
        return len(self.annotations)

    def sample(self, number: int) -> Sample:
        """The picture as it is in the data set.

        Raises:
            ImageError: it cannot be read.
        """
        path = self.annotations.picture_path(number)

        def read() -> NDArray[np.uint8]:
            return read_picture(path)

        rgb = (read() if self.cache is None else self.cache.get(number, read)).view()
        rgb.flags.writeable = False  # a transform that wrote into a cached picture would change later epochs
        record = self.annotations[number]
        height, width = rgb.shape[:2]
        boxes = np.clip(record.boxes_xyxy, 0, np.array([width, height, width, height], np.float32))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        ignore = record.crowd | record.difficult if self.ignore_difficult else record.crowd
        return Sample(rgb, boxes[kept].astype(np.float32), record.labels[kept], ignore[kept])

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, int, tuple[tuple[str, str], ...]]:  # type: ignore[override]
        epoch, wanted = key
        failures = []
        for step in range(min(NEIGHBOURS, len(self))):
            number = (wanted + step) % len(self)
            try:
                sample = self.sample(number)
            except ImageError as error:
                failures.append((str(self.annotations.picture_path(number)), error.reason))
                continue
            rng = np.random.default_rng((self.seed, PICTURE, epoch, wanted))
            return self._augmented(self._transformed(sample, rng, number), rng), number, tuple(failures)
        path, reason = failures[0]
        raise ImageError(path, f"and {len(failures) - 1} after it cannot be read ({reason})", "check the data set")

    def _transformed(self, sample: Sample, rng: np.random.Generator, number: int) -> Sample:
        for transform in self.transforms:
            name = getattr(transform, "__name__", type(transform).__name__)
            sample = transform(sample, rng)
            check_sample(sample, source=f"{name} on {self.annotations.picture_path(number)}")
        return sample

    def _augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:
        spec = self.preprocess
        if self.options is None:
            return resized(sample, spec)
        if self.options.mosaic and rng.random() < self.options.mosaic:
            four = [sample, *self._others(rng)]
            height, width = (2 * side for side in spec.size_hw)  # so that a crop of it has pixels to show
            if len(four) == 4:
                sample = mosaic(four, rng, replace(spec, size_hw=(height, width)))
        return augment(sample, rng, self.options, spec)

    def _others(self, rng: np.random.Generator) -> Iterator[Sample]:
        """Three more pictures; one that cannot be read is passed over here and reported when its own turn comes."""
        found = 0
        for number in rng.integers(len(self), size=NEIGHBOURS).tolist():
            try:
                sample = self.sample(number)
            except ImageError:
                continue
            yield self._transformed(sample, rng, number)
            found += 1
            if found == 3:
                return


def collate(items: Sequence[tuple[Sample, int, tuple[tuple[str, str], ...]]]) -> Batch:
    """Samples of one size -> a batch; boxes become fractions of the network's input."""
    samples = [sample for sample, _, _ in items]
    height, width = samples[0].rgb.shape[:2]
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    targets = tuple(
        Target(
            torch.from_numpy(sample.boxes_xyxy) / scale,
            torch.from_numpy(sample.labels),
            torch.from_numpy(sample.ignore),
        )
        for sample in samples
    )
    pixels = torch.from_numpy(np.stack([sample.rgb for sample in samples]))
    failures = tuple(failure for _, _, found in items for failure in found)
    return Batch(pixels, targets, tuple(number for _, number, _ in items), failures)


class EpochBatches:
    """The order of an epoch in batches of (epoch, number), for one of several processes.

    An order is a permutation drawn from seed and epoch. Global batches are consecutive parts of it; the last one is
    filled up from the permutation's start, so that every picture is seen and all batches are equal. Process r of n
    takes every n-th picture of a batch.

    Args:
        count: pictures.
        batch: pictures in a global batch.
        seed: of the order.
        rank, world: this process and how many there are; `batch` is a multiple of `world`.
    """

    def __init__(self, count: int, batch: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        assert batch % world == 0, (batch, world)
        self.count, self.batch, self.seed, self.rank, self.world = count, batch, seed, rank, world
        self.epoch, self.first = 0, 0

    def start(self, epoch: int, first: int = 0) -> None:
        """Begin an epoch at its batch number `first`."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return -(-self.count // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, SHUFFLE, self.epoch)).permutation(self.count)
        order = np.resize(order, len(self) * self.batch)
        for number in range(self.first, len(self)):
            part = order[number * self.batch : (number + 1) * self.batch]
            yield [(self.epoch, int(i)) for i in part[self.rank :: self.world]]


def make_loader(pictures: TrainingPictures, batches: EpochBatches, *, workers: int, pin: bool) -> DataLoader[Any]:
    """Batches made ahead of time by `workers` processes."""
    return DataLoader(
        pictures,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=prepare_worker if workers else None,
        generator=torch.Generator(),  # its own, so that the loader draws no numbers from torch's
    )


def to_network(pixels: Tensor, preprocess: Preprocess, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B, H, W, 3] uint8 RGB at network size -> [B, 3, H, W] as the network wants it, channels last in memory."""
    mean, scale = (
        torch.tensor(v, device=pixels.device, dtype=torch.float32) for v in (preprocess.mean, preprocess.scale)
    )
    ordered = pixels if preprocess.colour_order == "RGB" else pixels.flip(-1)
    return ((ordered.float() - mean) * scale).to(dtype).permute(0, 3, 1, 2)


def open_cache(kind: str, gigabytes: float, *, workers: int, path: Path, sizes_hw: NDArray[np.int32] | None) -> Any:
    """The cache of decoded pictures that was asked for, or None."""
    limit = gigabytes * 1e9
    if kind == "ram":
        return _Cache(limit / max(1, workers))
    if kind == "disk":
        assert sizes_hw is not None
        return _DiskCache(path, sizes_hw, limit)
    return None
