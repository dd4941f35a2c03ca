"""Pictures an export is checked and calibrated on: drawn ones that need no data, and samples of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data import Dataset
from multibox.errors import ContractError, ImageError
from multibox.pictures.read import read_picture

__all__ = ["drawn_pictures", "read_pictures", "resized_to"]

Picture = NDArray[np.uint8]
DRAWN_SIZES_HW = ((333, 500), (480, 359), (300, 300), (97, 131), (97, 131), (97, 131), (720, 1080), (224, 64))


def drawn_pictures() -> list[Picture]:
    """Eight pictures [h, w, 3] uint8 of several sizes, three of them of one: gradients, discs, bars and noise.

    The same bytes everywhere. Channels differ, so that a swap of channels shows; noise makes rounding show.
    """
    pictures = []
    for number, (height, width) in enumerate(DRAWN_SIZES_HW):
        random = np.random.default_rng(number)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        base = np.stack([255 * x / width, 255 * y / height, 255 * (1 - x / width)], axis=-1)
        for _ in range(12):
            colour = random.integers(0, 256, 3).astype(np.float32)
            cy, cx = random.uniform(0, height), random.uniform(0, width)
            ry, rx = random.uniform(0.05, 0.35, 2) * (height, width)
            if random.random() < 0.5:
                inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
            else:
                inside = (np.abs(y - cy) < ry) & (np.abs(x - cx) < rx / 3)
            base[inside] = 0.25 * base[inside] + 0.75 * colour
        noisy = base + random.integers(-12, 13, base.shape)
        pictures.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    return pictures


def resized_to(pictures: Iterable[Picture], size_hw: tuple[int, int] | None) -> Iterator[Picture]:
    """The pictures as the user of a file delivers them that takes only those of one (height, width); None: any."""
    for picture in pictures:
        if size_hw is None or picture.shape[:2] == size_hw:
            yield picture
        else:
            yield np.asarray(Image.fromarray(picture).resize((size_hw[1], size_hw[0])))


def read_pictures(dataset: Dataset, indexes: Sequence[int]) -> list[Picture]:
    """Pictures of a data set; those that cannot be read are left out.

    Raises:
        ContractError: none can be read.
    """
    pictures = []
    for index in indexes:
        try:
            pictures.append(np.asarray(read_picture(dataset.picture_path(index))))
        except ImageError:
            continue
    if indexes and not pictures:
        raise ContractError("none of the pictures of the data set can be read")
    return pictures
