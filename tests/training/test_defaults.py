"""What a run decides for itself: whether the start is kept, how long and how fast it learns, what is held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from short_runs import CLASSES, Recorder, config, random_records, run_folder

from multibox.data import Dataset, ImageRecord
from multibox.spec.classes import ClassMap
from multibox.training import console
from multibox.training.config import TrainConfig, from_toml, merge, to_toml
from multibox.training.console import ConsoleLines
from multibox.training.preparation import prepared, suited
from multibox.training.progress import StepRecord
from multibox.training.run import resume, train
from multibox.training.splits import _held_out
from multibox.training.transfer import Start, start_from
from multibox.weights import load_detector, make_card, save_detector

# ------------------------------------------------------------------------------------------------ the start


@pytest.fixture(scope="module")
def learnt(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that score something on `pictures`."""
    folder = tmp_path_factory.mktemp("learnt")
    return train(config(pictures, epochs=6, batch=2, lr0=0.05, crop=0, zoom_out=0), folder=folder).best


@pytest.mark.slow
def test_a_start_that_no_epoch_beats_is_kept(learnt: Path, pictures: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    still = {"lr0": 1e-12, "warmup": 0, "ema": 0, "freeze_norm": True}  # nothing that the scores could gain by
    given = config(pictures, model=str(learnt), imgsz="", epochs=2, **still)
    result = train(given, folder=tmp_path, callbacks=[recorder])
    assert [row["epoch"] for row in result.history] == [row["epoch"] for row in recorder.rows] == [0, 1, 2]
    assert result.history[0]["AP"] is not None
    assert "loss" not in result.history[0]
    assert result.best_epoch == 0  # an equal AP is no better one
    start, best = load_detector(learnt)[0].state_dict(), load_detector(result.best)[0].state_dict()
    assert all(torch.equal(start[key], best[key]) for key in start)
    assert load_detector(result.best)[1].metrics["epoch"] == 0
    assert (tmp_path / "results.csv").read_text().count("\n") == 4


@pytest.mark.slow
def test_a_stop_before_the_first_step_leaves_the_start_to_be_validated(
    learnt: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multibox.training.loop import Trainer

    given = config(pictures, model=str(learnt), imgsz="", epochs=1, warmup=0)
    whole = train(given, folder=run_folder(tmp_path / "whole"))

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(given, folder=run_folder(tmp_path / "killed"))
    resumed = resume(tmp_path / "killed")
    numbers = [[row.get("AP"), row.get("loss")] for row in resumed.history]
    assert numbers == [[row.get("AP"), row.get("loss")] for row in whole.history]
    assert len(numbers) == 2


def test_new_classes_have_no_start_to_validate(pictures: Path, tmp_path: Path) -> None:
    assert [row["epoch"] for row in train(config(pictures, epochs=1, warmup=0), folder=tmp_path).history] == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, 0.6), ({"classes": "red box"}, 0.6), ({"nms_iou": 0.3}, 0.3), ({"model": "tinyssd256", "imgsz": 64}, 0.45)],
)
def test_suppression_stays_where_the_model_knows_every_class(
    changes: dict[str, Any], expected: float, learnt: Path, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.safetensors"
    detector, card = load_detector(learnt)
    spec = detector.spec
    detector.spec = dataclasses.replace(spec, postprocess=dataclasses.replace(spec.postprocess, nms_iou=0.6))
    save_detector(path, detector, make_card(detector, card.class_map, name="own"))
    given = config(pictures, **{"model": str(path), "imgsz": "", "new_nms_iou": 0.45, **changes})
    with prepared(given, tmp_path) as trainer:
        assert trainer.detector.spec.postprocess.nms_iou == expected


# ------------------------------------------------------------------------------------------------ rate and length


def start(names: tuple[str, ...], carried: tuple[str, ...]) -> Start:
    return Start(start_from("tinyssd256", ClassMap(names), size_hw=(64, 64)).detector, (), carried, "a model", "")


def dataset(folder: Path, count: int) -> Dataset:
    (folder / "made").mkdir()
    return Dataset.from_records(random_records(folder / "made", count), CLASSES, root=folder / "made")


DERIVED = {"epochs": 16, "known_epochs": 5, "least_updates": 12, "lr0": 1e-3, "known_lr0": 1e-4, "batch": 2}


@pytest.mark.parametrize(
    ("carried", "count", "given", "expected"),
    [
        (CLASSES.names, 12, {}, (5, 1e-4)),
        (CLASSES.names[:1], 12, {}, (16, 1e-3)),  # one class is new
        (CLASSES.names, 12, {"lr0": 2e-3}, (5, 2e-3)),  # what is given plainly stays
        (CLASSES.names, 12, {"epochs": 3}, (3, 1e-4)),
        (CLASSES.names, 2, {}, (12, 1e-4)),  # an epoch is one update
        ((), 12, {"least_updates": 97}, (17, 1e-3)),  # 6 updates an epoch
        ((), 12, {"least_updates": 97, "epochs": 2}, (2, 1e-3)),
        ((), 12, {"least_updates": 97, "accumulate": 3}, (49, 1e-3)),  # 2 updates an epoch
    ],
)
def test_rate_and_length_follow_from_what_is_new_and_how_much_there_is(
    carried: tuple[str, ...], count: int, given: dict[str, Any], expected: tuple[int, float], tmp_path: Path
) -> None:
    recipe = merge(TrainConfig(), {**DERIVED, **{k: v for k, v in given.items() if k == "least_updates"}})
    asked = merge(recipe, {k: v for k, v in given.items() if k != "least_updates"})
    said: list[str] = []
    found = suited(asked, start(CLASSES.names, carried), dataset(tmp_path, count), said.append)
    assert (found.optim.epochs, found.optim.lr0) == expected
    assert bool(said) == (expected != (asked.optim.epochs, asked.optim.lr0))
    path = tmp_path / "config.toml"
    path.write_text(to_toml(found))
    assert suited(from_toml(path), start(CLASSES.names, CLASSES.names), dataset_of_one(), said.append) == found


def dataset_of_one() -> Dataset:
    record = ImageRecord("0.jpg", 0, (60, 60), np.array([[1, 1, 9, 9]], np.float32), np.array([0]))
    return Dataset.from_records([record], CLASSES, root=Path())


# ------------------------------------------------------------------------------------------------ held out


def labelled(rows: list[list[int]]) -> Dataset:
    records = [
        ImageRecord(f"{i}.jpg", i, (60, 60), np.tile(np.float32([1, 1, 9, 9]), (len(row), 1)), np.array(row, np.int64))
        for i, row in enumerate(rows)
    ]
    return Dataset.from_records(records, CLASSES, root=Path())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("rows", "fraction", "held"),
    [
        ([[0], [], []], 0.5, 0),  # the only picture with an object is learnt from
        ([[0], [0, 1], []], 0.9, 1),  # the only one of the second class too
        ([[0], [0], [0], [0]], 0.1, 1),
        ([[0], [1]], 0.9, 0),
    ],
)
def test_no_class_is_left_without_a_picture(rows: list[list[int]], fraction: float, held: int, seed: int) -> None:
    data = labelled(rows)
    given = merge(TrainConfig(), {"val_fraction": fraction, "seed": seed})
    chosen = _held_out(data, np.arange(len(rows)), given).tolist()
    left = {label for i, row in enumerate(rows) if i not in chosen for label in row}
    assert left == {label for row in rows for label in row}
    assert sum(bool(rows[i]) for i in chosen) == held


# ------------------------------------------------------------------------------------------------ said


def test_a_log_has_a_line_for_a_tenth_of_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(epochs: int, steps: int) -> list[str]:
        shown = ConsoleLines(epochs)
        for epoch in range(epochs):
            for step in range(1, steps + 1):
                shown.on_step(StepRecord(epoch, step, steps, 2.0, 1.0, 5, 0.01, 0.25, 0.5, 8))
            row = dict.fromkeys(("loss", "class_loss", "box_loss", "images_per_second", "waiting_share"), 1.0)
            shown.on_epoch({"epoch": epoch + 1, **row})
        return capsys.readouterr().err.splitlines()

    assert [line.split("  ")[0] for line in lines(3, 40)] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    many = lines(232, 3)
    assert len(many) == 11
    assert many[-1].startswith("epoch 232/232")
    monkeypatch.setattr(console, "LONG_SILENCE", 0.0)  # as if every step took long
    assert len(lines(2, 500)) == 10
    assert len(lines(232, 3)) <= 21
