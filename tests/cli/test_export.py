"""`multibox export` as its users meet it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the train extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")

from PIL import Image

from multibox import Detector
from multibox.cli import main
from multibox.export import onnx as onnx_format
from multibox.export import triton
from multibox.export.int8_search import nothing_in_int8
from multibox.export.verify.samples import drawn_pictures


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["multibox", "export", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


TINY = ("tinyssd256", "imgsz=64,96")


@pytest.mark.slow
def test_the_file_predicts_and_the_report_lies_beside_it(run: Any) -> None:
    code, out, err = run(*TINY, "output=made/tiny.onnx")
    assert code == 0, err
    assert "detections: " in out
    assert "wrote made/tiny.onnx" in out
    report = json.loads(Path("made/tiny.onnx.report.json").read_text(encoding="utf-8"))
    assert report["passed"] is True
    assert report["detections"]["unexplained"] == 0
    assert Detector("made/tiny.onnx").card.preprocess.size_hw == (64, 96)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_with_a_fixed_batch_takes_any_number_of_pictures(engine: str, run: Any) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
    assert run(*TINY, "batch=4", "output=four.onnx", "--quiet")[0] == 0
    fixed = Detector("four.onnx", engine=engine)
    pictures = drawn_pictures()[:6]
    images = np.stack([fixed.card.preprocess(picture)[0] for picture in pictures])
    whole = [
        np.concatenate(parts) for parts in zip(fixed.engine.run(images[:4]), fixed.engine.run(images[2:]), strict=True)
    ]
    for given, expected in zip(fixed.engine.run(images), whole, strict=True):
        np.testing.assert_allclose(given, expected[[0, 1, 2, 3, 6, 7]], rtol=0, atol=1e-5)
    assert [len(found) for found in fixed.stream(pictures, batch=4)] == [len(fixed(picture)) for picture in pictures]


@pytest.mark.slow
def test_frigate_takes_pictures_of_the_networks_size_and_has_a_label_file(run: Any) -> None:
    code, out, err = run(*TINY, "head=frigate", "max_det=20", "conf=0.3", "--json")
    assert code == 0, err
    assert json.loads(out)["passed"] is True
    model = onnx.load("tinyssd256-frigate.onnx")
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 64, 96, 3]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 1, 20, 7]
    labels = Path("tinyssd256-frigate.labels.txt").read_text(encoding="utf-8")
    assert labels == "0  background\n1  class 0\n"


@pytest.mark.slow
def test_a_broken_export_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compose = onnx_format.compose

    def without_suppression(network: Any, card: Any, layout: Any) -> Any:
        from dataclasses import replace

        return compose(network, replace(card, postprocess=replace(card.postprocess, nms_iou=1.0)), layout)

    monkeypatch.setattr(onnx_format, "compose", without_suppression)
    code, _, err = run(*TINY, "head=nms", "batch=2")
    assert code == 1
    assert "multibox: head nms: " in err
    assert "refused; it is tinyssd256-nms.onnx.rejected" in err
    assert sorted(p.name for p in Path().iterdir()) == [
        "tinyssd256-nms.onnx.rejected",
        "tinyssd256-nms.onnx.rejected.report.json",
    ]


@pytest.mark.slow
def test_a_triton_repository_that_is_broken_is_refused_whole(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*TINY, "format=triton", "head=nms", "preprocess=true")
    write = triton.write

    def shifted(model: Any, folder: Path, metadata: Any, card: Any) -> None:
        write(model, folder, metadata, card)
        config = folder / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8").replace("TYPE_INT64", "TYPE_FP32"), encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(triton, "write", shifted)
        code, _, err = run(*arguments)
    assert code == 1
    assert "config.pbtxt: output 'count' is TYPE_INT64 [-1] in the model, declared is TYPE_FP32 [-1]" in err
    assert sorted(p.name for p in Path().iterdir()) == [
        "tinyssd256-nms.rejected",
        "tinyssd256-nms.rejected.report.json",
    ]
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "wrote tinyssd256-nms and tinyssd256-nms.report.json" in out
    assert sorted(p.as_posix() for p in Path().rglob("*")) == [
        "tinyssd256-nms",
        "tinyssd256-nms.report.json",
        "tinyssd256-nms/1",
        "tinyssd256-nms/1/model.onnx",
        "tinyssd256-nms/config.pbtxt",
        "tinyssd256-nms/labels.txt",
    ]
    Path("tinyssd256-nms/2").mkdir()
    code, _, err = run(*arguments)
    assert code == 1
    assert "tinyssd256-nms exists and is not an unchanged export of ours" in err
    assert Path("tinyssd256-nms/2").is_dir()


def write_dataset(folder: Path) -> Path:
    """Drawn pictures with a box each, as CSV: some to train on, some to measure on."""
    folder.mkdir()
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "x1", "y1", "x2", "y2", "name", "split"])
        for number, picture in enumerate(drawn_pictures()):
            Image.fromarray(picture).save(folder / f"{number}.png")
            split = "train" if number % 2 else "val"
            writer.writerow([f"{number}.png", 5, 5, 40, 40, "class 0", split])
    return folder / "boxes.csv"


@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_counted(run: Any, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    broken = data.parent / "2.png"
    broken.write_bytes(broken.read_bytes()[:999])
    code, out, err = run(*TINY, f"data={data}")
    assert code == 0, err
    assert "1 of 4 pictures cannot be read and were left out: multibox check names them" in out


def test_int8_without_a_layer_in_int8_is_refused() -> None:
    assert nothing_in_int8({"int8_layers": 1, "float_layers": []}) == []
    [failure] = nothing_in_int8({"int8_layers": 0, "float_layers": ["a", "b"]})
    assert failure.startswith("int8: AP falls by less than max_drop only with every layer in float32")


@pytest.mark.slow
def test_int8_end_to_end(run: Any, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    code, out, err = run(*TINY, "format=onnx-int8", "head=nms", "preprocess=true", f"data={data}", "max_drop=1")
    assert code == 0, err
    assert "calibrated on 4 pictures" in out
    report = json.loads(Path("tinyssd256-nms-int8.onnx.report.json").read_text(encoding="utf-8"))
    assert report["precision"] == "int8"
    assert report["head_alone"]["holds"] is True
    assert report["quantisation"]["int8_layers"] >= 6
    assert f"int8: {report['quantisation']['int8_layers']} layers, and " in out
    assert report["quantisation"]["sensitivity"][0]["noise_share"] > 0
    assert set(report["accuracy"]["drop"]) == {"ap", "ap50"}
    kinds = {node.op_type for node in onnx.load("tinyssd256-nms-int8.onnx").graph.node}
    assert {"QuantizeLinear", "NonMaxSuppression"} <= kinds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hed=nms"], "unknown option 'hed'; did you mean 'head'?"),
        (["head=nmss"], "unknown head 'nmss'; did you mean 'nms'?"),
        (["format=onx"], "unknown format 'onx'; did you mean 'onnx'?"),
        (["dynamic=true", "batch=2"], "dynamic=true leaves the batch free, batch=2 fixes it"),
        (["head=frigate", "batch=2"], "head=frigate has room for one picture only"),
        (["format=onnx-int8"], "give data=DATASET"),
        (["calibrate=x"], "calibrate is for int8"),
        (["output=a.xml"], "format=onnx is written to a .onnx file"),
        (["format=triton", "head=tflite4"], "format=triton has no head=tflite4; use one of raw, decoded, nms"),
        (["format=triton", "head=frigate"], "format=triton has no head=frigate; use one of raw, decoded, nms"),
        (["format=triton", "output=a.onnx"], "format=triton is written to a folder, not 'a.onnx'"),
        (["tolerance=0"], "tolerance"),
        (["data=nowhere"], "there is no such file or folder"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Any, arguments: list[str], message: str) -> None:
    code, _, err = run("tinyssd256", *arguments)
    assert code != 0
    assert message in err
    assert not list(Path().iterdir())


def test_pictures_that_set_the_scales_do_not_measure_the_cost(run: Any, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    code, _, err = run(*TINY, "format=onnx-int8", f"data={data}", f"calibrate={data}")
    assert code == 1
    assert "4 pictures would both set the scales and measure the cost" in err


def test_drawn_pictures_are_the_same_everywhere() -> None:
    import hashlib

    pictures = drawn_pictures()
    assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}
    digests = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
    assert len(set(digests)) == len(pictures)
    assert digests == [hashlib.sha256(picture.tobytes()).hexdigest() for picture in drawn_pictures()]
