"""Exporting with pictures alone: what the network itself finds is the truth."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnx", reason="the export extra is not installed")

from multibox.errors import ContractError
from multibox.export.request import ExportRequest
from multibox.export.selection import select
from multibox.export.unlabelled import is_unlabelled, own_findings
from multibox.inference import Detector
from multibox.weights.opening import open_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLES, tmp_path / "shots" / "deeper")
    return tmp_path / "shots"


def test_a_folder_of_pictures_alone(folder: Path, tmp_path: Path) -> None:
    assert is_unlabelled(str(folder))
    assert not is_unlabelled(str(folder / "deeper" / "chelsea.png"))
    assert not is_unlabelled(str(tmp_path / "nothing"))
    (folder / "notes.txt").write_text("cat")
    assert not is_unlabelled(str(folder))  # perhaps annotations, which a reader of data sets judges


def test_the_truth_is_what_the_network_finds(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no picture")
    network, card = open_model("ssdlite300-coco")
    dataset, said = own_findings(str(folder), network, card)
    detector = Detector("ssdlite300-coco", engine="torch")
    assert [record.path for record in dataset] == sorted(record.path for record in dataset)
    for record in dataset:
        found = detector(record.path, conf=0.5)
        assert len(found) > 0
        assert record.labels.tolist() == list(found.labels)
        assert abs(record.boxes_xyxy - found.boxes_xyxy).max() < 1e-3
    assert f"the {dataset.num_boxes} objects that the model itself finds" in said
    assert said.endswith("1 picture left out that cannot be read")


def test_nothing_found_is_refused(folder: Path) -> None:
    network, card = open_model("tinyssd256", num_classes=2)
    with torch.no_grad():
        for layer in network.heads[0].class_layers():
            layer.bias.zero_()
            layer.weight.zero_()
    with pytest.raises(ContractError, match="has no annotations, and the model finds nothing in its 3 pictures"):
        own_findings(str(folder), network, card)


def test_they_calibrate_and_measure(folder: Path) -> None:
    for number in range(3):
        shutil.copy(EXAMPLES / "chelsea.png", folder / f"{number}.png")
    network, card = open_model("ssdlite300-coco")
    selection = select(ExportRequest("ssdlite300-coco", "onnx-int8", data=str(folder)), network, card)
    assert (len(selection.measure), len(selection.calibrate)) == (4, 2)
    assert selection.notes[0].startswith(f"{folder} has no annotations: AP is against the ")
