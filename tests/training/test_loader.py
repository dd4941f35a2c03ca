"""Batches: every picture once an epoch, the same ones however many processes make them."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from short_runs import CLASSES, config, training_pictures

from multibox.data import Dataset, ImageRecord, read_dataset
from multibox.errors import ContractError, ImageError, MultiboxError
from multibox.pictures.read import picture_size_hw
from multibox.spec.preprocess import Preprocess
from multibox.training.loader import (
    Batch,
    EpochBatches,
    TrainingPictures,
    collate,
    make_loader,
    open_cache,
    to_network,
)
from multibox.training.options import AugmentOptions
from multibox.training.sample import Sample

PLAIN = AugmentOptions(flip=0, photometric=0, zoom_out=0, crop=0, interpolation=0)


def batches_of(
    pictures: TrainingPictures, epochs: int = 2, *, workers: int = 0, context: str | None = None
) -> list[Batch]:
    order = EpochBatches(len(pictures), 4, seed=pictures.seed)
    loader = make_loader(pictures, order, workers=workers, pin=False)
    if context:
        loader.multiprocessing_context = context
    found = []
    for epoch in range(epochs):
        order.start(epoch)
        found += list(loader)
    return found


def assert_equal(actual: list[Batch], expected: list[Batch]) -> None:
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.equal(mine.pixels, theirs.pixels)
        assert (mine.numbers, mine.failures) == (theirs.numbers, theirs.failures)
        for a, b in zip(mine.targets, theirs.targets, strict=True):
            assert torch.equal(a.truth_unit_xyxy, b.truth_unit_xyxy)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.ignore, b.ignore)


# ------------------------------------------------------------------------------------------------ the order


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 2**31))
def test_every_epoch_has_every_picture_and_equal_batches(count: int, batch: int, epoch: int, seed: int) -> None:
    order = EpochBatches(count, batch, seed=seed)
    order.start(epoch)
    parts = list(order)
    assert len(parts) == len(order) == -(-count // batch)
    assert {len(part) for part in parts} == {batch}
    assert {e for part in parts for e, _ in part} == {epoch}
    numbers = [number for part in parts for _, number in part]
    assert sorted(numbers[:count]) == list(range(count))
    assert all(numbers[i] == numbers[i % count] for i in range(len(numbers)))


def test_orders_differ_between_epochs_and_seeds_alone() -> None:
    def numbers(seed: int, epoch: int) -> list[int]:
        order = EpochBatches(50, 5, seed=seed)
        order.start(epoch)
        return [number for part in order for _, number in part]

    assert numbers(1, 2) == numbers(1, 2)
    assert len({tuple(numbers(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_the_parts_of_all_processes_are_the_batches_of_one(count: int, world: int, each: int, epoch: int) -> None:
    orders = [EpochBatches(count, world * each, seed=9, rank=rank, world=world) for rank in range(world)]
    alone = EpochBatches(count, world * each, seed=9)
    for order in (*orders, alone):
        order.start(epoch)
    for *parts, whole in zip(*orders, alone, strict=True):
        assert {len(part) for part in parts} == {each}
        assert [part[i] for i in range(each) for part in parts] == whole


def test_an_epoch_can_begin_at_any_batch() -> None:
    order = EpochBatches(11, 3, seed=0)
    order.start(4)
    whole = list(order)
    for first in range(len(order) + 1):
        order.start(4, first)
        assert list(order) == whole[first:]
        assert len(order) == 4


# ------------------------------------------------------------------------------------------------ batches


def test_batches_are_the_same_for_any_number_of_workers(pictures: Path) -> None:
    expected = batches_of(training_pictures(pictures))
    assert {n for batch in expected[:3] for n in batch.numbers} == set(range(9))
    assert not torch.equal(expected[0].pixels, expected[3].pixels)
    for workers in (1, 2):
        assert_equal(batches_of(training_pictures(pictures), workers=workers), expected)


def half_grey(sample: Sample, rng: np.random.Generator) -> Sample:
    rgb = sample.rgb.copy()
    rgb[: len(rgb) // 2] = rng.integers(256)
    return Sample(rgb, sample.boxes_xyxy, sample.labels, sample.ignore)


@pytest.mark.slow
def test_pictures_can_be_sent_to_a_spawned_worker(pictures: Path) -> None:
    made = training_pictures(pictures, cache=open_cache("ram", 1, workers=1, path=Path(), sizes_hw=None))
    assert_equal(batches_of(pickle.loads(pickle.dumps(made)), 1), batches_of(made, 1))
    assert_equal(batches_of(made, 1, workers=1, context="spawn"), batches_of(made, 1))


@pytest.mark.parametrize("options", [{}, {"mosaic": 1.0}])
def test_two_processes_together_make_the_batch_of_one(pictures: Path, options: dict[str, Any]) -> None:
    made = training_pictures(pictures, options=AugmentOptions(**options))
    alone = make_loader(made, EpochBatches(9, 4, seed=3), workers=0, pin=False)
    parts = [make_loader(made, EpochBatches(9, 4, seed=3, rank=r, world=2), workers=0, pin=False) for r in range(2)]
    for whole, *halves in zip(alone, *parts, strict=True):
        for rank, half in enumerate(halves):
            assert half.numbers == whole.numbers[rank::2]
            assert torch.equal(half.pixels, whole.pixels[rank::2])
            for mine, theirs in zip(half.targets, whole.targets[rank::2], strict=True):
                assert torch.equal(mine.truth_unit_xyxy, theirs.truth_unit_xyxy)


def test_making_batches_draws_nothing_from_torchs_random_numbers(pictures: Path) -> None:
    before = torch.get_rng_state()
    batches_of(training_pictures(pictures), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_boxes_stay_on_their_objects(pictures: Path) -> None:
    made = training_pictures(pictures, options=PLAIN)
    for batch in batches_of(made, 1):
        for row, number in enumerate(batch.numbers):
            record = made.annotations[number]
            height, width = picture_size_hw(made.annotations.picture_path(number))
            unit = record.boxes_xyxy / np.array([width, height, width, height])
            np.testing.assert_allclose(batch.targets[row].truth_unit_xyxy, unit, atol=1e-6)
            assert batch.targets[row].labels.tolist() == record.labels.tolist()
            for (x1, y1, x2, y2), label in zip(unit, record.labels, strict=True):
                colour = batch.pixels[row, int(24 * (y1 + y2)), int(32 * (x1 + x2))]
                assert colour.argmax() == label or len(unit) > 1  # a later box may cover it


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_network_gets_what_it_gets_in_prediction(pictures: Path, order: Any) -> None:
    spec = Preprocess((48, 64), colour_order=order, mean=(10.0, 20.0, 30.0), scale=(0.5, 0.25, 1.0))
    made = TrainingPictures(read_dataset(pictures).split("train"), spec, None, 0)
    item, number, _ = made[0, 2]
    fed = to_network(collate([(item, number, ())]).pixels, spec)
    expected, _ = spec(made.sample(2).rgb)
    assert fed.shape == (1, 3, 48, 64)
    assert (fed[0] - torch.from_numpy(expected)).abs().amax(dim=(1, 2)).tolist() <= [
        0.5 * scale + 1e-4 for scale in spec.scale
    ]


def records_of(tmp_path: Path, *boxes: Any, **flags: Any) -> TrainingPictures:
    Image.new("RGB", (40, 20)).save(tmp_path / "one.png")
    record = ImageRecord("one.png", 1, (20, 40), np.array(boxes, np.float32), np.zeros(len(boxes), np.int64), **flags)
    return TrainingPictures(Dataset.from_records([record], CLASSES, root=tmp_path), Preprocess((20, 40)), None, 0)


def test_boxes_without_area_are_left_out_and_others_cut(tmp_path: Path) -> None:
    made = records_of(tmp_path, (5, 5, 5, 9), (30, 9, 10, 2), (50, 5, 60, 9), (-10, -10, 10, 10), (30, 10, 70, 70))
    sample, _, _ = made[0, 0]
    assert sample.boxes_xyxy.tolist() == [[0, 0, 10, 10], [30, 10, 40, 20]]
    assert collate([made[0, 0]]).targets[0].truth_unit_xyxy.tolist() == [[0, 0, 0.25, 0.5], [0.75, 0.5, 1, 1]]


@pytest.mark.parametrize(("ignored", "expected"), [(False, [True, False, False]), (True, [True, True, False])])
def test_crowds_are_ignored_and_difficult_objects_on_request(
    ignored: bool, expected: list[bool], tmp_path: Path
) -> None:
    flags = {"crowd": np.array([True, False, False]), "difficult": np.array([False, True, False])}
    made = records_of(tmp_path, (0, 0, 9, 9), (9, 9, 19, 19), (20, 0, 30, 10), **flags)
    made.ignore_difficult = ignored
    assert collate([made[0, 0]]).targets[0].ignore.tolist() == expected


# ------------------------------------------------------------------------------------------------ unreadable pictures


@pytest.fixture
def damaged(tmp_path: Path) -> TrainingPictures:
    """Six pictures, of which 1, 2 and 5 cannot be read."""
    records = []
    for number in range(6):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
        if number in (1, 2):
            (tmp_path / f"{number}.png").write_bytes(b"no picture")
        records.append(
            ImageRecord(f"{number}.png", number, None, np.array([[2, 2, 9, 9]]), np.array([0]), split="train")
        )
    (tmp_path / "5.png").unlink()
    dataset = Dataset.from_records(records, CLASSES, root=tmp_path)
    return TrainingPictures(dataset, Preprocess((20, 20)), None, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_picture_takes_the_place_of_an_unreadable_one(damaged: TrainingPictures, workers: int) -> None:
    order = EpochBatches(6, 6, seed=0)
    (batch,) = make_loader(damaged, order, workers=workers, pin=False)
    wanted = [number for _, number in next(iter(order))]
    assert batch.numbers == tuple({1: 3, 2: 3, 5: 0}.get(number, number) for number in wanted)
    assert batch.pixels[:, 0, 0, 0].tolist() == list(batch.numbers)
    names = sorted(Path(path).name for path, _ in batch.failures)
    assert names == ["1.png", "2.png", "2.png", "5.png"]
    assert all(reason for _, reason in batch.failures)


@pytest.mark.parametrize("tried", [2, 50])
def test_a_mosaic_goes_without_unreadable_pictures(
    damaged: TrainingPictures, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multibox.training.loader.NEIGHBOURS", tried)
    damaged.options = AugmentOptions(mosaic=1.0)
    for epoch in range(5):
        assert damaged[epoch, 0][0].rgb.shape == (20, 20, 3)


def test_nothing_readable_is_an_error(damaged: TrainingPictures) -> None:
    for number in range(6):
        damaged.annotations.picture_path(number).write_bytes(b"")
    with pytest.raises(ImageError, match=r"2\.png: and 5 after it cannot be read \(.*\); check the data set"):
        damaged[0, 2]


# ------------------------------------------------------------------------------------------------ caches


def sizes_of(made: TrainingPictures) -> np.ndarray:
    count = len(made)
    return np.array([picture_size_hw(made.annotations.picture_path(i)) for i in range(count)], np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [1, 60e-6, 1e-9, 0])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cached_pictures_are_the_same(
    kind: str, workers: int, gigabytes: float, pictures: Path, tmp_path: Path
) -> None:
    plain = training_pictures(pictures)
    cache = open_cache(kind, gigabytes, workers=workers, path=tmp_path / "cache", sizes_hw=sizes_of(plain))
    cached = training_pictures(pictures, cache=cache)
    assert_equal(batches_of(cached, 3, workers=workers), batches_of(plain, 3))
    if kind == "disk":
        assert (tmp_path / "cache").stat().st_size <= gigabytes * 1e9 + 9


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cached_picture_is_read_once(
    kind: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training_pictures(pictures)
    made.cache = open_cache(kind, 1, workers=0, path=tmp_path / "cache", sizes_hw=sizes_of(made))
    expected = [made[0, number][0].rgb for number in range(9)]

    def refuse(_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("multibox.training.loader.read_picture", refuse)
    for number in range(9):
        assert np.array_equal(made[0, number][0].rgb, expected[number])


def test_the_cache_in_memory_is_bounded(pictures: Path) -> None:
    made = training_pictures(pictures)
    made.cache = open_cache("ram", 60e-6, workers=2, path=Path(), sizes_hw=None)
    for number in range(9):
        made.sample(number)
    assert made.cache.used == sum(
        (rgb.base if rgb.base is not None else rgb).nbytes for rgb in made.cache.kept.values()
    )
    assert 0 < made.cache.used <= 30_000


@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
def test_a_transform_cannot_change_what_is_cached(kind: str, pictures: Path, tmp_path: Path) -> None:
    def vandal(sample: Sample, rng: np.random.Generator) -> Sample:
        sample.rgb[:] = 0
        return sample

    made = training_pictures(pictures, transforms=(vandal,))
    made.cache = open_cache(kind, 1, workers=0, path=tmp_path / "cache", sizes_hw=sizes_of(made))
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            made[0, 0]


def test_a_picture_of_another_size_than_expected_is_not_cached(pictures: Path, tmp_path: Path) -> None:
    made = training_pictures(pictures)
    sizes = sizes_of(made)
    sizes[0] = (sizes[0][0] + 1, sizes[0][1])
    sizes[1] = 0
    made.cache = open_cache("disk", 1, workers=0, path=tmp_path / "cache", sizes_hw=sizes)
    for _ in range(2):
        for number in range(3):
            assert np.array_equal(made.sample(number).rgb, training_pictures(pictures).sample(number).rgb)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space on the disk cannot be reserved here")
def test_no_room_for_the_cache_is_said_before_training(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    sizes = sizes_of(training_pictures(pictures))
    with pytest.raises(
        MultiboxError, match=r"cache: no room for .* GB of decoded pictures \(No space left on device\)"
    ):
        open_cache("disk", 1, workers=0, path=tmp_path / "cache", sizes_hw=sizes)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------------ users' transforms


def brighter(sample: Sample, rng: np.random.Generator, *, amount: int) -> Sample:
    rgb = np.minimum(sample.rgb.astype(np.int64) + amount, 255).astype(np.uint8)
    return Sample(rgb, sample.boxes_xyxy, sample.labels, sample.ignore)


def test_own_transforms_are_applied_in_order(pictures: Path) -> None:
    seen: list[np.ndarray] = []

    def look(sample: Sample, rng: np.random.Generator) -> Sample:
        seen.append(sample.rgb)
        return sample

    steps = (look, functools.partial(brighter, amount=200), look, half_grey, look)
    made = training_pictures(pictures, options=PLAIN, transforms=steps)
    made[0, 0]
    before, light, half = seen
    assert np.array_equal(light, np.minimum(before.astype(np.int64) + 200, 255))
    assert np.array_equal(half[len(half) // 2 :], light[len(half) // 2 :])
    assert len(np.unique(half[: len(half) // 2])) == 1


def test_own_transforms_see_every_picture_of_a_mosaic(pictures: Path) -> None:
    made = training_pictures(pictures, options=AugmentOptions(mosaic=1), transforms=(half_grey,))
    calls: list[int] = []

    def count(sample: Sample, rng: np.random.Generator) -> Sample:
        calls.append(1)
        return sample

    made.transforms = (count,)
    made[0, 0]
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: None, "bad on .*000.jpg returned a sample that is a NoneType"),
        (lambda s: Sample(s.rgb / 2, s.boxes_xyxy, s.labels, s.ignore), "has rgb of float64"),
        (lambda s: Sample(s.rgb, s.boxes_xyxy + 500, s.labels, s.ignore), "is outside the picture"),
        (lambda s: Sample(s.rgb, s.boxes_xyxy, s.labels[:0], s.ignore), "these must be equally many"),
    ],
)
def test_what_a_transform_returns_is_checked(change: Any, message: str, pictures: Path) -> None:
    def bad(sample: Sample, rng: np.random.Generator) -> Sample:
        return change(sample)

    made = training_pictures(pictures, transforms=(bad,))
    with pytest.raises(ContractError, match=message):
        made[0, 0]


def test_transforms_have_numbers_of_their_own_for_each_picture_and_epoch(pictures: Path) -> None:
    drawn: list[float] = []

    def draw(sample: Sample, rng: np.random.Generator) -> Sample:
        drawn.append(rng.random())
        return sample

    made = training_pictures(pictures, transforms=(draw,))
    for epoch in range(3):
        for number in range(9):
            made[epoch, number]
    assert len(set(drawn)) == 27
    made[1, 4]
    assert drawn[-1] == drawn[9 + 4]


def test_the_seed_changes_the_augmentation(pictures: Path) -> None:
    first, second = (training_pictures(pictures, seed=seed)[0, 0][0].rgb for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert config(pictures).run.seed == 0


@pytest.mark.slow
def test_nothing_of_the_batches_is_left_when_the_interpreter_goes() -> None:
    """Else torch may print an error for each that workers have handed over, depending on what it takes down first."""
    code = """
        import atexit
        from torch.multiprocessing.reductions import shared_cache
        atexit.register(lambda: print("left:", len(shared_cache)))  # runs after what is registered later
        import torch
        from torch.utils.data import DataLoader
        import multibox.training.loader
        if __name__ == "__main__":
            for batch in DataLoader([torch.zeros(4)] * 6, num_workers=1):
                pass
            del batch
            print("before:", len(shared_cache))
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    before, left = (int(line.split()[1]) for line in done.stdout.splitlines())
    assert (before > 0, left, done.stderr) == (True, 0, "")
