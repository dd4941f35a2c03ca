"""`multibox anchors` as its users meet it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from multibox.catalogue import resolve_model
from multibox.cli.anchors import command
from multibox.data import Dataset, ImageRecord, write_dataset
from multibox.doctor.anchors import load_anchor_spec
from multibox.errors import ModelFileError, OptionError
from multibox.spec.anchors import tf_anchors
from multibox.spec.classes import ClassMap

Call = Callable[..., str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A COCO file of 60 training pictures with long objects, and 60 for validation with squares that fit already."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (300, 300)).save(picture)
    rng = np.random.default_rng(0)
    records = []
    for number in range(120):
        train = number < 60
        sides = np.array([170.0, 32.0] if train else [105.0, 105.0])
        corner = rng.uniform(0, 300 - sides, (3, 2)) if train else np.full((3, 2), 112.5)
        path = tmp_path / f"{number}.png"
        path.write_bytes(picture.read_bytes())
        boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
        split = "train" if train else "val"
        records.append(ImageRecord(path.name, number, (300, 300), boxes, np.zeros(3, np.int64), split=split))
    target = tmp_path / "set"
    write_dataset(Dataset.from_records(records, ClassMap(("pole",)), root=tmp_path), target, format="yolo", copy="true")
    return target


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> str:
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.output

    return invoke


def test_proposal_for_people(call: Call, data: Path) -> None:
    said = call(data)
    assert "split train: 60 pictures, 180 boxes" in said.splitlines()[0]
    assert "default boxes of ssdlite300-coco, for an input of 300 × 300 (h × w) pixels:" in said
    assert "    1: 19 × 19 cells  " in said
    assert "30×30  85×42  42×85" in said
    for row in ("all, present", "all, proposed", "held out, present", "held out, proposed"):
        assert sum(line.startswith(f"  {row} ") for line in said.splitlines()) == 1
    assert said.splitlines()[-1] == f"to train with the proposed boxes: multibox train {data} anchors=fit"
    assert call(data) == said


def test_json_and_saved_file(call: Call, data: Path, tmp_path: Path) -> None:
    told = json.loads(call(data, "json=true", "save=boxes.json"))
    assert told["changed"] is True
    assert (told["split"], told["size_hw"], told["saved"]) == ("train", [300, 300], "boxes.json")
    assert told["before"]["share"] < 0.3 < 0.95 < told["after"]["share"]
    assert [len(shapes) for shapes in told["anchors"]["levels"]] == [3, 6, 6, 6, 6, 6]
    spec = load_anchor_spec(tmp_path / "boxes.json")
    assert spec.to_dict() == told["anchors"]
    assert spec.boxes_per_cell == tf_anchors().boxes_per_cell
    assert "wrote boxes.json; training reads it with anchors=boxes.json" in call(data, "--save", "boxes.json")


def test_nothing_to_change(call: Call, data: Path) -> None:
    said = call(data, "split=val")
    assert "→" not in said
    assert "note: the present boxes are kept: " in said
    assert said.splitlines()[-1] == "nothing to change: train with the boxes the model has"


def test_model_file_and_network(call: Call, data: Path) -> None:
    file = resolve_model("ssdlite300-coco", suffixes=(".onnx",))
    told = json.loads(call(data, f"model={file}", "--json"))
    assert told["changed"] is True
    pytest.importorskip("torch")
    said = call(data, "model=tinyssd256")
    assert "for an input of 256 × 256 (h × w) pixels" in said
    assert said.splitlines()[-1].endswith(" model=tinyssd256 anchors=fit")


def test_network_without_torch(without_torch: Callable[..., tuple[int, str, str]], data: Path) -> None:
    code, _, said = without_torch("anchors", data, "model=tinyssd256")
    assert code == 1
    assert re.search(r"needs the package 'torch'.*multibox\[train\]", said)
    code, out, _ = without_torch("anchors", data)
    assert code == 0
    assert "anchors=fit" in out


def test_wrong_options(call: Call, data: Path) -> None:
    with pytest.raises(OptionError, match=r"save must be a .json file, got 'boxes.yaml'"):
        call(data, "save=boxes.yaml")
    with pytest.raises(ModelFileError, match="no such model file"):
        call(data, "model=none.onnx")
    with pytest.raises(ModelFileError, match="tinyssd25: unknown model; did you mean 'tinyssd256'"):
        call(data, "model=tinyssd25")
