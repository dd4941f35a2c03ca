"""Two processes learn what one learns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from short_runs import ALONE, arguments, assert_same_run, run_all, start_two, state_of, write_pictures

from multibox.errors import OptionError
from multibox.training.distributed import Processes, processes
from multibox.weights import load_detector

pytestmark = pytest.mark.slow

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)

# Loss and matched boxes of every step, in a file for each process.
KEEP_LOSSES = """
import json, os
from multibox.training.loop import Trainer
kept, plain = [], Trainer.try_step
def try_step(self, batch):
    losses = plain(self, batch)
    objects = [len(target.labels) for target in batch.targets]
    kept.append([float(losses.total.detach()), int(losses.positives), *objects])
    with open("losses-" + os.environ.get("RANK", "alone"), "w") as file:
        json.dump(kept, file)
    return losses
Trainer.try_step = try_step
"""

TERMINATE_SECOND = """
import os, signal
from multibox.training.loop import Trainer
plain = Trainer.update
def update(self, rate=None):
    plain(self, rate)
    if self.progress.updates == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
Trainer.update = update
"""


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@needs_gloo
@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 5, "batch": 2, "lr0": 0.005, "momentum": 0.9, "clip_norm": 5},
        {"epochs": 2, "batch": 4, "accumulate": 2, "lr0": 0.005, "model": "ssdlite300_mobilenetv2", "imgsz": 96,
         "class_loss": "focal", "box_loss": "giou"},
    ],
)  # fmt: skip
def test_two_processes_learn_what_one_learns(
    changes: dict[str, Any], pictures: Path, commands: Any, tmp_path: Path
) -> None:
    given = arguments(pictures, freeze_norm=True, ema=0, warmup=0, workers=0, quiet=False, **changes)
    pair = start_two(commands, "train", *given, "project=two", cwd=tmp_path, first=KEEP_LOSSES)
    assert run_all(pair) == [0, 0], pair[0].err + pair[1].err
    alone = commands("train", *given, "project=one", cwd=tmp_path, first=KEEP_LOSSES)
    assert alone.wait() == 0, alone.err
    first, second, whole = (json.loads((tmp_path / f"losses-{name}").read_text()) for name in ("0", "1", "alone"))
    assert len(whole) == changes["epochs"] * -(-9 // changes["batch"])
    for mine, theirs, both in zip(first, second, whole, strict=True):
        assert (mine[0] + theirs[0]) / 2 == pytest.approx(both[0], rel=1e-5)
        assert mine[1] + theirs[1] == both[1]
    if changes["batch"] == 2:
        assert len(whole) >= 20
        assert any((mine[2] == 0) != (theirs[2] == 0) for mine, theirs in zip(first, second, strict=True))
    for name in ("best", "last"):
        two, one = (
            load_detector(tmp_path / project / "train" / "weights" / f"{name}.safetensors")[0].state_dict()
            for project in ("two", "one")
        )
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(rows_of(tmp_path / "two" / "train"), rows_of(tmp_path / "one" / "train"), strict=True):
        for key in ("epoch", "lr", "loss", "class_loss", "box_loss", "positives_per_picture", "skipped", "AP"):
            assert float(mine[key]) == pytest.approx(float(theirs[key]), rel=1e-4, abs=1e-6), key
    assert pair[1].err == ""
    assert pair[1].out == ""
    assert "epoch 2/" in pair[0].err


@needs_gloo
def test_two_processes_stop_together_report_both_and_go_on(commands: Any, tmp_path: Path) -> None:
    data = write_pictures(tmp_path)
    for number in (1, 6):
        sorted((data / "images" / "train").iterdir())[number].write_bytes(b"")
    given = arguments(data, batch=2, workers=1, cache="disk", quiet=False)
    whole = start_two(commands, "train", *given, "project=whole", cwd=tmp_path)
    assert run_all(whole) == [1, 1], whole[0].err + whole[1].err
    assert whole[0].err.count("another picture takes its place") == 2
    assert [row["skipped"] for row in rows_of(tmp_path / "whole" / "train")] == ["2", "2", "2"]
    stopped = start_two(commands, "train", *given, "project=stopped", cwd=tmp_path, first=TERMINATE_SECOND)
    assert run_all(stopped) == [130, 130], stopped[0].err + stopped[1].err
    assert "stopped and saved in epoch 2, step 0; go on with: " in stopped[0].err
    folder = tmp_path / "stopped" / "train"
    resumed = start_two(commands, "train", "--resume", folder, cwd=tmp_path)
    assert run_all(resumed) == [1, 1], resumed[0].err + resumed[1].err
    assert "best weights" in resumed[0].out
    assert resumed[1].out == ""
    assert_same_run(folder, tmp_path / "whole" / "train")
    assert state_of(folder)[1]["progress"]["updates"] == 15
    assert {path.name for path in tmp_path.iterdir()} == {"made", "data", "plain.toml", "whole", "stopped"}


@needs_gloo
def test_a_batch_that_cannot_be_shared_is_refused(pictures: Path, commands: Any, tmp_path: Path) -> None:
    pair = start_two(commands, "train", *arguments(pictures, batch=3), cwd=tmp_path)
    assert run_all(pair) == [1, 1]
    assert "batch=3 is not a multiple of the 2 processes" in pair[0].err
    assert not (tmp_path / "runs" / "train").exists()


def test_one_process_needs_no_others() -> None:
    assert ALONE.writes
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.sum([1.5]) == [1.5]
    assert ALONE.gather("a") == ["a"]
    assert not Processes(1, 2, torch.device("cpu")).writes


@pytest.mark.parametrize(("count", "expected"), [(0, 1.0), (1, 1.0), (7, 7.0)])
def test_the_divisor_of_the_loss_is_at_least_one(count: int, expected: float) -> None:
    given = torch.tensor(count)
    assert ALONE.positives(given).item() == expected
    assert given.item() == count


@pytest.mark.parametrize(
    "device", ["cuda:99", "nonsense", "meta:-1", "mps" if not torch.backends.mps.is_available() else ""]
)
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(OptionError, match=r"cannot be used: .*; here there is .*cpu"), processes(device):
        pass
