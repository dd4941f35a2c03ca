"""The short measurements before a run."""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from short_runs import arguments, config, run_all, start_two

from multibox.errors import OptionError
from multibox.training import finders
from multibox.training.failures import TrainingError
from multibox.training.finders import RateRow, find, find_batch, find_rate, free_memory, suggested_rate
from multibox.training.loop import Trainer
from multibox.training.preparation import prepared


@pytest.mark.slow
def test_finding_a_batch(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finders, "TIMED_STEPS", 1)
    find("batch", config(pictures, workers=1))
    lines = capsys.readouterr().out.splitlines()
    rows = [re.fullmatch(r"batch +(\d+) +([\d.]+) images/s +([\d.]+) GB", line) for line in lines[:-1]]
    assert all(rows)
    sizes = [int(row[1]) for row in rows if row]
    assert sizes == [1, 2, 4, 8, 16][: len(sizes)]
    assert len(sizes) >= 3
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows if row)
    assert re.fullmatch(
        rf"fastest: batch=({'|'.join(map(str, sizes))}); largest that was tried: batch={sizes[-1]}", lines[-1]
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_networks_that_refuse_single_pictures_begin_with_two(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finders, "TIMED_STEPS", 1)
    monkeypatch.setattr(finders, "LARGEST_BATCH", 2)

    def make(batch: int) -> Any:
        return prepared(config(pictures, batch=batch, model="ssdlite300_mobilenetv2", imgsz=96), tmp_path)

    rows: list[Any] = []
    assert [row.batch for row in find_batch(make, report=rows.append)] == [2]
    assert [row.batch for row in rows] == [2]


def test_the_search_ends_where_memory_does(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finders, "TIMED_STEPS", 1)

    @contextmanager
    def make(batch: int) -> Any:
        with prepared(config(pictures, batch=batch), tmp_path) as trainer:
            plain = trainer._step

            def step(given: Any) -> Any:
                if batch > 2:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return plain(given)

            trainer._step = step  # type: ignore[method-assign]
            yield trainer

    assert [row.batch for row in find_batch(make, report=lambda row: None)] == [1, 2]
    assert free_memory(torch.device("cpu")) > 1e6


def test_no_batch_at_all_is_said(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finders, "find_batch", lambda make, report, first: [])
    with pytest.raises(TrainingError, match="not even one picture fits into memory"):
        find("batch", config(pictures))


@pytest.mark.slow
def test_finding_a_learning_rate(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finders, "SWEEP_STEPS", 20)
    find("lr", config(pictures))
    lines = capsys.readouterr().out.splitlines()
    rates = [float(re.fullmatch(r"lr +(\S+) +loss +(\S+)", line)[1]) for line in lines[:-1]]  # type: ignore[index]
    assert rates == sorted(rates)
    assert rates[0] == 1e-5
    found = re.fullmatch(r"suggested: lr0=(\S+) \(with batch=3\)", lines[-1])
    assert found is not None
    assert 1e-6 < float(found[1]) < 0.34
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_rises_evenly_and_learns(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finders, "SWEEP_STEPS", 11)
    with prepared(config(pictures, freeze_norm=True), tmp_path) as trainer:
        before = {key: value.clone() for key, value in trainer.detector.state_dict().items()}
        rows = find_rate(trainer)
        after = trainer.detector.state_dict()
    assert [row.rate for row in rows] == pytest.approx([10 ** (-5 + 0.5 * i) for i in range(len(rows))])
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed
    assert not any("running" in key for key in changed)


def test_a_sweep_that_breaks_off_suggests_nothing(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(100))

    def update(self: Trainer, rate: float | None = None) -> None:
        if next(steps) == 3:
            raise TrainingError("the gradient of update 3 is not finite")

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(
        TrainingError, match=r"^the sweep broke off after 3 of 60 steps: the gradient of update 3 is not"
    ):
        find("lr", config(pictures))


def test_a_batch_is_found_with_a_cache_on_disk(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finders, "TIMED_STEPS", 1)
    monkeypatch.setattr(finders, "LARGEST_BATCH", 1)
    find("batch", config(pictures, cache="disk"))


def test_the_suggestion_is_a_third_of_the_best_rate() -> None:
    rows = [RateRow(1e-3, 5.0), RateRow(3e-2, 1.0), RateRow(1.0, math.inf)]
    assert suggested_rate(rows) == pytest.approx(1e-2)


def test_only_two_things_can_be_found(pictures: Path) -> None:
    with pytest.raises(OptionError, match=r"find='bath': did you mean 'batch'\?"):
        find("bath", config(pictures))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("what", ["batch", "lr"])
def test_two_processes_find_together(what: str, pictures: Path, commands: Any, tmp_path: Path) -> None:
    given = arguments(pictures, batch=2, model="tinyssd256")
    shorter = "from multibox.training import finders\nfinders.TIMED_STEPS, finders.SWEEP_STEPS = 1, 4\n"
    pair = start_two(commands, "train", *given, f"find={what}", cwd=tmp_path, first=shorter)
    assert run_all(pair) == [0, 0], pair[0].err + pair[1].err
    first, others = ("batch     2 ", "fastest: batch=") if what == "batch" else ("lr  1.00e-05", "suggested: lr0=")
    assert pair[0].out.startswith(first)
    assert others in pair[0].out.splitlines()[-1]
    assert pair[1].out == ""
