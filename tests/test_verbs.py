"""The public functions do what the commands do, with the same options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import multibox
from multibox.errors import OptionError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures with a box each, in YOLO's layout, in the working folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for number in range(count):
            rgb = rng.integers(90, 150, (60, 80, 3), dtype=np.uint8)
            rgb[10:40, 20:60] = (220, 30, 30)
            Image.fromarray(rgb).save(tmp_path / "data" / "images" / split / f"{number}.png")
            label = tmp_path / "data" / "labels" / split / f"{number}.txt"
            label.write_text(f"0 {40 / 80} {25 / 60} {40 / 80} {30 / 60}\n")
    (tmp_path / "data" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [box]\n")
    return tmp_path / "data"


def test_everything_public_is_there() -> None:
    assert {"Detector", "read_dataset", "train", "validate", "export", "create_model"} <= set(dir(multibox))
    for name in multibox.__all__:
        thing = getattr(multibox, name)
        assert thing.__doc__ or isinstance(thing, str), name


def test_data_is_read(data: Path) -> None:
    found = multibox.read_dataset(data, split="train")
    assert (len(found), found.num_boxes, found.class_map.names) == (4, 4, ("box",))


@pytest.mark.slow
def test_train_validate_and_export(data: Path) -> None:
    pytest.importorskip("onnx", reason="the export extra is not installed")
    network = multibox.create_model("tinyssd256", num_classes=1, size_hw=(64, 64))
    assert network.spec.num_classes == 1
    result = multibox.train(data, model="tinyssd256", imgsz=64, epochs=2, batch=2, workers=0, plots=False, quiet=True)
    assert result.finished
    assert result.folder == Path("runs/train")
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.config.optim.epochs == 2
    assert multibox.train(resume=result.folder).history == result.history
    done = multibox.validate(result.best, data, split="val", resamples=0)
    assert done.folder == Path("runs/val")
    assert (done.folder / "report.html").is_file()
    assert done.results.coco.pictures == 2
    assert done.lost == ""
    assert done.results.summary()["AP"] == pytest.approx(max(row["AP"] for row in result.history), abs=1e-6)
    outcome = multibox.export(result.best, head="nms", output="box.onnx")
    assert outcome.report.passed
    assert outcome.path == Path("box.onnx")


def test_mistakes_are_refused_as_on_the_command_line(data: Path) -> None:
    with pytest.raises(OptionError, match="unknown option 'epoch'; did you mean 'epochs'"):
        multibox.train(data, epoch=3)
    with pytest.raises(OptionError, match="nothing to learn from"):
        multibox.train()
    with pytest.raises(OptionError, match="--resume takes the run folder"):
        multibox.train(data, resume="runs/train")
    with pytest.raises(OptionError, match="unknown option 'heads'; did you mean 'head'"):
        multibox.export("ssdlite300-coco", heads="nms")
    with pytest.raises(OptionError, match="imgsz='big': write one side"):
        multibox.export("ssdlite300-coco", imgsz="big")
    with pytest.raises(OptionError, match="unknown engine 'pycocotool'"):
        multibox.validate("ssdlite300-coco", data, metrics_engine="pycocotool")
    assert not Path("runs").exists()
