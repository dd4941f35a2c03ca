"""Broken exports, one fault each, are refused, and the report says where the fault lies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the train extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")

from onnx import helper, numpy_helper

from multibox.data import Dataset, ImageRecord
from multibox.errors import ModelFileError
from multibox.export.heads import HEADS
from multibox.export.layout import Layout, metadata_of
from multibox.export.onnx import compose, write_onnx
from multibox.export.request import ExportRequest
from multibox.export.run import _settled, export_verified
from multibox.export.verify.artefact import Artefact
from multibox.export.verify.check import Report, Tolerances, verify
from multibox.inference import Detector
from multibox.pictures.read import read_picture
from multibox.spec.card import ModelCard
from multibox.spec.classes import ClassMap

pytestmark = pytest.mark.slow

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))


_made: list[Any] = []


@pytest.fixture(autouse=True)
def _source(exported: Any) -> None:
    _made[:] = [exported()]


def source() -> tuple[Any, ModelCard, Any]:
    return _made[0].detector, _made[0].card, _made[0].network


@cache
def pictures() -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(read_picture(path)) for path in EXAMPLES)


def judged(
    path: Path,
    *,
    head: str = "raw",
    preprocess: bool = False,
    inside: ModelCard | None = None,
    said: ModelCard | None = None,
    network: Any = None,
    precision: str = "float32",
    dataset: Dataset | None = None,
    max_drop: float = 0.01,
) -> Report:
    """Verify an export whose graph was made for the card `inside`, and whose metadata are those of `said`."""
    detector, card, sound = source()
    layout = Layout(head, preprocess=preprocess)
    model = compose(network or sound, inside or card, layout)
    write_onnx(model, path, metadata_of(said or card, layout, precision=precision))
    return verify(path, detector, card, pictures(), dataset=dataset, tolerances=Tolerances(max_drop=max_drop))


def card_with(**preprocess: Any) -> ModelCard:
    card = source()[1]
    return replace(card, preprocess=replace(card.preprocess, **preprocess))


@pytest.mark.parametrize("head", [head for head in HEADS if not HEADS[head].single])
def test_a_sound_export_passes(head: str, tmp_path: Path) -> None:
    report = judged(tmp_path / "a.onnx", head=head, preprocess=True)
    assert report.passed
    assert report.detections is not None
    assert report.detections.largest_px < 0.01
    json.dumps(report.to_dict(), allow_nan=False)


def test_wrong_mean_in_the_graph(tmp_path: Path) -> None:
    report = judged(tmp_path / "a.onnx", head="nms", preprocess=True, inside=card_with(mean=(120.0,) * 3))
    assert report.failures[0].startswith("network_input: differs by 0.0588")


def test_wrong_mean_in_the_metadata(tmp_path: Path) -> None:
    report = judged(tmp_path / "a.onnx", said=card_with(mean=(120.0,) * 3))
    assert "mean [120.0, 120.0, 120.0] instead of [127.5, 127.5, 127.5]" in report.failures[0]
    assert report.failures[1].startswith("network_input: ")


def test_swapped_channels(tmp_path: Path) -> None:
    report = judged(tmp_path / "a.onnx", head="nms", preprocess=True, inside=card_with(colour_order="BGR"))
    assert report.failures[0].startswith("network_input: differs")
    assert any(line.startswith("detections: ") for line in report.failures)


def test_another_resize_rule(tmp_path: Path) -> None:
    report = judged(tmp_path / "a.onnx", head="raw", preprocess=True, inside=card_with(coordinates="half_pixel"))
    assert report.failures[0].startswith("network_input: differs")


def shifted_classes() -> Any:
    """The network with its class scores moved by one place."""
    network = onnx.ModelProto()
    network.CopyFrom(source()[2])
    network.graph.node[-1].output[0] = "unshifted"
    order = np.roll(np.arange(80), 1)
    network.graph.initializer.append(numpy_helper.from_array(order, "order"))
    network.graph.node.append(helper.make_node("Gather", ["unshifted", "order"], ["logits"], axis=2))
    return network


def test_shifted_classes_in_the_graph(tmp_path: Path) -> None:
    report = judged(tmp_path / "a.onnx", head="nms", network=shifted_classes())
    assert report.failures[0].startswith("logits, level expanded_conv_13: differs")
    lines = next(line for line in report.failures if line.startswith("detections: "))
    assert "is missing; nearest is" in lines


def test_shifted_classes_in_the_metadata(tmp_path: Path) -> None:
    card = source()[1]
    names = (*card.class_map.names[1:], card.class_map.names[0])
    report = judged(tmp_path / "a.onnx", said=replace(card, class_map=ClassMap(names)))
    assert report.failures[0].startswith("metadata: other classes than the model's")
    assert any(line.startswith("detections: ") for line in report.failures)


def test_dropped_suppression(tmp_path: Path) -> None:
    card = source()[1]
    never = replace(card, postprocess=replace(card.postprocess, nms_iou=1.0))
    report = judged(tmp_path / "a.onnx", head="nms", inside=never)
    assert report.failures[0].startswith("head nms: ")
    assert "should not be there" in report.head_alone.unexplained[-1]  # type: ignore[union-attr, index]


def test_one_damaged_level_is_named(tmp_path: Path) -> None:
    network = onnx.ModelProto()
    network.CopyFrom(source()[2])
    bias = next(t for t in network.graph.initializer if t.name == "heads.0.offsets.2.1.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
    report = judged(tmp_path / "a.onnx", network=network)
    assert [line.partition(":")[0] for line in report.failures][:1] == ["offsets, level layer_19_2_2"]
    assert not any(row.holds for row in report.tensors if (row.output, row.level) == ("offsets", "layer_19_2_2"))
    assert all(row.holds for row in report.tensors if row.output != "offsets" or row.level != "layer_19_2_2")


def test_not_a_number(tmp_path: Path) -> None:
    network = onnx.ModelProto()
    network.CopyFrom(source()[2])
    bias = next(t for t in network.graph.initializer if t.name == "heads.0.logits.5.1.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
    report = judged(tmp_path / "a.onnx", network=network)
    assert "not finite" in report.failures[0]


def labelled_by_the_model(classes: ClassMap) -> Dataset:
    """The examples, with what the model itself finds for sure as the truth."""
    detector, records = Detector(), []
    for number, path in enumerate(EXAMPLES):
        found = detector(path, conf=0.5)
        records.append(ImageRecord(str(path), number, found.picture_size_hw, found.boxes_xyxy, found.labels))
    return Dataset.from_records(records, classes, root=Path("/"))


def test_int8_is_judged_by_accuracy_and_names_the_classes(tmp_path: Path) -> None:
    from multibox.export.int8_onnx import OnnxQuantizer

    card = source()[1]
    data = labelled_by_the_model(card.class_map)
    quantizer = OnnxQuantizer(source()[2], card, pictures())
    sound = judged(
        tmp_path / "a.onnx", head="nms", network=quantizer.quantised(), precision="int8", dataset=data, max_drop=0.3
    )
    assert sound.failures == []
    assert sound.found_again is not None
    assert sound.found_again > 0.9
    assert sound.accuracy is not None
    assert sound.accuracy.before["ap50"] > 0.99
    quantizer.ranges = {name: (low / 20, high / 20) for name, (low, high) in quantizer.ranges.items()}
    broken = judged(tmp_path / "b.onnx", network=quantizer.quantised(), precision="int8", dataset=data, max_drop=0.3)
    assert broken.failures[0].startswith("accuracy: AP50 falls by")
    assert "; most in " in broken.failures[0]


def test_what_fails_leaves_an_earlier_export_alone(tmp_path: Path) -> None:
    aside, path = tmp_path / "aside", tmp_path / "a.onnx"
    aside.mkdir()
    made = aside / path.name
    first = _settled(made, path, judged(made))
    assert (first.path, first.report_path) == (path, tmp_path / "a.onnx.report.json")
    good = {file.name: file.read_bytes() for file in (path, first.report_path)}
    assert json.loads(good["a.onnx.report.json"])["sha256"] == {"a.onnx": hashlib.sha256(good["a.onnx"]).hexdigest()}
    report = judged(made, said=card_with(mean=(120.0,) * 3))
    made.with_suffix(".bin").write_bytes(b"weights")
    outcome = _settled(made, path, report)
    assert {file.name: file.read_bytes() for file in (path, first.report_path)} == good
    assert outcome.path == tmp_path / "a.onnx.rejected"
    assert outcome.path.is_file()
    assert (tmp_path / "a.bin.rejected").read_bytes() == b"weights"
    assert not (tmp_path / "a.bin").exists()
    written = json.loads((tmp_path / "a.onnx.rejected.report.json").read_text(encoding="utf-8"))
    assert written["passed"] is False
    assert written["failures"] == report.failures
    assert _settled(made, path, judged(made)).path == path
    assert not list(tmp_path.glob("a.onnx.rejected*"))


def test_an_export_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("multibox.export.run.verify", interrupted)
    (tmp_path / "a.onnx").write_bytes(b"an earlier one")
    with pytest.raises(KeyboardInterrupt):
        export_verified(ExportRequest("tinyssd256", size_hw=(64, 96), output=tmp_path / "a.onnx"))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.onnx", b"an earlier one")]


@pytest.mark.parametrize("head", ["raw", "nms"])
def test_a_head_without_anything_to_find_is_unproven(head: str, tmp_path: Path) -> None:
    detector, card, network = source()
    card = replace(card, postprocess=replace(card.postprocess, score_threshold=0.999))
    path = tmp_path / "a.onnx"
    layout = Layout(head)
    write_onnx(compose(network, card, layout), path, metadata_of(card, layout))
    report = verify(path, detector, card, pictures())
    assert report.detections is not None
    assert report.detections.expected == 0
    said = report.notes if head == "raw" else report.failures
    assert [text.split("; ")[1] for text in said] == ["give data=… with objects that the model finds, or a lower conf"]
    assert report.passed == (head == "raw")


def test_tolerances_are_the_callers(tmp_path: Path) -> None:
    detector, card, network = source()
    path, layout = tmp_path / "a.onnx", Layout("nms", preprocess=True)
    write_onnx(compose(network, card, layout), path, metadata_of(card, layout))
    report = verify(path, detector, card, pictures(), tolerances=Tolerances(relative=1e-12))
    assert report.failures[0].startswith("network_input: differs by")


@pytest.mark.parametrize(("head", "preprocess"), [("nms", False), ("raw", True)])
def test_engines_refuse_what_they_would_misread(head: str, preprocess: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    judged(path, head=head, preprocess=preprocess)
    with pytest.raises(ModelFileError, match=f"exported with head={head}"):
        Detector(path)


def without_output(name: str) -> Any:
    """The network with an output missing."""
    network = onnx.ModelProto()
    network.CopyFrom(source()[2])
    kept = [output for output in network.graph.output if output.name != name]
    del network.graph.output[:]
    network.graph.output.extend(kept)
    return network


def test_a_file_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    detector, card, _ = source()
    path = tmp_path / "a.onnx"
    write_onnx(without_output("logits"), path, metadata_of(card, Layout()))
    assert verify(path, detector, card, pictures()).failures == ["it cannot be run: there is no output 'logits'"]
    two = Layout(batch=2)
    write_onnx(compose(source()[2], card, two), path, metadata_of(card, Layout()))  # says that any batch will do
    (failure,) = verify(path, detector, card, pictures()).failures
    assert failure.startswith("it cannot be run: ")
    assert "images" in failure


@pytest.mark.parametrize("step", ["check.tensor_differences", "check.agreement", "artefact.open_runner"])
def test_an_error_of_the_check_itself_is_no_failure_of_the_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(f"multibox.export.verify.{step}", broken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        judged(tmp_path / "a.onnx")


def test_only_the_runtimes_own_errors_count_against_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, card = tmp_path / "a.onnx", source()[1]
    write_onnx(compose(source()[2], card, Layout()), path, metadata_of(card, Layout()))
    artefact = Artefact(path)
    monkeypatch.setattr(artefact._runner, "_names", ["offsets"])  # a mistake of ours: the file has two outputs
    with pytest.raises(ValueError, match="zip"):
        next(artefact.see(pictures()))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="its runtime cannot open it"):
        Artefact(path)
