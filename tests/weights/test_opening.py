"""One function opens by name: shipped models, our files, foreign weights and networks that are built anew."""

from __future__ import annotations

import dataclasses
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the train extra is not installed")

import multibox.weights.foreign.table as table
from multibox.cli import main
from multibox.errors import ContractError, ModelFileError, OptionError
from multibox.inference import Detector
from multibox.models import create_model
from multibox.spec.card import read_safetensors_card
from multibox.spec.classes import ClassMap
from multibox.training.config import TrainConfig, from_toml, merge, to_toml
from multibox.training.transfer import start_from
from multibox.weights import save_detector
from multibox.weights.foreign.table import Imported, ImporterRow, recognised
from multibox.weights.opening import open_model

PICTURE = Path(__file__).parents[2] / "examples" / "chelsea.png"
SCALES = {"scales": "coco", "size_hw": [300, 300]}
FAKE = ImporterRow("toy", "a toy's weights", "toy_importer")


class _ToyImporter:
    """A module for a row: reads any folder that holds a file `toy`."""

    @staticmethod
    def recognise(path: Path) -> str | None:
        return "its file toy" if (path / "toy").is_file() else None

    @staticmethod
    def read(path: Path, class_map: ClassMap | None = None) -> Imported:
        torch.manual_seed(int((path / "toy").read_text()))
        network = create_model("tinyssd256", num_classes=2, size_hw=[64, 64]).eval()
        return Imported(network, class_map or ClassMap(("a", "b")), path.name, "a toy", "Apache-2.0")


@pytest.fixture
def toy_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of foreign weights, and an installed package that brings the importer for it."""
    entry = EntryPoint("toy", f"{__name__}:FAKE", table.ENTRY_POINTS)
    monkeypatch.setattr(table, "entry_points", lambda group: [entry] if group == table.ENTRY_POINTS else [])
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "toy_importer", _ToyImporter)  # type: ignore[arg-type]
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "toy").write_text("3")
    return folder


def said_by(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["multibox", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), capsys.readouterr().err


def test_a_builder_gives_the_same_random_weights_each_time_and_leaves_torch_s_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    (first, card), (second, _) = open_model("tinyssd256", num_classes=3), open_model("tinyssd256", num_classes=3)
    assert torch.rand(1) == expected
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert card.class_map.names == ("class 0", "class 1", "class 2")
    assert card.source == "random weights"
    assert not first.training


def test_import_tries_the_model_on_a_picture(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = said_by(["import", str(toy_folder)], capsys, monkeypatch)
    assert (code, "try it: multibox predict PICTURE model=theirs.onnx" in said) == (0, True)
    code, said = said_by(["import", str(toy_folder), f"picture={PICTURE}", "name=tried"], capsys, monkeypatch)
    assert (code, "chelsea.png (451×300): " in said) == (0, True)
    with Image.open("tried.png") as drawn:
        assert drawn.size == (451, 300)


@pytest.mark.slow
def test_builder_arguments_are_kept_in_the_card_the_file_and_a_fine_tuning(tmp_path: Path) -> None:
    network, card = open_model("ssd300_vgg16", num_classes=2, **SCALES)
    assert card.arguments == {"num_classes": 2, **SCALES}
    path = tmp_path / "model.safetensors"
    save_detector(path, network, card)
    assert read_safetensors_card(path).arguments == card.arguments
    again, read = open_model(path)
    assert read.anchors == card.anchors
    assert read.anchors != create_model("ssd300_vgg16").spec.anchors
    tuned = start_from(str(path), ClassMap(("class 1", "x", "y"))).detector
    assert tuned.arguments == {**card.arguments, "num_classes": 3}
    assert tuned.spec.anchors == again.spec.anchors
    torch.testing.assert_close(tuned.features.state_dict(), network.features.state_dict())


def test_training_takes_builder_arguments_and_writes_them_into_its_configuration(tmp_path: Path) -> None:
    config = merge(TrainConfig(), {"model": "ssd300_vgg16", "arguments": '{"scales": "coco"}'})
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    arguments = from_toml(tmp_path / "config.toml").model.builder_arguments()
    built = start_from("ssd300_vgg16", ClassMap(("a",)), builder_arguments=arguments).detector
    assert built.spec.anchors == create_model("ssd300_vgg16", scales="coco").spec.anchors
    with pytest.raises(OptionError, match="the data settles the classes"):
        merge(config, {"arguments": '{"num_classes": 3}'})
    with pytest.raises(OptionError, match="not JSON"):
        merge(config, {"arguments": "scales=coco"})


@pytest.mark.slow
def test_another_input_size_keeps_the_weights_of_a_model() -> None:
    (own, card), (other, made) = open_model("ssdlite300-coco"), open_model("ssdlite300-coco", size_hw=(192, 256))
    assert made.preprocess == dataclasses.replace(card.preprocess, size_hw=(192, 256))
    assert (made.class_map, made.postprocess, made.anchors) == (card.class_map, card.postprocess, card.anchors)
    assert made.box_count < card.box_count
    assert made.anchors_sha256 != card.anchors_sha256
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))
    with pytest.raises(OptionError, match="has weights, which settle num_classes; leave that out"):
        open_model("ssdlite300-coco", num_classes=3)
    with pytest.raises(OptionError, match="has no argument 'scale'; did you mean 'scales'"):
        open_model("ssd300_vgg16", scale="coco")
    with pytest.raises(ContractError, match="too small"):
        open_model("ssd300_vgg16", size_hw=(64, 64))


def test_a_detector_opens_what_the_function_opens(toy_folder: Path) -> None:
    network, card = open_model(toy_folder)
    detector = Detector(toy_folder)
    assert detector.card == card
    images = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images))[-1].offsets
    np.testing.assert_allclose(detector.engine.run(images)[0], expected, atol=1e-5)
    assert Detector("tinyssd256", num_classes=3, size_hw=(64, 96)).card.preprocess.size_hw == (64, 96)
    with pytest.raises(OptionError, match="runs model files only; use engine=torch, or export tinyssd256 first"):
        Detector("tinyssd256", engine="onnxruntime")


def test_foreign_weights_are_recognised_and_converted(
    toy_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recognised(toy_folder) == (FAKE, "its file toy")
    assert recognised(toy_folder.parent) is None
    monkeypatch.chdir(toy_folder.parent)
    code, said = said_by(["import", "theirs", "onnx=false", "name=ours"], capsys, monkeypatch)
    assert (code, said.splitlines()[0]) == (0, "theirs: a toy's weights, by its file toy")
    assert said.splitlines()[1:] == ["try it: multibox predict PICTURE model=ours.safetensors"]
    card = read_safetensors_card(Path("ours.safetensors"))
    assert (card.name, card.source, card.licence) == ("ours", "a toy", "Apache-2.0")
    assert start_from("theirs", ClassMap(("b", "c"))).carried == ("b",)
    Path("empty").mkdir()
    code, said = said_by(["import", "empty"], capsys, monkeypatch)
    assert code == 1
    assert "not recognised as any of: " in said
    monkeypatch.setitem(table.IMPORTERS, "twin", ImporterRow("twin", "the same", "toy_importer"))
    with pytest.raises(OptionError, match=r"could be toy \(its file toy\) and twin \(its file toy\); convert it first"):
        recognised(toy_folder)


VERBS: dict[str, list[str]] = {
    "predict": ["predict", str(PICTURE), "model=MODEL", "save=false"],
    "val": ["val", "MODEL", "data"],
    "train": ["train", "data", "model=MODEL"],
    "export": ["export", "MODEL"],
    "info": ["info", "MODEL"],
    "check": ["check", "data", "model=MODEL"],
    "anchors": ["anchors", "data", "model=MODEL"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tinysd256", "tinysd256: unknown model; did you mean 'tinyssd256'?"),
        ("nothing.safetensors", "nothing.safetensors: no such model file; check the path"),
    ],
)
def test_every_verb_refuses_with_the_same_words(
    verb: str,
    model: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "data"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(PICTURE.read_bytes())
    (pictures / "annotations.csv").write_text("path,class,x1,y1,x2,y2\na.png,cat,10,10,90,90\n")
    code, said = said_by([word.replace("MODEL", model) for word in VERBS[verb]], capsys, monkeypatch)
    assert code == 1
    assert message in said


@pytest.mark.parametrize(
    "words",
    [
        ["info", "tinyssd256", "model.size_hw=64,96", "model.num-classes=3"],
        ["predict", str(PICTURE), "model=tinyssd256", "--model.size_hw=64,96", "model.num_classes=3", "json=true"],
    ],
)
def test_builder_arguments_on_the_command_line(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[dict[str, Any]] = []

    def noted(name: Any, **arguments: Any) -> Any:
        seen.append(arguments)
        return open_model(name, **arguments)

    monkeypatch.setattr("multibox.weights.opening.open_model", noted)
    assert said_by(words, capsys, monkeypatch)[0] == 0
    assert seen == [{"size_hw": [64, 96], "num_classes": 3}]


def test_pickled_files_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"\x80\x04not a state dict")
    with pytest.raises(ModelFileError, match="pickled"):
        open_model(tmp_path / "model.pth")
