"""The loop: its steps are those of a plain loop, and whoever watches is told the truth."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the train extra is not installed")

import toy_cascades  # noqa: F401 - registers its builders
from short_runs import ALONE, CLASSES, Recorder, config, run_folder, write_pictures
from short_runs import options as short_options

from multibox.core.loss import Focal, multibox_loss
from multibox.core.matching import MatchOptions
from multibox.core.structures import Target
from multibox.data import DataError, read_dataset
from multibox.errors import MissingDependencyError, ModelFileError, OptionError
from multibox.training import console
from multibox.training.config import TrainConfig
from multibox.training.console import COLUMNS, ConsoleLines, LiveDisplay, make_console
from multibox.training.evaluate import evaluate
from multibox.training.loader import Batch, EpochBatches, TrainingPictures, collate
from multibox.training.optim import learning_rate
from multibox.training.options import AugmentOptions
from multibox.training.preparation import prepared
from multibox.training.progress import Callback, StepRecord
from multibox.training.run import train
from multibox.training.transfer import start_from
from multibox.weights import load_detector


def plain_loop(options: TrainConfig) -> dict[str, torch.Tensor]:
    """The weights after a run, without average, by a loop over pictures."""
    torch.manual_seed(options.run.seed)
    data = read_dataset(options.data.data).split("train")
    detector = start_from(options.model.model, data.class_map, size_hw=options.model.size_hw()).detector.train()
    detector = detector.to(memory_format=torch.channels_last)
    pictures = TrainingPictures(data, detector.spec.preprocess, options.augment, options.run.seed)
    order = EpochBatches(len(data), options.optim.batch, seed=options.run.seed)
    decayed, others = [], []
    for name, parameter in detector.named_parameters():
        (decayed if parameter.ndim > 1 else others).append((name, parameter))
    momentum: dict[str, torch.Tensor] = {}
    overlaps = options.loss.match_iou or ((0.5, 0.6) if options.model.model == "toy_cascade" else (0.5,))
    spec, updates, per_epoch = detector.spec, 0, -(-len(order) // options.optim.accumulate)
    for epoch in range(options.optim.epochs):
        order.start(epoch)
        for number, keys in enumerate(order):
            batch = collate([pictures[key] for key in keys])
            pixels = batch.pixels.permute(0, 3, 1, 2).float()
            mean, scale = (torch.tensor(v)[:, None, None] for v in (spec.preprocess.mean, spec.preprocess.scale))
            losses = multibox_loss(
                detector((pixels - mean) * scale),
                detector.anchors_cxcywh(),
                batch.targets,
                activation=spec.postprocess.activation,
                negative_ratio=options.loss.negative_ratio,
                matching=[MatchOptions("bipartite", iou, iou) for iou in overlaps],
                variances=spec.variances,
                localization_weight=options.loss.box_weight,
                box_loss=options.loss.box_loss,
                focal=Focal(options.loss.focal_gamma) if options.loss.class_loss == "focal" else None,
            )
            (losses.total / options.optim.accumulate).backward()
            if (number + 1) % options.optim.accumulate and number + 1 < len(order):
                continue
            rate = learning_rate(options.optim, step=updates, steps_per_epoch=per_epoch)
            gradients = [p.grad for p in detector.parameters()]
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
            factor = min(1.0, options.optim.clip_norm / (norm + 1e-6)) if options.optim.clip_norm else 1.0
            with torch.no_grad():
                for name, p in (*decayed, *others):
                    g = p.grad * factor + (options.optim.weight_decay * p if p.ndim > 1 else 0)
                    momentum[name] = options.optim.momentum * momentum[name] + g if name in momentum else g
                    p -= rate * momentum[name]
                    p.grad = None
            updates += 1
    return detector.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 1, "warmup": 0},
        {"accumulate": 2, "batch": 2, "clip_norm": 0.5, "schedule": "steps", "weight_decay": 0.1, "epochs": 2,
         "lr0": 5e-3},
        {"model": "ssdlite300_mobilenetv2", "imgsz": "96x128", "class_loss": "focal", "focal_gamma": 1.0, "epochs": 1,
         "box_loss": "ciou", "box_weight": 2, "match_iou": 0.4, "clip_norm": 0, "lr0": 1e-3, "warmup": 0, "batch": 9},
        {"model": "toy_cascade", "imgsz": "64", "epochs": 1, "warmup": 0},
        {"model": "toy_gated_cascade", "imgsz": "64", "epochs": 1, "warmup": 0, "match_iou": "0.4,0.6"},
    ],
)  # fmt: skip
def test_the_weights_are_those_of_a_plain_loop(changes: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    options = config(pictures, ema=0, **changes)
    expected = plain_loop(options)
    train(options, folder=tmp_path)
    detector, card = load_detector(tmp_path / "weights" / "last.safetensors")
    for key, value in detector.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=5e-5)  # sums are rounded in other orders
    assert card.class_map.names == CLASSES.names
    assert card.preprocess.size_hw == options.model.size_hw()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(pictures: Path, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((5, 5, 6)):
        torch.rand(number)  # what happened before makes no difference
        train(config(pictures, seed=seed, epochs=1, warmup=0), folder=run_folder(tmp_path / str(number)))
        found.append((tmp_path / str(number) / "weights" / "last.safetensors").read_bytes())
    weights = [content[8 + int.from_bytes(content[:8], "little") :] for content in found]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.slow
def test_training_learns(tmp_path: Path) -> None:
    data = write_pictures(tmp_path, count=8)
    result = train(
        config(data, epochs=12, batch=2, crop=0, zoom_out=0, lr0=0.03, split="train,val", val_split="train"),
        folder=run_folder(tmp_path / "run"),
    )
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < losses[0] / 3
    assert result.history[-1]["AP50"] > 0.1
    assert result.history[-1]["AP50"] > result.history[0]["AP50"]


# ------------------------------------------------------------------------------------------------ without objects


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tinyssd256", "ssdlite300_mobilenetv2"])
@pytest.mark.parametrize("crowds", [False, True])
def test_a_batch_without_objects_gives_a_finite_loss_and_a_gradient(
    model: str, crowds: bool, pictures: Path, tmp_path: Path
) -> None:
    losses = ["mined", "focal"] if model.startswith("ssdlite") else ["mined"]
    for class_loss in losses:
        with prepared(config(pictures, model=model, imgsz=96, class_loss=class_loss), tmp_path) as trainer:
            boxes = torch.tensor([[0.1, 0.1, 0.6, 0.6]] * crowds).reshape(-1, 4)
            target = Target(boxes, torch.zeros(len(boxes)).long(), torch.ones(len(boxes)).bool())
            pixels = torch.randint(0, 256, (3, 96, 96, 3), dtype=torch.uint8)
            found = trainer.try_step(Batch(pixels, (target,) * 3, (0, 1, 2), ()))
            gradients = [p.grad for p in trainer.detector.parameters()]
        assert found.positives == 0
        assert found.localization == 0
        assert 0 < float(found.classification.detach()) < 1e4
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0


@pytest.mark.slow
def test_an_epoch_mostly_without_objects_is_learnt(tmp_path: Path) -> None:
    data = write_pictures(tmp_path)
    for label in sorted((data / "labels" / "train").iterdir())[1:]:
        label.write_text("")
    result = train(config(data, batch=1, epochs=2), folder=run_folder(tmp_path / "run"))
    assert all(math.isfinite(row["loss"]) and row["loss"] > 0 for row in result.history)
    (data / "labels" / "train" / sorted(path.name for path in (data / "labels" / "train").iterdir())[0]).write_text("")
    with pytest.raises(DataError, match="has no object to learn from"):
        train(config(data), folder=run_folder(tmp_path / "none"))


# ------------------------------------------------------------------------------------------------ reports


@pytest.mark.slow
def test_steps_and_epochs_are_reported(pictures: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    with prepared(config(pictures), tmp_path) as trainer:
        trainer.callbacks.append(recorder)
        assert trainer.run()
    assert [(r.epoch, r.step, r.steps) for r in recorder.steps] == [(e, s, 3) for e in range(3) for s in (1, 2, 3)]
    rates = [learning_rate(config(pictures).optim, step=s, steps_per_epoch=3) for s in range(9)]
    assert [r.learning_rate for r in recorder.steps] == pytest.approx(rates)
    assert all(r.pictures == 3 and 0 <= r.waited <= r.seconds for r in recorder.steps)
    for epoch, row in enumerate(recorder.rows):
        steps = [r for r in recorder.steps if r.epoch == epoch]
        assert row["epoch"] == epoch + 1
        assert row["class_loss"] == pytest.approx(sum(r.classification for r in steps) / 3)
        assert row["box_loss"] == pytest.approx(sum(r.localization for r in steps) / 3)
        assert row["loss"] == pytest.approx(row["class_loss"] + row["box_loss"])
        assert row["positives_per_picture"] == pytest.approx(sum(r.positives for r in steps) / 9)
        assert row["lr"] == steps[-1].learning_rate
        assert 0 <= row["waiting_share"] <= 1
    assert recorder.ends == 1
    assert set(recorder.rows[-1]) == set(COLUMNS)


@pytest.mark.slow
def test_numbers_are_those_of_val(pictures: Path, tmp_path: Path) -> None:
    from multibox.evaluation import evaluate_coco, validate
    from multibox.inference import Detector

    result = train(config(pictures, epochs=4, batch=2, lr0=0.05, crop=0), folder=tmp_path)
    dataset = read_dataset(pictures).split("val")
    detector, card = load_detector(result.best)
    inside = evaluate(detector, dataset, processes=ALONE, batch=2)
    assert inside is not None
    outside = validate(Detector(result.best), dataset, conf=0.01)
    assert inside.numbers.ap50 == pytest.approx(evaluate_coco(outside.data).ap50, abs=1e-6)
    assert card.metrics["AP50"] == pytest.approx(inside.numbers.ap50, abs=1e-6)


@pytest.mark.slow
def test_the_table_has_a_row_for_each_epoch(pictures: Path, tmp_path: Path) -> None:
    result = train(config(pictures, val_every=2), folder=tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["AP"] == "" for row in rows] == [True, False, False]
    for row, expected in zip(rows, result.history, strict=True):
        assert float(row["loss"]) == expected["loss"]


def record(step: int) -> StepRecord:
    return StepRecord(0, step, 10, 2.0, 1.0, 5, 0.01, 0.25, 0.5, 8)


ROW = {"epoch": 1, "lr": 0.01, "loss": 3.0, "class_loss": 2.0, "box_loss": 1.0, "positives_per_picture": 3.0,
       "AP": 0.25, "AP50": 0.5, "AP75": None, "images_per_second": 16.0, "waiting_share": 0.5,
       "train_seconds": 5.0, "val_seconds": 1.0, "skipped": 0}  # fmt: skip


@pytest.mark.parametrize("live", [False, True])
def test_the_console_shows_epochs_and_notes(
    live: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if live:
        pytest.importorskip("rich")
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = make_console(20)
    assert isinstance(shown, LiveDisplay if live else ConsoleLines)
    for step in range(1, 11):
        shown.on_step(record(step))
    shown.on_epoch(ROW)
    shown.on_note("a picture [bold] of [1, 2]")
    shown.on_end()
    said = capsys.readouterr()
    line = (
        "epoch 1/20  loss 3.000 (class 2.000, box 1.000)  AP50 0.5000  AP 0.2500  16.0 images/s, 50% waiting for data"
    )
    assert line in said.err
    assert "a picture [bold] of [1, 2]" in said.err
    assert said.out == ""


def test_the_console_ends_without_a_step() -> None:
    pytest.importorskip("rich")
    LiveDisplay(3).on_end()


def test_a_live_display_is_closed_when_the_run_fails(pictures: Path, tmp_path: Path) -> None:
    class Broken(Recorder):
        def on_step(self, record: StepRecord) -> None:
            raise KeyboardInterrupt

    recorder = Broken()
    with prepared(config(pictures), tmp_path) as trainer:
        trainer.callbacks.append(recorder)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert recorder.ends == 1


def test_the_peak_of_memory_rises() -> None:
    before = console.peak_memory()
    assert 1e7 < before < 1e12
    held = bytearray(10**7)
    assert console.peak_memory() >= before
    assert len(held) == 10**7


def test_training_imports_where_the_system_has_no_resource_module() -> None:
    code = "import sys; sys.modules['resource'] = None\nimport multibox.training.console as c; print(c.peak_memory())"
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": source, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "nan\n", done.stderr


# ------------------------------------------------------------------------------------------------ callbacks


@pytest.mark.slow
def test_tensorboard_gets_steps_and_epochs(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(config(pictures, tensorboard=True), folder=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = events.Scalars("step/class_loss")
    assert [event.step for event in losses] == list(range(1, 10))
    epochs = events.Scalars("epoch/loss")
    assert [event.step for event in epochs] == [1, 2, 3]
    assert [event.value for event in epochs] == pytest.approx([row["loss"] for row in result.history], rel=1e-5)


def test_an_absent_tensorboard_is_said_before_the_first_step(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = r"logging to tensorboard needs .* pip install 'multibox\[tensorboard\]'"
    with pytest.raises(MissingDependencyError, match=message):
        train(config(pictures, tensorboard=True), folder=tmp_path)
    assert not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_own_callbacks_are_told_and_one_that_fails_is_left_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Logger(Callback):
        calls = 0

        def on_epoch(self, row: dict[str, Any]) -> None:
            self.calls += 1
            raise ConnectionError("the server is gone")

    recorder, logger = Recorder(), Logger()
    result = train(config(pictures, quiet=False), folder=tmp_path, callbacks=(logger, recorder))
    assert tuple(recorder.rows) == result.history
    assert (len(recorder.steps), recorder.ends, logger.calls) == (9, 1, 1)
    assert recorder.notes == ["Logger fails (the server is gone); training goes on without it"]
    assert capsys.readouterr().err.count("Logger fails") == 1


@pytest.mark.slow
def test_the_documented_callback_works(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(log=calls.append, finish=lambda: calls.append("finished"))
    wandb = SimpleNamespace(init=lambda **options: calls.append(options["config"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    program = next(block.partition("```")[0] for block in text.split("```python\n")[1:] if "wandb" in block)
    options = short_options(pictures, epochs=2, project=str(tmp_path / "runs"))
    del options["data"]
    assert program.count('"DATA"') == program.count('{"epochs": 16}') == 1
    exec(program.replace('"DATA"', repr(str(pictures))).replace('{"epochs": 16}', repr(options)), {})
    assert calls[0] == options
    assert [row["epoch"] for row in calls[1:-1]] == [1, 2]
    assert calls[-1] == "finished"


def test_the_learning_rate_told_is_that_of_the_schedule(pictures: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    asked = config(pictures, lr0=1e-3, bias_lr=2.0, warmup=0, schedule="constant", epochs=1)
    with prepared(asked, run_folder(tmp_path / "run")) as trainer:
        trainer.callbacks.append(recorder)
        trainer.run()
        assert trainer.progress.history[-1]["lr"] == pytest.approx(1e-3)
    assert [step.learning_rate for step in recorder.steps] == pytest.approx([1e-3] * len(recorder.steps))
    assert recorder.steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "imgsz", "single"), [("ssdlite300_mobilenetv2", 256, True), ("tinyssd256", 64, False)]
)
def test_half_precision_is_left_where_it_computes_wrongly(
    model: str, imgsz: int, single: bool, pictures: Path, tmp_path: Path
) -> None:
    """bfloat16 gradients of a depthwise convolution that reads one cell, on a processor."""
    asked = config(pictures, model=model, imgsz=imgsz, amp="auto")
    with prepared(asked, run_folder(tmp_path / "auto")) as trainer:
        assert trainer.config.run.amp in (("none",) if single else ("none", "bf16"))
    if single:
        asked = replace(asked, run=replace(asked.run, amp="bf16"))
        refused = pytest.raises(OptionError, match="amp=bf16 gives wrong gradients on processors")
        with refused, prepared(asked, run_folder(tmp_path / "asked")):
            pass


# ------------------------------------------------------------------------------------------------ what is learnt from


@pytest.mark.slow
def test_which_pictures_are_learnt_from(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sizes(**changes: Any) -> tuple[int, int]:
        with prepared(config(pictures, **changes), tmp_path) as trainer:
            held = trainer.validation
            if held is not None and "val_split" not in changes:
                seen = {str(trainer.pictures.annotations.picture_path(i)) for i in range(len(trainer.pictures))}
                assert not seen & {str(held.picture_path(i)) for i in range(len(held))}
            return len(trainer.pictures), 0 if held is None else len(held)

    assert sizes() == (9, 3)
    assert sizes(split="train") == (9, 3)
    assert sizes(split="val") == (2, 1)
    assert sizes(split="train,val") == (11, 1)
    assert sizes(split="train, val", val_fraction=0.5) == (6, 6)
    assert sizes(split="train,val", val_fraction=0) == (12, 0)
    assert sizes(val_split="none") == (9, 0)
    assert sizes(split="train,val", val_split="val") == (12, 3)
    capsys.readouterr()
    sizes(split="train,val", val_split="val", quiet=False)
    assert "3 of them are also learnt from, so the numbers say nothing about new pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"split": "tran"}, DataError, "has no split 'tran'; choose one of its splits"),
        ({"split": ","}, OptionError, "split=',' names no split"),
        ({"val_split": " "}, OptionError, "val_split=' ' names no split"),
        ({"classes": "red bx"}, ValueError, "unknown class 'red bx'; did you mean 'red box'"),
        ({"classes": ","}, OptionError, "classes=',' names no class"),
        ({"val_split": "train"}, DataError, "leaves no picture to learn from; choose other splits"),
        ({"model": "tinysd"}, ModelFileError, "did you mean 'tinyssd256'"),
        ({"anchors": "absent.json"}, Exception, "absent.json"),
        ({"freeze": 99}, OptionError, "freeze=99: the backbone has"),
        ({"match_iou": "0.4,0.5"}, OptionError, r"match_iou has 2 numbers for a model of 1 stage\(s\)"),
        ({"device": "cudda"}, OptionError, "device 'cudda' cannot be used"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    changes: dict[str, Any], error: type[Exception], message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train(config(pictures, **changes), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_some_classes(pictures: Path, tmp_path: Path) -> None:
    whole = read_dataset(pictures).split("train")
    with prepared(config(pictures, classes="green box"), tmp_path) as trainer:
        part = trainer.pictures.annotations
        assert part.class_map.names == ("green box",)
        assert len(part) == len(whole)
        assert part.num_boxes == sum(int((record.labels == 1).sum()) for record in whole)
        assert {int(i) for record in part for i in record.labels} == {0}
        assert trainer.detector.spec.num_classes == 1


@pytest.mark.slow
def test_default_boxes_can_be_fitted(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(config(pictures, anchors="fit", epochs=1, warmup=0, quiet=False), folder=tmp_path)
    _, card = load_detector(result.best)
    plain = start_from("tinyssd256", CLASSES).detector.spec.anchors
    assert card.anchors.boxes_per_cell == plain.boxes_per_cell
    assert "model: tinyssd256, random weights" in capsys.readouterr().err


@pytest.mark.slow
def test_first_batches_and_curves_are_drawn(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    train(config(pictures, plots=True, epochs=2), folder=tmp_path)
    for name in ("batch-1.jpg", "batch-2.jpg", "batch-3.jpg", "results.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) >= 64


def test_a_mosaic_run(pictures: Path, tmp_path: Path) -> None:
    options = config(pictures, mosaic=1.0, epochs=1, warmup=0)
    assert options.augment == AugmentOptions(mosaic=1.0)
    assert train(options, folder=tmp_path).finished


@pytest.mark.slow
def test_reduced_precision_and_compilation_are_asked_for(pictures: Path, tmp_path: Path) -> None:
    result = train(config(pictures, amp="bf16"), folder=tmp_path)
    assert all(math.isfinite(row["loss"]) for row in result.history)
    with prepared(config(pictures, amp="auto"), run_folder(tmp_path / "auto")) as trainer:
        assert trainer.config.run.amp in ("none", "bf16")
