"""Which pictures are learnt from, and which are validated on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from multibox.data import DataError, Dataset, read_dataset
from multibox.data.records import ImageRecord
from multibox.errors import OptionError, counted
from multibox.spec.classes import ClassMap
from multibox.training.config import TrainConfig

__all__ = ["fingerprint", "read_training_data"]

LEAST_HELD_OUT = 1
HELD_OUT = "held out of those to learn from"
FEW_PICTURES = 20
FEW_ADVICE = (
    "so few pictures say little about new ones, whichever are held out: train with seed=0, 1, 2 … (each holds out "
    "others), take the mean of their AP, and train once more on all pictures with val_split=none"
)
HOLD_OUT_STREAM = 2  # first word of the random stream; see `loader`


def read_training_data(config: TrainConfig, say: Callable[[str], None]) -> tuple[Dataset, Dataset | None]:
    """The pictures to learn from, and those to validate on or None.

    Args:
        config: of the run.
        say: told what was found, a line at a time.

    Raises:
        OptionError: options that contradict each other, or name nothing.
        DataError: data that cannot be read, or nothing to learn in it.
    """
    options = config.data
    if not options.data:
        raise OptionError("no data: give a data set to train on")
    dataset = read_dataset(options.data, format=options.format or None, images=options.images or None)
    say(f"reading {dataset.origin}")
    for line in dataset.findings.summary():
        say(f"  {line}")
    if options.classes:
        dataset = _only_classes(dataset, options.classes)
    learnt, validated, how = _splits(config, dataset)
    say(f"learning from {_size(learnt)}; validating on {'nothing' if validated is None else _size(validated)} ({how})")
    if HELD_OUT in how and len(learnt) + _count(validated) < FEW_PICTURES:
        say(f"  {FEW_ADVICE}")
    if not learnt.num_boxes:
        raise DataError(options.data, "has no object to learn from", "check its annotations and split=")
    return learnt, validated


def _count(dataset: Dataset | None) -> int:
    return 0 if dataset is None else len(dataset)


def _size(dataset: Dataset) -> str:
    return f"{counted(len(dataset), 'picture')}, {counted(dataset.num_boxes, 'object')}"


def _splits(config: TrainConfig, dataset: Dataset) -> tuple[Dataset, Dataset | None, str]:
    options = config.data
    for name in ("split", "val_split"):
        text = getattr(options, name)
        if text and not _names_in(text):
            raise OptionError(f"{name}={text!r} names no split; leave it out, or take of {', '.join(dataset.splits)}")
    wanted = _indices(dataset, options.split) if options.split else None
    if options.val_split == "none":
        learnt = _named(dataset, "train") if wanted is None else wanted
        learnt = np.arange(len(dataset)) if learnt is None else learnt
        return dataset.select(learnt), None, "as asked"
    if options.val_split:
        held, how = _indices(dataset, options.val_split), f"split {options.val_split}"
    else:
        named = _named(dataset, "val")
        free = None if named is None or wanted is None else np.setdiff1d(named, wanted)
        if named is not None and (free is None or len(free)):
            held, how = named if free is None else free, "split val"
        else:
            pool = wanted if wanted is not None else _named(dataset, "train")
            held = _held_out(dataset, np.arange(len(dataset)) if pool is None else pool, config)
            how = f"{counted(len(held), 'picture')} {HELD_OUT}"
    if wanted is not None and (options.val_split or not how.endswith(HELD_OUT)):
        learnt = wanted
    else:
        train_split = wanted if wanted is not None else _named(dataset, "train")
        learnt = np.setdiff1d(np.arange(len(dataset)) if train_split is None else train_split, held)
    shared = np.intersect1d(learnt, held)
    if len(shared):
        how += f"; {len(shared)} of them are also learnt from, so the numbers say nothing about new pictures"
    if not len(learnt):
        raise DataError(
            options.data, "leaves no picture to learn from", "choose other splits, or a smaller val_fraction"
        )
    return dataset.select(learnt), dataset.select(held) if len(held) else None, how


def _names_in(text: str) -> list[str]:
    """The names in "a, b"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _indices(dataset: Dataset, names: str) -> NDArray[np.int64]:
    return np.unique(np.concatenate([dataset.split_indices(name) for name in _names_in(names)]))


def _named(dataset: Dataset, name: str) -> NDArray[np.int64] | None:
    try:
        return dataset.split_indices(name)
    except DataError:
        return None


def _held_out(dataset: Dataset, pool: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int64]:
    """A part of the pool by the seed, without the last picture of any class that would be left to learn from."""
    if config.data.val_fraction == 0 or len(pool) < 2:
        return np.zeros(0, np.int64)
    count = min(len(pool) - 1, max(LEAST_HELD_OUT, round(len(pool) * config.data.val_fraction)))
    labels, offsets = dataset.columns.labels, dataset.columns.offsets
    classes = {i: frozenset(labels[offsets[i] : offsets[i + 1]].tolist()) for i in pool.tolist()}
    left = Counter(label for found in classes.values() for label in found)
    chosen: list[int] = []
    for i in np.random.default_rng((config.run.seed, HOLD_OUT_STREAM)).permutation(pool).tolist():
        if len(chosen) < count and all(left[label] > 1 for label in classes[i]):
            chosen.append(i)
            left.subtract(classes[i])
    # Pictures without objects alone would validate nothing.
    return np.sort(np.array(chosen, np.int64)) if any(classes[i] for i in chosen) else np.zeros(0, np.int64)


def _only_classes(dataset: Dataset, text: str) -> Dataset:
    names = [text] if text in dataset.class_map.names else _names_in(text)  # a name with a comma can be given alone
    if not names:
        raise OptionError(f"classes={text!r} names no class; leave it out for all classes")
    chosen = dataset.class_map.select(names)
    kept = ClassMap(tuple(dataset.class_map.names[i] for i in chosen), tuple(dataset.class_map.ids[i] for i in chosen))
    new_label = np.full(len(dataset.class_map), -1)
    new_label[list(chosen)] = np.arange(len(chosen))

    def records() -> Iterator[ImageRecord]:
        for record in dataset:
            labels = new_label[record.labels]
            keep = labels >= 0
            yield replace(
                record,
                boxes_xyxy=record.boxes_xyxy[keep],
                labels=labels[keep],
                crowd=record.crowd[keep],
                difficult=record.difficult[keep],
                truncated=record.truncated[keep],
                occluded=record.occluded[keep],
                area=record.area[keep],
            )

    smaller = Dataset.from_records(records(), kept, root=dataset.root)
    smaller.findings, smaller.origin = dataset.findings, dataset.origin
    return smaller


def fingerprint(learnt: Dataset, validated: Dataset | None) -> str:
    """Digest of the annotations and file names; the pictures themselves are not read."""
    digest = hashlib.sha256()
    for part in (learnt, validated):
        if part is None:
            continue
        columns = part.columns
        digest.update("\0".join(part.class_map.names).encode())
        digest.update("\0".join(columns.paths[i] for i in range(len(part))).encode())
        for values in (columns.offsets, columns.boxes_xyxy, columns.labels, columns.flags):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
