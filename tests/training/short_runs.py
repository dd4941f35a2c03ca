"""What the tests of training share: small data sets, short runs, and processes that may be killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from multibox.data import Dataset, ImageRecord, read_dataset, write_dataset
from multibox.spec.classes import ClassMap
from multibox.spec.preprocess import Preprocess
from multibox.training.checkpoint import load_state
from multibox.training.config import TrainConfig, merge
from multibox.training.distributed import Processes
from multibox.training.loader import TrainingPictures
from multibox.training.progress import Callback, StepRecord
from multibox.weights import load_detector

CLASSES = ClassMap(("red box", "green box"))
COLOURS = ((220, 30, 30), (30, 200, 40))
ALONE = Processes(0, 1, torch.device("cpu"))
TIMINGS = {"images_per_second", "waiting_share", "train_seconds", "val_seconds"}


def random_records(folder: Path, count: int, *, seed: int = 0, suffix: str = ".jpg") -> Iterator[ImageRecord]:
    """Write pictures of coloured rectangles on grey noise; every fifth has none."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        height, width = int(rng.integers(60, 90)), int(rng.integers(70, 100))
        rgb = rng.integers(90, 150, (height, width, 3), dtype=np.uint8)
        boxes, labels = [], []
        for _ in range(0 if number % 5 == 4 else int(rng.integers(1, 4))):
            x1, y1 = int(rng.integers(0, width - 30)), int(rng.integers(0, height - 30))
            x2, y2 = x1 + int(rng.integers(20, 30)), y1 + int(rng.integers(20, 30))
            label = int(rng.integers(0, 2))
            rgb[y1:y2, x1:x2] = COLOURS[label]
            boxes.append((x1, y1, x2, y2))
            labels.append(label)
        name = f"{number:03}{suffix}"
        Image.fromarray(rgb).save(folder / name, **({"quality": 95} if suffix == ".jpg" else {}))
        yield ImageRecord(
            name,
            number,
            (height, width),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
            split="val" if number >= 0.75 * count else "train",
        )


def write_pictures(folder: Path, *, count: int = 12, format: str = "yolo", seed: int = 0) -> Path:
    """The path of a new data set under `folder`, three quarters of it in the split train, the rest in val."""
    (folder / "made").mkdir()
    records = list(random_records(folder / "made", count, seed=seed))
    dataset = Dataset.from_records(records, CLASSES, root=folder / "made")
    write_dataset(dataset, folder / "data", format=format, copy="true")
    return folder / "data"


def options(data: Path, **changes: Any) -> dict[str, Any]:
    """A run of a second: TinySSD at 64 pixels, three steps an epoch."""
    return {
        "data": str(data),
        "model": "tinyssd256",
        "imgsz": 64,
        "epochs": 3,
        "batch": 3,
        "lr0": 0.02,
        "warmup": 1,
        "workers": 0,
        "plots": False,
        "quiet": True,
        **changes,
    }


def config(data: Path, **changes: Any) -> TrainConfig:
    return merge(TrainConfig(), options(data, **changes))


def arguments(data: Path, **changes: Any) -> list[str]:
    """`options` as the command line has them, and no shipped recipe."""
    plain = data.parent / "plain.toml"
    plain.write_text("")
    given = {"recipe": plain, **options(data, **changes)}
    return [str(given.pop("data")), *(f"{key}={value}" for key, value in given.items())]


def training_pictures(data: Path, *, size_hw: tuple[int, int] = (48, 64), **changes: Any) -> TrainingPictures:
    dataset = read_dataset(data).split("train")
    given: dict[str, Any] = {"options": config(data).augment, "seed": 3, **changes}
    return TrainingPictures(dataset, Preprocess(size_hw), **given)


def run_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def state_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The saved state of a run, without what a clock measured."""
    tensors, state = load_state(folder / "weights" / "last.resume.safetensors")
    progress = state["progress"]
    progress["history"] = [{k: v for k, v in row.items() if k not in TIMINGS} for row in progress["history"]]
    progress["sums"] = {k: v for k, v in progress["sums"].items() if k not in ("waited", "seconds")}
    return tensors, state


def assert_same_run(actual: Path, expected: Path) -> None:
    """Both run folders hold the same weights and state, bit for bit."""
    for name in ("best", "last"):
        mine, theirs = (load_detector(folder / "weights" / f"{name}.safetensors") for folder in (actual, expected))
        assert mine[1].metrics == theirs[1].metrics
        for key, value in theirs[0].state_dict().items():
            assert torch.equal(mine[0].state_dict()[key], value), (name, key)
    (tensors, state), (expected_tensors, expected_state) = state_of(actual), state_of(expected)
    assert state == expected_state
    assert tensors.keys() == expected_tensors.keys()
    for key, value in expected_tensors.items():
        assert torch.equal(tensors[key], value), key


class Recorder(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.ends = 0

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_end(self) -> None:
        self.ends += 1


# ------------------------------------------------------------------------------------------------ processes

_SERVER = """
import json, os, sys, traceback
import torch, torchvision, multibox.cli, multibox.cli.train, multibox.evaluation.coco_engines, multibox.training.run
from multibox.models import create_model
for name in ("tinyssd256", "ssdlite300_mobilenetv2"):  # loads what torch loads late; nothing is differentiated yet
    detector = create_model(name, size_hw=[64, 64])
    detector.anchors_cxcywh()
    torch.optim.SGD(detector.parameters(), lr=0.1).state_dict()
for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        print(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    os.setpgid(0, 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(task["environment"])
    os.chdir(task["cwd"])
    status = 99
    try:
        exec(task["first"], {})
        sys.argv = ["multibox", *task["arguments"]]
        multibox.cli.main()
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
"""


@dataclass
class Command:
    """A program under way."""

    server: Commands
    pid: int
    out_path: Path
    err_path: Path

    def wait(self, timeout: float = 60) -> int:
        """Its exit status, negative for the signal that killed it."""
        timer = threading.Timer(timeout, os.killpg, (self.pid, 9))
        timer.start()
        try:
            return self.server.ask({"wait": self.pid})
        finally:
            timer.cancel()

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()


class Commands:
    """Starts `multibox` in processes of their own, copies of one that has imported torch already."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, 0
        source = Path(__file__).parents[2] / "src"
        environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def ask(self, task: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __call__(
        self, *arguments: str | Path, cwd: Path, first: str = "", environment: dict[str, str] | None = None
    ) -> Command:
        """Start `multibox ARGUMENTS`; the code `first` runs before it in its process."""
        self.started += 1
        out, err = (self.folder / f"{self.started}.{name}" for name in ("out", "err"))
        task = {
            "arguments": [str(a) for a in arguments],
            "cwd": str(cwd),
            "first": first,
            "environment": environment or {},
            "out": str(out),
            "err": str(err),
        }
        return Command(self, self.ask(task), out, err)


def run_all(commands: Sequence[Command]) -> list[int]:
    return [command.wait() for command in commands]


def start_two(commands: Any, *given: str | Path, cwd: Path, first: str = "") -> list[Command]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        commands(*given, cwd=cwd, first=first, environment={**common, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
