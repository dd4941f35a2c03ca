"""`multibox train` as its users meet it, from the pictures to a model that predicts."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from multibox.cli import main
from multibox.data import Dataset, ImageRecord, write_dataset
from multibox.spec.card import read_safetensors_card
from multibox.spec.classes import ClassMap
from multibox.training.config import all_options, from_toml
from multibox.weights import load_detector

CLASSES = ClassMap(("red box", "green box"), (4, 9))
SMALL = ["model=tinyssd256", "imgsz=64", "epochs=2", "batch=3", "workers=0", "warmup=0.5", "plots=false"]


@dataclass
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`multibox ARGS` in this process and a working folder of its own, through the real entry point, offline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.toml").touch()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)

    def call(*args: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["multibox", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Eight pictures to learn from and two to validate on, each with a red or a green box."""
    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(0)
    records = []
    for number in range(10):
        label = number % 2
        rgb = rng.integers(90, 150, (70, 90, 3), dtype=np.uint8)
        x, y = int(rng.integers(0, 40)), int(rng.integers(0, 30))
        rgb[y : y + 35, x : x + 40] = ((230, 20, 20), (20, 200, 30))[label]
        Image.fromarray(rgb).save(folder / f"{number:02}.jpg", quality=95)
        split = "val" if number >= 8 else "train"
        box = np.array([[x, y, x + 40, y + 35]], np.float32)
        records.append(ImageRecord(f"{number:02}.jpg", number + 1, (70, 90), box, np.array([label]), split=split))
    return Dataset.from_records(records, CLASSES, root=folder)


@pytest.fixture
def data(dataset: Dataset, tmp_path: Path) -> Path:
    write_dataset(dataset, tmp_path / "data", format="yolo", copy="true")
    return tmp_path / "data"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_train_then_predict_and_val(format: str, run: Run, dataset: Dataset, tmp_path: Path) -> None:
    write_dataset(dataset, tmp_path / "data", format=format, copy="true")
    said = run("train", "data", "recipe=plain.toml", *SMALL, "epochs=6", "lr0=0.05", "crop=0", "zoom_out=0")
    assert said.code == 0, said.err
    best = Path("runs") / "train" / "weights" / "best.safetensors"
    assert said.out.splitlines()[-1] == f"use them:  multibox predict PICTURES model={best}"
    assert re.fullmatch(rf"best weights \(after epoch [1-6]\): {re.escape(str(best))}", said.out.splitlines()[-2])
    assert "learning from 8 pictures, 8 objects; validating on 2 pictures, 2 objects (split val)" in said.err
    assert said.err.count("\nepoch ") == 6
    assert "model: tinyssd256, random weights\n  backbone and extra levels: initialised" in said.err
    with Path("runs/train/results.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == list("123456")
    card = read_safetensors_card(best)
    assert card.class_map.names == CLASSES.names
    if format == "coco":
        assert card.class_map.ids == CLASSES.ids
    assert card.training["pictures"] == 8
    assert set(card.metrics) == {"AP", "AP50", "AP75", "epoch", "validated_on"}
    said = run("predict", dataset.picture_path(8), f"model={best}", "conf=0.001", "save_csv=true", "save=false")
    assert said.code == 0, said.err
    with Path("runs/predict/detections.csv").open(newline="") as file:
        found = {value for row in csv.DictReader(file) for value in row.values()}
    assert found & set(CLASSES.names)
    said = run("val", "data", f"model={best}")
    assert said.code == 0, said.err
    assert "red box" in said.out
    assert {path.name for path in tmp_path.iterdir()} == {"plain.toml", "data", "runs"}


@pytest.mark.slow
def test_the_configuration_left_behind_gives_the_same_weights(run: Run, data: Path) -> None:
    assert run("train", "data", "recipe=plain.toml", *SMALL, "optimizer=adamw", "lr0=0.002", "seed=3").code == 0
    recipe = Path("runs/train/config.toml")
    options = from_toml(recipe)
    assert (options.optim.optimizer, options.run.seed, options.model.imgsz) == ("adamw", 3, "64")
    assert run("train", f"recipe={recipe}").code == 0
    assert run("train", data, f"recipe={recipe}", "name=elsewhere").code == 0
    first, second, third = (
        load_detector(Path("runs") / name / "weights" / "last.safetensors")[0].state_dict()
        for name in ("train", "train-2", "elsewhere")
    )
    for key, value in first.items():
        assert torch.equal(value, second[key])
        assert torch.equal(value, third[key])
    assert from_toml(Path("runs/train-2/config.toml")) == options
    assert read_safetensors_card(Path("runs/train/weights/best.safetensors")).training["config"] == recipe.read_text()


@pytest.mark.slow
def test_a_model_file_can_be_trained_further(run: Run, data: Path) -> None:
    assert run("train", "data", "recipe=plain.toml", *SMALL, "epochs=1").code == 0
    again = "runs/train/weights/best.safetensors"
    said = run("train", "data", "recipe=plain.toml", *SMALL, f"model={again}", "imgsz=64x96", "classes=green box")
    assert said.code == 0, said.err
    assert "  1 rows of the class head: carried by class name: green box (" in said.err
    assert "  1 rows of the class head: left behind: classes that the data has not (" in said.err
    card = read_safetensors_card(Path("runs/train-2/weights/best.safetensors"))
    assert card.preprocess.size_hw == (64, 96)
    assert card.class_map.names == ("green box",)


@pytest.mark.slow
def test_resuming_from_the_command_line(run: Run, data: Path) -> None:
    assert run("train", "data", "recipe=plain.toml", *SMALL).code == 0
    said = run("train", "--resume", "runs/train", "workers=1")
    assert said.code == 0
    assert "resumed at epoch 3, step 0" in said.err
    assert "best weights (after epoch" in said.out
    said = run("train", "--resume", "runs/train", "epochs=5")
    assert said.code == 1
    assert (
        "epochs cannot be changed in a resumed run, only cache, cache_gb, device, quiet, save_every, workers"
        in said.err
    )
    for extra in ("data", "recipe=plain.toml", "find=lr"):
        said = run("train", "--resume", "runs/train", extra)
        assert said.code == 1
        assert "--resume takes the run folder and nothing else" in said.err
    said = run("train", "--resume", "data")
    assert (said.code, said.err) == (
        1,
        "multibox: data is no run folder (it has no config.toml); give the folder that training made\n",
    )
    (Path("runs/train/weights/last.resume.safetensors")).unlink()
    said = run("train", "--resume", "runs/train")
    assert said.code == 1
    assert "last.resume.safetensors: no such file" in said.err


@pytest.mark.slow
@pytest.mark.parametrize("what", ["batch", "lr"])
def test_finding_from_the_command_line(
    what: str, run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multibox.training.finders.SWEEP_STEPS", 12)
    monkeypatch.setattr("multibox.training.finders.TIMED_STEPS", 1)
    said = run("train", "data", "recipe=plain.toml", *SMALL, f"find={what}")
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1].startswith("suggested: lr0=" if what == "lr" else "fastest: batch=")
    assert {path.name for path in tmp_path.iterdir()} == {"plain.toml", "data"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to learn from: write multibox train DATA, or --resume RUN_FOLDER"),
        (["data", "epoch=3"], "unknown option 'epoch'; did you mean 'epochs'?"),
        (["data", "--lr", "3"], "unknown option '--lr'; did you mean '--lr0'"),
        (["data", "optimizer=adam"], "optimizer='adam': did you mean 'adamw'"),
        (["data", "epochs=many"], "epochs='many': expected a whole number"),
        (["data", "recipe=tinysd"], "unknown recipe 'tinysd'; did you mean 'tinyssd'"),
        (["data", "recipe=absent.toml"], "recipe absent.toml: no such file"),
        (["data", "model=tinysd256"], "tinysd256: unknown model; did you mean 'tinyssd256'?"),
        (["data", "model=model.pt"], "model.pt"),
        (["absent"], "absent"),
        (["data", "split=tran"], "has no split 'tran'"),
        (["data", "amp=fp16"], "amp=fp16 needs a GPU"),
        (["data", "patience=2", "val_split=none"], "patience needs a validation"),
        (["data", "warmup=3", "epochs=2"], "warmup=3 epochs of 2"),
        (["data", "find=bath", "model=tinyssd256"], "find='bath': did you mean 'batch'"),
        (["data", "name=a/b"], "name='a/b' must be a plain folder name"),
        (["data", "device=cudda"], "device 'cudda' cannot be used"),
        (["data", "classes=red bx"], "unknown class 'red bx'; did you mean 'red box'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    args: list[str], message: str, run: Run, data: Path, tmp_path: Path
) -> None:
    said = run("train", *args)
    assert said.code in (1, 2)
    assert message in said.err
    assert said.out == ""
    assert len([line for line in said.err.splitlines() if line.startswith(("multibox: ", "Error: "))]) == 1
    assert not list(tmp_path.glob("runs/*"))


def test_a_data_set_without_objects_is_refused(run: Run, data: Path, tmp_path: Path) -> None:
    for label in (data / "labels").rglob("*.txt"):
        label.write_text("")
    said = run("train", "data", "recipe=plain.toml", *SMALL)
    assert said.code == 1
    assert "has no object to learn from" in said.err
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_unreadable_pictures_are_counted_at_the_end(run: Run, data: Path) -> None:
    sorted((data / "images" / "train").iterdir())[2].write_bytes(b"")
    said = run("train", "data", "recipe=plain.toml", *SMALL)
    assert said.code == 1
    assert said.err.count("; another picture takes its place") == 1
    assert said.err.splitlines()[-1] == "1 picture could not be read; `multibox check` names them"


@pytest.mark.slow
def test_lost_boxes_and_a_kept_start_are_said_at_the_end(run: Run, data: Path) -> None:
    labels = sorted((data / "labels" / "train").iterdir())
    labels[0].write_text(labels[0].read_text() + "0 0.5 0.5 wide 0.1\n")
    said = run("train", "data", "recipe=plain.toml", *SMALL)
    assert said.code == 1
    assert "1 box could not be read and were not learnt; `multibox check` names them" in said.err
    model = "model=runs/train/weights/best.safetensors"
    said = run("train", "data", "recipe=plain.toml", *SMALL, model, "imgsz=", "lr0=1e-12", "ema=0")
    assert said.code == 1
    assert "epoch 0/2  the start, before the first step  AP50 " in said.err
    assert said.out.startswith("no epoch scored above the start (AP ")
    assert "best weights (after epoch 0): runs/train-2/weights/best.safetensors" in said.out


@pytest.mark.slow
def test_the_report_of_the_best_weights_is_left(run: Run, data: Path) -> None:
    said = run("train", "data", "recipe=plain.toml", *SMALL, "plots=true")
    assert said.code == 0
    assert "report of the best weights: runs/train/val/report.html" in said.err
    metrics = json.loads(Path("runs/train/val/metrics.json").read_text())
    with Path("runs/train/results.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert metrics["summary"]["AP"] == pytest.approx(max(float(row["AP"]) for row in history), abs=1e-6)


@pytest.mark.slow
def test_quiet_means_quiet(run: Run, data: Path) -> None:
    said = run("train", "data", "recipe=plain.toml", *SMALL, "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_help_lists_every_option_by_section(run: Run) -> None:
    said = run("train", "--help")
    assert said.code == 0
    assert said.out.startswith("Usage: multibox train")
    for name in all_options():
        if name not in ("data", "arguments"):
            assert f"--{name.replace('_', '-')}" in said.out, name
    assert "model.KEY=VALUE" in said.out  # how a command line says `arguments`
    sections = ["Data:", "Model:", "Augmentation:", "Loss:", "Optimiser:", "Run:"]
    places = [said.out.index(f"\n{section}\n") for section in sections]
    assert sorted(places) == sorted(set(places))


def test_help_needs_no_torch(without_torch: Callable[..., tuple[int, str, str]]) -> None:
    code, _, said = without_torch("train", "--help")
    assert code == 0, said
    code, _, said = without_torch("train", "data")
    assert code == 1
    assert "training needs the package 'torch'; install it with: pip install 'multibox[train]'" in said


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_interrupted_from_a_terminal(data: Path, tmp_path: Path) -> None:
    """A real program, interrupted as Ctrl-C does it: the whole group of processes."""
    (tmp_path / "plain.toml").touch()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    options = ["recipe=plain.toml", *SMALL, "epochs=10000", "workers=1", "val_split=none"]
    with subprocess.Popen(
        [sys.executable, "-m", "multibox", "train", "data", *options],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        assert program.stderr is not None
        said = []
        for line in program.stderr:
            said.append(line)
            if line.startswith("epoch 1/") and program.poll() is None:
                os.killpg(program.pid, signal.SIGINT)
        assert program.wait(30) == 130
    assert said.count("SIGINT: saving after this step\n") == 1
    assert re.fullmatch(
        r"stopped and saved in epoch \d+, step \d; go on with: multibox train --resume runs/train\n", said[-1]
    )
    assert "Traceback" not in "".join(said)
