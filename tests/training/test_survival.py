"""What can go wrong while training: it is said, nothing saved is lost, and the run goes on where it can."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import time
import weakref
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from short_runs import Recorder, assert_same_run, config, run_folder, state_of, write_pictures
from torch.utils.data import DataLoader, get_worker_info

from multibox.errors import MultiboxError, OptionError
from multibox.training import loop
from multibox.training.checkpoint import RunFiles
from multibox.training.failures import TrainingError
from multibox.training.loop import Trainer
from multibox.training.preparation import prepared
from multibox.training.progress import StepRecord
from multibox.training.run import resume, train
from multibox.training.sample import Sample
from multibox.training.workers import prepare_worker, received
from multibox.weights import load_detector

pytestmark = pytest.mark.slow

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pictures(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_folder(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in which nothing went wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(config(pictures), folder=folder)
    return folder


def observed(data: Path, folder: Path, **changes: Any) -> tuple[Recorder, Any]:
    """What an observer of a run was told, and the error that ended it or None."""
    recorder = Recorder()
    with prepared(config(data, **changes), folder) as trainer:
        trainer.callbacks.append(recorder)
        try:
            trainer.run()
        except MultiboxError as error:
            return recorder, error
    return recorder, None


# ------------------------------------------------------------------------------------------------ unreadable pictures


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_is_reported_skipped_and_counted(data: Path, folder: Path, workers: int) -> None:
    lost = sorted((data / "images" / "train").iterdir())[3]
    lost.write_bytes(lost.read_bytes()[:200])
    unseen = sorted((data / "images" / "val").iterdir())[0]
    unseen.write_bytes(b"")
    recorder, error = observed(data, folder, workers=workers)
    assert error is None
    assert len(recorder.rows) == 3
    assert [row["skipped"] for row in recorder.rows] == [1, 2, 2] or recorder.rows[0]["skipped"] == 1
    assert recorder.rows[-1]["skipped"] == 2
    (first,) = [note for note in recorder.notes if note.startswith(f"{lost}: ")]
    (second,) = [note for note in recorder.notes if note.startswith(f"{unseen}: ")]
    assert first.endswith("; another picture takes its place")
    assert second.endswith("; the validation goes without it")
    assert len(recorder.notes) == 2


def test_unreadable_pictures_are_in_the_result(data: Path, folder: Path) -> None:
    lost = sorted((data / "images" / "train").iterdir())[0]
    lost.write_bytes(b"GIF89a")
    result = train(config(data), folder=folder)
    assert result.finished
    assert list(result.skipped) == [str(lost)]
    assert result.skipped[str(lost)]
    assert resume(folder).skipped == result.skipped


def test_a_validation_without_any_readable_picture_is_survived(data: Path, folder: Path) -> None:
    for path in (data / "images" / "val").iterdir():
        path.write_bytes(b"")
    recorder, error = observed(data, folder, epochs=2)
    assert error is None
    assert len(recorder.notes) == 3
    assert all(row.get("AP") is None for row in recorder.rows)
    assert (folder / "weights" / "best.safetensors").is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_picture_at_all_ends_the_run(data: Path, folder: Path, workers: int) -> None:
    for path in (data / "images" / "train").iterdir():
        path.write_bytes(b"")
    recorder, error = observed(data, folder, workers=workers)
    assert re.search(r"\.jpg: and 8 after it cannot be read \(.*\); check the data set$", str(error))
    assert "\n" not in str(error)
    assert recorder.ends == 1
    assert multiprocessing.active_children() == []  # though the error is still at hand, with its traceback


# ------------------------------------------------------------------------------------------------ not finite


@pytest.fixture
def one_green(data: Path) -> Path:
    """Data with a single green box, in one picture; the picture."""
    labels = sorted((data / "labels" / "train").iterdir())
    for label in labels:
        label.write_text("".join(line for line in label.read_text().splitlines(True) if line.startswith("0 ")))
    labels[0].write_text("0 0.2 0.2 0.2 0.2\n1 0.5 0.5 0.4 0.4\n0 0.8 0.8 0.2 0.2\n")
    return data / "images" / "train" / f"{labels[0].stem}.jpg"


def test_a_loss_that_is_not_finite_names_picture_and_box(
    data: Path, one_green: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.multibox_loss

    def poisoned(raw: Any, anchors: Any, targets: Any, **options: Any) -> Any:
        assert options["box_loss"] == "giou"
        losses = plain(raw, anchors, targets, **options)
        bad = any((target.labels == 1).any() for target in targets)
        return losses._replace(localization=losses.localization + math.inf) if bad else losses

    monkeypatch.setattr(loop, "multibox_loss", poisoned)
    changes = {"crop": 0, "zoom_out": 0, "flip": 0, "box_loss": "giou"}
    recorder, error = observed(data, folder, **changes)
    assert isinstance(error, TrainingError)
    assert re.search(r"the loss of step \d is not finite for ", str(error))
    assert f"{one_green} (boxes 1); written to {folder / 'nonfinite'}; look at these pictures" in str(error)
    (aside,) = (folder / "nonfinite").glob("*.json")
    content = json.loads(aside.read_text())
    assert content["picture"] == str(one_green)
    assert content["boxes_with_nonfinite_loss"] == [1]
    assert content["labels"][1] == "green box"
    assert content["unit_xyxy"][1] == pytest.approx([0.3, 0.3, 0.7, 0.7])
    with Image.open(aside.with_suffix(".png")) as image:
        assert image.size == (64, 64)
    assert recorder.ends == 1


def white(sample: Sample, rng: np.random.Generator) -> Sample:
    """A picture without objects becomes white."""
    rgb = sample.rgb if len(sample.labels) else np.full_like(sample.rgb, 255)
    return Sample(rgb, sample.boxes_xyxy, sample.labels, sample.ignore)


def test_a_picture_that_the_network_cannot_take_is_named(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.to_network

    def poisoned(pixels: Any, preprocess: Any) -> Any:
        images = plain(pixels, preprocess)
        images[(pixels == 255).all(dim=3).all(dim=2).all(dim=1)] = math.nan
        return images

    monkeypatch.setattr(loop, "to_network", poisoned)
    empty = [path.stem for path in sorted((data / "labels" / "train").iterdir()) if not path.stat().st_size]
    changes = {"crop": 0, "zoom_out": 0, "photometric": 0, "interpolation": 0, "freeze_norm": True}
    with pytest.raises(TrainingError, match=rf"is not finite for [^ ]*{empty[0]}\.jpg; written to") as caught:
        train(config(data, **changes), folder=folder, transforms=(white,))
    assert "boxes" not in str(caught.value).partition("written")[0]


def test_weights_that_have_diverged_are_told_from_bad_pictures(data: Path, folder: Path) -> None:
    with prepared(config(data), folder) as trainer:
        torch.nn.init.constant_(trainer.detector.heads[0].logits[0].bias, math.nan)
        with pytest.raises(TrainingError, match="so the weights have diverged: start anew with a smaller lr0"):
            trainer.run()


def test_pictures_that_are_fine_alone_are_not_blamed(data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loop.multibox_loss

    def poisoned(raw: Any, anchors: Any, targets: Any, **options: Any) -> Any:
        losses = plain(raw, anchors, targets, **options)
        return losses._replace(localization=losses.localization * (math.nan if len(targets) > 1 else 1))

    monkeypatch.setattr(loop, "multibox_loss", poisoned)
    _, error = observed(data, folder)
    assert str(error).startswith("the loss of step 0 is not finite, though that of each of its pictures is")


@pytest.mark.parametrize("clip_norm", [10, 0])
def test_a_gradient_that_is_not_finite_changes_no_weight(data: Path, folder: Path, clip_norm: float) -> None:
    with prepared(config(data, clip_norm=clip_norm), folder) as trainer:
        trainer.detector.heads[0].offsets[0].weight.register_hook(lambda gradient: gradient * math.inf)
        before = {key: value.clone() for key, value in trainer.detector.named_parameters()}
        with pytest.raises(TrainingError, match="the gradient of update 0 is not finite; no weight was changed"):
            trainer.run()
        assert all(torch.equal(value, before[key]) for key, value in trainer.detector.named_parameters())


# ------------------------------------------------------------------------------------------------ full disk


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """From now on so many files reach the disk, and no more."""
    left = [after]
    plain = os.fsync

    def fsync(number: int) -> None:
        if stat.S_ISREG(os.fstat(number).st_mode):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        plain(number)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("updates", [0, 1, 2])
def test_a_full_disk_leaves_the_old_state(
    updates: int, pictures: Path, folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch, after=2 + updates)  # the configuration, the first state, and one after each update
    message = r"last\.resume\.safetensors: cannot be written \(No space left on device\); what was saved before is unto"
    with pytest.raises(MultiboxError, match=message):
        train(config(pictures, save_every=0), folder=folder)
    monkeypatch.undo()
    assert not list(folder.rglob(".*.partial*"))
    assert state_of(folder)[1]["progress"]["updates"] == updates
    assert resume(folder, save_every=100).finished
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_full_disk_leaves_the_old_weights(
    name: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(data, epochs=1, warmup=0, val_split="none"), folder=folder)
    before = {path.name: path.read_bytes() for path in (folder / "weights").iterdir()}
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("epochs = 1\n", "epochs = 2\n"))
    fill_the_disk(monkeypatch, after=["last", "best"].index(name))
    with pytest.raises(MultiboxError, match=rf"{name}\.safetensors: cannot be written \(No space left on device\)"):
        resume(folder)
    monkeypatch.undo()
    after = {path.name: path.read_bytes() for path in (folder / "weights").iterdir()}
    assert after.keys() == before.keys()
    changed = {file for file in before if after[file] != before[file]}
    assert changed == (set() if name == "last" else {"last.safetensors"})


# ------------------------------------------------------------------------------------------------ out of memory


CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (
            RuntimeError(f"{CPU} 99 bytes.\nC++"),
            {},
            r"out of memory with batch=3 \(\[enforce .* 99 bytes\); start anew",
        ),
        (MemoryError(), {}, r"with batch=3 \(MemoryError\); start anew with batch=1 accumulate=3, which learns nearly"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), {"batch": 8, "accumulate": 2}, "batch=4 accumulate=4"),
        (MemoryError(), {"batch": 1}, "use a smaller imgsz or a smaller model"),
    ],
)
@pytest.mark.parametrize("where", ["_step", "update", "_validate"])
def test_too_little_memory_is_met_with_advice(
    where: str,
    error: Exception,
    changes: dict[str, Any],
    message: str,
    data: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, where, fail)
    recorder, found = observed(data, folder, epochs=1, warmup=0, **changes)
    assert isinstance(found, TrainingError)
    assert re.search(message, str(found))
    assert recorder.ends == 1


def test_other_errors_are_not_hidden(data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(RuntimeError, match=r"^a defect$"):
        train(config(data), folder=folder)


def test_single_pictures_for_batch_normalisation_are_refused(data: Path, folder: Path) -> None:
    changes = {"model": "ssdlite300_mobilenetv2", "imgsz": 96, "epochs": 1, "warmup": 0, "batch": 1}
    with pytest.raises(TrainingError, match="use batch=2 or more for each process, or freeze_norm=true"):
        train(config(data, **changes), folder=folder)


# ------------------------------------------------------------------------------------------------ workers


class Accident:
    """A transform that does something once in a worker, at its second picture, if its file is there."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what, self.calls = path, what, 0
        path.touch()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        self.calls += 1
        if get_worker_info() is None or self.calls < 8 or not self.path.exists():
            return sample
        self.path.unlink()
        if self.what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "ended":
            os._exit(3)
        if self.what == "memory":
            raise MemoryError
        if self.what == "defect":
            raise ZeroDivisionError("a defect of the user's")
        return Sample(sample.rgb / 2, sample.boxes_xyxy, sample.labels, sample.ignore)


@needs_posix
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("killed", r"DataLoader worker \(pid.*\) (is killed by signal: Killed|exited unexpectedly.*)"),
        ("ended", r"DataLoader worker \(pid.*\) exited unexpectedly.*"),
        ("memory", "Caught MemoryError in DataLoader worker process 0"),
    ],
)
def test_a_lost_worker_is_explained_and_the_run_can_go_on(
    what: str, reason: str, pictures: Path, folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    accident = Accident(tmp_path / "accident", what)
    saved = r"saved in epoch 1, step \d; go on with: multibox train --resume "
    advice = "often memory has run out: use fewer workers, or cache=none"
    message = rf"^a process that reads pictures has ended \({reason}\); {advice}; {saved}{re.escape(str(folder))}$"
    with pytest.raises(TrainingError, match=message):
        train(config(pictures, workers=1, save_every=0), folder=folder, transforms=(accident,))
    assert resume(folder, transforms=(accident,), workers=0, save_every=100).finished
    assert_same_run(folder, undisturbed)


CUT_OFF = [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError(2, "No such file")]


@needs_posix
@pytest.mark.parametrize("error", CUT_OFF)
def test_a_worker_lost_while_it_hands_over_a_batch_is_explained(
    error: Exception, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DataLoader.__iter__

    def cut_off(self: DataLoader[Any]) -> Any:
        yield from islice(plain(self), 1)
        raise error

    monkeypatch.setattr(DataLoader, "__iter__", cut_off)
    with pytest.raises(
        TrainingError, match=r"has ended \(DataLoader worker \(pid unknown\) exited unexpectedly: .*go on with"
    ):
        train(config(data, workers=1), folder=folder)


LOSE_A_WORKER = """
import multiprocessing, os, signal, sys, time
import torch
from contextlib import closing
from torch.utils.data import DataLoader
from multibox.training.workers import received, worker_losses_deferred
for _ in range(2):  # torch sets its handler when the first workers start, and only then
    before = signal.getsignal(signal.SIGCHLD)
    with worker_losses_deferred(), worker_losses_deferred():
        with closing(received(DataLoader(torch.zeros(64, 1), num_workers=1), workers=1)) as arriving:
            next(arriving)
            (worker,) = multiprocessing.active_children()
            worker.kill()
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # it has ended; torch may still ask
            print("still here")
            started = time.monotonic()
            try:
                next(arriving)
            except RuntimeError as error:
                print(error, time.monotonic() - started < 2)
        print("left:", multiprocessing.active_children())
    print("handler:", "torch" in str(getattr(signal.getsignal(signal.SIGCHLD), "__module__", None)))
"""


@needs_posix
def test_a_loss_is_reported_where_batches_are_received() -> None:
    """Not in the middle of something else, which may be moving weights, or take the error for its own."""
    done = subprocess.run([sys.executable, "-c", LOSE_A_WORKER], capture_output=True, text=True, check=False)
    killed = r"DataLoader worker \(pid \d+\) is killed by signal: Killed\.  True\n"
    assert re.fullmatch(rf"(still here\n{killed}left: \[\]\nhandler: True\n){{2}}", done.stdout), (
        done.stdout + done.stderr
    )
    assert done.stderr == ""


@needs_posix
def test_a_lost_worker_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch opens files after a broken connection, and its signal handler may raise before they are put away."""
    files: list[weakref.ref[Any]] = []

    def cut_off(*_: Any, **__: Any) -> Any:
        raise ConnectionResetError(104, "Connection reset by peer")

    def enter(self: ExitStack, file: Any) -> Any:
        files.append(weakref.ref(file))
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")

    batches = iter(DataLoader(torch.zeros(4, 1), num_workers=1))
    monkeypatch.setattr(batches._data_queue, "get", cut_off)
    monkeypatch.setattr(ExitStack, "enter_context", enter)
    with pytest.raises(RuntimeError, match="is killed by signal") as lost:
        next(received(batches, workers=1))
    monkeypatch.undo()
    assert lost.value.__traceback__ is not None  # which holds the functions it went through
    assert [file() for file in files] == [None]


def test_a_broken_connection_of_something_else_is_not_explained_away(data: Path, folder: Path) -> None:
    class Refused(Recorder):
        def on_step(self, record: StepRecord) -> None:
            raise ConnectionRefusedError(111, "Connection refused")

    with prepared(config(data), folder) as trainer:
        trainer.callbacks.append(Refused())
        with pytest.raises(ConnectionRefusedError):
            trainer.run()


@needs_posix
def test_a_worker_lost_by_a_resumed_run_is_explained_too(pictures: Path, folder: Path, tmp_path: Path) -> None:
    message = "saved in epoch 1, step 0; go on with: multibox train --resume "
    accident = Accident(tmp_path / "accident", "killed")
    with pytest.raises(TrainingError, match=message):
        train(config(pictures, workers=1), folder=folder, transforms=(accident,))
    accident = Accident(tmp_path / "accident", "killed")
    with pytest.raises(TrainingError, match=message):
        resume(folder, transforms=(accident,), workers=1)


def test_a_wrong_transform_is_named_from_a_worker_too(data: Path, folder: Path, tmp_path: Path) -> None:
    accident = Accident(tmp_path / "accident", "wrong")
    with pytest.raises(TrainingError, match=r"^Accident on .*\.jpg returned a sample that has rgb of float64 .*\]$"):
        train(config(data, workers=1), folder=folder, transforms=(accident,))


def test_a_defect_of_a_transform_keeps_its_traceback(data: Path, folder: Path, tmp_path: Path) -> None:
    accident = Accident(tmp_path / "accident", "defect")
    with pytest.raises(ZeroDivisionError, match="a defect of the user's"):
        train(config(data, workers=1), folder=folder, transforms=(accident,))


@needs_posix
@pytest.mark.parametrize("where", ["_step", "_validate", "save"])
def test_a_failed_run_leaves_no_process_behind(
    where: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        if where != "save" or multiprocessing.active_children():
            raise MultiboxError("a failure")

    monkeypatch.setattr(RunFiles if where == "save" else Trainer, where, fail)
    with pytest.raises(MultiboxError, match="a failure") as kept:
        train(config(data, workers=2), folder=folder)
    assert kept.value.__traceback__ is not None
    assert multiprocessing.active_children() == []


@needs_posix
def test_a_worker_obeys_the_request_to_end_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multibox.training.workers.GRACE", 2)
    heard, tell = multiprocessing.get_context("fork").Pipe(duplex=False)

    def work() -> None:
        prepare_worker(0)
        tell.send("ready")
        while not signal.getitimer(signal.ITIMER_REAL)[0]:
            time.sleep(0.01)
        tell.send("going on")
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    assert heard.recv() == "ready"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.terminate()
    assert heard.poll(20)
    assert heard.recv() == "going on"
    process.join(20)
    assert process.exitcode == -signal.SIGALRM


# ------------------------------------------------------------------------------------------------ the best


def test_the_best_weights_are_those_of_a_validation(data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([0.5, 0.3])

    def validate(self: Trainer, row: dict[str, Any]) -> bool:
        row["AP"] = number = next(numbers)
        better = number > self.progress.best
        if better:
            self.progress.best, self.progress.best_epoch = number, self.progress.epoch
        return better

    monkeypatch.setattr(Trainer, "_validate", validate)
    result = train(config(data, epochs=5, val_every=3), folder=folder)
    assert [row.get("AP") for row in result.history] == [None, None, 0.5, None, 0.3]
    best, last = (load_detector(folder / "weights" / f"{name}.safetensors")[1] for name in ("best", "last"))
    assert (best.metrics["AP"], best.metrics["epoch"], result.best_epoch) == (0.5, 3, 3)
    assert (last.metrics["AP"], last.metrics["epoch"]) == (0.3, 5)


def test_without_validation_the_last_weights_are_the_best(data: Path, folder: Path) -> None:
    result = train(config(data, val_split="none"), folder=folder)
    best, last = (load_detector(folder / "weights" / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(value, last[0].state_dict()[key]) for key, value in best[0].state_dict().items())
    assert result.best_epoch == 3
    assert best[1].metrics == {}


def test_patience_without_anything_to_validate_on_is_refused(data: Path, folder: Path) -> None:
    with pytest.raises(OptionError, match="patience needs a validation"):
        train(config(data, split="train,val", val_fraction=0, patience=2), folder=folder)


def test_focal_loss_for_a_softmax_model_is_refused_before_anything_is_written(data: Path, folder: Path) -> None:
    with pytest.raises(OptionError, match="focal loss is for sigmoid scores"):
        train(config(data, class_loss="focal"), folder=folder)
    assert list(folder.iterdir()) == []
