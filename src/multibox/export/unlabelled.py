"""Pictures without annotations, to export with: their truth is what the network itself finds in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from multibox.data import Dataset, ImageRecord
from multibox.errors import ContractError, ImageError, counted
from multibox.export.verify.artefact import EagerReference
from multibox.pictures.read import PICTURE_SUFFIXES
from multibox.pictures.sources import expand_sources
from multibox.spec.card import ModelCard
from multibox.spec.options import DISPLAY_THRESHOLD

__all__ = ["is_unlabelled", "own_findings"]


def is_unlabelled(data: str) -> bool:
    """Whether this is a folder with nothing but pictures in it and its subfolders."""
    folder = Path(data).expanduser()
    if not folder.is_dir():
        return False
    suffixes = {file.suffix.lower() for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")}
    return bool(suffixes) and suffixes <= PICTURE_SUFFIXES


def own_findings(folder: str, network: Any, card: ModelCard) -> tuple[Dataset, str]:
    """The pictures of a folder as a data set of what the network finds with a score of 0.5 and more; and that in words.

    Raises:
        ContractError: no picture that can be read, or none in which the network finds anything.
    """
    paths = [Path(source.location).resolve() for source in expand_sources([folder]).sources]
    reference = EagerReference(network, card)
    records, unreadable = [], 0
    for number, (path, found) in enumerate(
        zip(paths, reference.outcomes((str(path) for path in paths), reference.options), strict=True)
    ):
        if isinstance(found, ImageError):
            unreadable += 1
            continue
        kept = np.greater_equal(found.scores, DISPLAY_THRESHOLD)  # type: ignore[arg-type]
        records.append(
            ImageRecord(str(path), number, found.picture_size_hw, found.boxes_xyxy[kept], found.labels[kept])
        )
    dataset = Dataset.from_records(records, card.class_map, root=Path(folder))
    if not dataset.num_boxes:
        raise ContractError(
            f"{folder}: has no annotations, and the model finds nothing in its {counted(len(records), 'picture')} with "
            f"a score of {DISPLAY_THRESHOLD:g}, so nothing could be compared; give pictures of what it finds"
        )
    left_out = f", {counted(unreadable, 'picture')} left out that cannot be read" if unreadable else ""
    return dataset, (
        f"{folder} has no annotations: AP is against the {counted(dataset.num_boxes, 'object')} that the model itself "
        f"finds there with a score of {DISPLAY_THRESHOLD:g} and more{left_out}"
    )
