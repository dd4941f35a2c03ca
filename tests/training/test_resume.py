"""A run that was killed or asked to stop goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from short_runs import (
    Command,
    arguments,
    assert_same_run,
    config,
    run_folder,
    state_of,
    write_pictures,
)

from multibox.doctor.anchors import save_anchor_spec
from multibox.errors import ModelFileError, MultiboxError, OptionError
from multibox.models import create_model
from multibox.training.config import to_toml
from multibox.training.loop import Trainer
from multibox.training.run import resume, train

pytestmark = pytest.mark.slow

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
UPDATES = 9  # of a run of `options`

RUNS: dict[str, dict[str, Any]] = {
    "sgd, average": {},
    "adamw, no average": {"optimizer": "adamw", "lr0": 1e-3, "ema": 0},
    "accumulating, a worker": {"workers": 1, "accumulate": 2, "optimizer": "adamw", "lr0": 1e-3},
    "sgd, a worker, disk": {"workers": 1, "cache": "disk", "validation": "every second"},
    "ssdlite": {"model": "ssdlite300_mobilenetv2", "imgsz": 96, "freeze": 2, "epochs": 1, "warmup": 0, "batch": 5},
}

SIGNAL_AFTER_UPDATE = """
import os, signal
from multibox.training.loop import Trainer
plain = Trainer.update
def update(self, rate=None):
    plain(self, rate)
    if self.progress.updates == {count}:
        {act}(os.getpid(), signal.{name})
Trainer.update = update
"""

KILL_AT_WRITE = """
import os, pathlib, signal
plain, done = pathlib.Path.replace, []
def replace(self, target):
    done.append(target)
    if len(done) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, target)
pathlib.Path.replace = replace
"""

SIGNAL_WHILE_VALIDATING = """
import os, signal
from multibox.training import loop
plain = loop.evaluate
def evaluate(*given, **named):
    os.killpg(0, signal.{name})
    return plain(*given, **named)
loop.evaluate = evaluate
"""


def changes_of(name: str) -> dict[str, Any]:
    changes = dict(RUNS[name])
    return {**changes, "val_every": 2} if changes.pop("validation", None) else changes


@pytest.fixture(scope="module")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    done: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("uninterrupted")
            changes = {key: value for key, value in changes_of(name).items() if key not in ("workers", "cache")}
            assert train(config(pictures, **changes), folder=done[name]).finished
        return done[name]

    return folder_of


@needs_posix
@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("sgd, average", count) for count in (1, 3, 4, UPDATES)),
        ("adamw, no average", 5),
        ("accumulating, a worker", 3),
        ("sgd, a worker, disk", 7),
        ("ssdlite", 2),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    name: str, count: int, pictures: Path, uninterrupted: Callable[[str], Path], commands: Any, tmp_path: Path
) -> None:
    kill = SIGNAL_AFTER_UPDATE.format(count=count, act="os.kill", name="SIGKILL")
    given = arguments(pictures, **changes_of(name), save_every=0, project="runs")
    assert commands("train", *given, cwd=tmp_path, first=kill).wait() == -signal.SIGKILL
    folder = tmp_path / "runs" / "train"
    _, state = state_of(folder)
    assert state["progress"]["updates"] == count - 1
    assert resume(folder, save_every=100).finished
    assert_same_run(folder, uninterrupted(name))
    assert not list(folder.rglob("*.cache"))


@needs_posix
def test_another_number_of_threads_is_said(
    pictures: Path, commands: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill = SIGNAL_AFTER_UPDATE.format(count=3, act="os.kill", name="SIGKILL")
    given = arguments(pictures, save_every=0, project="runs")
    first = f"import torch\ntorch.set_num_threads({torch.get_num_threads() + 1})\n{kill}"
    assert commands("train", *given, cwd=tmp_path, first=first).wait() == -signal.SIGKILL
    assert resume(tmp_path / "runs" / "train", quiet=False).finished
    note = f"saved by torch with {torch.get_num_threads() + 1} threads, now it has {torch.get_num_threads()}: "
    assert note in capsys.readouterr().err


@needs_posix
@pytest.mark.parametrize("count", [6, 7, 8, 12])
def test_a_run_killed_while_it_writes_goes_on_bit_for_bit(
    count: int, pictures: Path, uninterrupted: Callable[[str], Path], commands: Any, tmp_path: Path
) -> None:
    given = arguments(pictures, save_every=0, project="runs")
    kill = KILL_AT_WRITE.format(count=count)  # epochs end with last, best (6 and 7 in the first) and the state
    assert commands("train", *given, cwd=tmp_path, first=kill).wait() == -signal.SIGKILL
    folder = tmp_path / "runs" / "train"
    assert len(list(folder.rglob(".*.partial*"))) == 1
    assert resume(folder).finished
    assert_same_run(folder, uninterrupted("sgd, average"))
    assert not list(folder.rglob(".*.partial*"))


def test_a_run_without_saves_within_epochs_goes_on_from_the_epoch(
    pictures: Path, uninterrupted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Lost(Exception):
        pass

    plain = Trainer.update

    def update(self: Trainer, rate: float | None = None) -> None:
        plain(self, rate)
        if self.progress.updates == 5:
            raise Lost

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(Lost):
        train(config(pictures), folder=tmp_path)
    monkeypatch.undo()
    assert state_of(tmp_path)[1]["progress"]["updates"] == 3
    assert resume(tmp_path).finished
    assert_same_run(tmp_path, uninterrupted("sgd, average"))


@needs_posix
@pytest.mark.parametrize(
    ("name", "first", "changes", "where"),
    [
        ("SIGTERM", SIGNAL_AFTER_UPDATE.format(count=5, act="os.kill", name="SIGTERM"), {}, "epoch 2, step 2"),
        ("SIGINT", SIGNAL_AFTER_UPDATE.format(count=1, act="os.kill", name="SIGINT"), {}, "epoch 1, step 1"),
        (
            "SIGTERM",
            SIGNAL_AFTER_UPDATE.format(count=4, act="os.killpg", name="SIGTERM"),
            {"workers": 1},
            "epoch 2, step 1",
        ),
        ("SIGINT", SIGNAL_WHILE_VALIDATING.format(name="SIGINT"), {"workers": 1}, "epoch 2, step 0"),
        ("SIGTERM", SIGNAL_WHILE_VALIDATING.format(name="SIGTERM"), {"workers": 1}, "epoch 2, step 0"),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(
    name: str,
    first: str,
    changes: dict[str, Any],
    where: str,
    pictures: Path,
    uninterrupted: Callable[[str], Path],
    commands: Any,
    tmp_path: Path,
) -> None:
    given = arguments(pictures, **changes, quiet=False, project="runs")
    command: Command = commands("train", *given, cwd=tmp_path, first=first)
    assert command.wait() == 130, command.err
    assert command.err.count(f"{name}: saving after this step") == 1
    stopped = f"stopped and saved in {where}; go on with: multibox train --resume "
    last = command.err.splitlines()[-1]
    assert last.startswith(stopped), command.err
    assert command.out == ""
    folder = tmp_path / last.removeprefix(stopped)
    assert resume(folder, quiet=True).finished
    assert_same_run(folder, uninterrupted("sgd, average"))


@needs_posix
def test_a_second_signal_ends_at_once(pictures: Path, commands: Any, tmp_path: Path) -> None:
    twice = SIGNAL_AFTER_UPDATE.format(count=2, act="os.kill(os.getpid(), 2); os.kill", name="SIGINT")
    given = arguments(pictures, project="runs", quiet=False)
    assert commands("train", *given, cwd=tmp_path, first=twice).wait() == -signal.SIGINT


def test_a_signal_at_the_very_end_does_not_undo_it(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = Trainer.update

    def update(self: Trainer, rate: float | None = None) -> None:
        plain(self, rate)
        self.stop_requested = self.progress.updates == UPDATES

    monkeypatch.setattr(Trainer, "update", update)
    assert train(config(pictures), folder=tmp_path).finished


def test_a_finished_run_stays_as_it_is(pictures: Path, uninterrupted: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(uninterrupted("sgd, average"), tmp_path / "copy")
    result = resume(tmp_path / "copy")
    assert result.finished
    assert result.best_epoch == state_of(tmp_path / "copy")[1]["progress"]["best_epoch"]
    assert_same_run(tmp_path / "copy", uninterrupted("sgd, average"))
    rows = (tmp_path / "copy" / "results.csv").read_text().splitlines()
    assert len(rows) == 4


def test_a_run_that_ended_for_want_of_progress_does_not_start_again(pictures: Path, tmp_path: Path) -> None:
    result = train(config(pictures, epochs=6, lr0=1e-6, patience=2), folder=tmp_path)
    assert result.finished
    assert len(result.history) < 6
    assert resume(tmp_path).history == result.history


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"is no run folder \(it has no config\.toml\)"):
        resume(tmp_path)
    with pytest.raises(OptionError, match="is no run folder"):
        resume(tmp_path / "absent")


def test_a_run_without_state_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(to_toml(config(pictures)))
    with pytest.raises(ModelFileError, match=r"last\.resume\.safetensors: no such file; .* config\.toml as recipe"):
        resume(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no state of a training run"),
        (b"nonsense, but long enough for a header", "holds no state of a training run"),
        ("weights", "holds no state of a training run"),
        ("newer", "was written by another version"),
        ("short", "holds no state of a training run"),
    ],
)
def test_a_damaged_state_is_refused(
    content: Any, message: str, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(uninterrupted("sgd, average"), folder)
    path = folder / "weights" / "last.resume.safetensors"
    if content == "weights":
        shutil.copy(folder / "weights" / "last.safetensors", path)
    elif content == "newer":
        path.write_bytes(path.read_bytes().replace(b'\\"format\\": 2', b'\\"format\\": 3'))
    else:
        path.write_bytes(path.read_bytes()[:5000] if content == "short" else content)
    with pytest.raises(ModelFileError, match=message):
        resume(folder)


@pytest.mark.parametrize("change", ["box", "class", "picture", "split"])
def test_other_data_is_refused(change: str, uninterrupted: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_pictures(tmp_path)
    folder = run_folder(tmp_path / "run")
    train(config(data, epochs=1, warmup=0), folder=folder)
    label = next(path for path in sorted((data / "labels" / "train").iterdir()) if path.stat().st_size)
    if change == "box":
        label.write_text(label.read_text() + "0 0.5 0.5 0.25 0.25\n")
    elif change == "class":
        file = data / "data.yaml"
        file.write_text(file.read_text().replace("red box", "blue box"))
    elif change == "picture":
        (data / "images" / "train" / f"{label.stem}.jpg").unlink()
        label.unlink()
    else:
        (data / "images" / "train" / f"{label.stem}.jpg").rename(data / "images" / "val" / f"{label.stem}.jpg")
        label.rename(data / "labels" / "val" / label.name)
    with pytest.raises(MultiboxError, match=r"is not what .* was started with; restore them, or start a new run"):
        resume(folder)


def test_other_default_boxes_are_refused(pictures: Path, tmp_path: Path) -> None:
    boxes, folder = tmp_path / "boxes.json", run_folder(tmp_path / "run")
    spec = create_model("tinyssd256").spec.anchors
    save_anchor_spec(boxes, spec)
    train(config(pictures, epochs=1, warmup=0, anchors=str(boxes)), folder=folder)
    levels = tuple(tuple((w * 1.1, h) for w, h in level) for level in spec.levels)
    save_anchor_spec(boxes, dataclasses.replace(spec, levels=levels))
    with pytest.raises(MultiboxError, match=r"the default boxes \(model=, anchors=\) are not those"):
        resume(folder)


@pytest.mark.parametrize("key", ["lr0", "epochs", "batch", "data", "model", "seed", "nonsense"])
def test_nothing_that_changes_the_result_can_be_given(key: str, uninterrupted: Callable[[str], Path]) -> None:
    with pytest.raises(OptionError, match=f"{key} cannot be changed in a resumed run, only cache, cache_gb, device"):
        resume(uninterrupted("sgd, average"), **{key: 1})
