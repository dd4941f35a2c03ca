"""OpenVINO files and the engine that runs them."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnx", reason="the export extra is not installed")
if importlib.util.find_spec("openvino") is None:
    pytest.skip("the openvino extra is not installed", allow_module_level=True)

from multibox.errors import ContractError, ModelFileError, OptionError
from multibox.export.heads import HEADS
from multibox.export.int8_openvino import quantise_openvino
from multibox.export.layout import Layout, metadata_of
from multibox.export.openvino import compose, write
from multibox.export.verify.check import verify
from multibox.export.verify.samples import drawn_pictures
from multibox.inference import Detector
from multibox.pictures.read import read_picture

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))


def written(made: Any, path: Path, layout: Layout | None = None) -> Path:
    layout = layout or Layout()
    write(compose(made.network, made.card, layout), path, metadata_of(made.card, layout), made.card)
    return path


@pytest.mark.slow
def test_the_engine_agrees_with_eager_torch(tmp_path: Path, exported: Any) -> None:
    made = exported()
    path = written(made, tmp_path / "a.xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    mine, shipped, eager = Detector(path), Detector(engine="openvino"), Detector(engine="torch")
    assert mine.engine.name == shipped.engine.name == "openvino"
    assert mine.card == made.card
    for example in EXAMPLES:
        expected = eager(example, conf=0.05)
        assert len(expected) > 0
        for detector in (mine, shipped):
            found = detector(example, conf=0.05)
            assert found.names == expected.names
            np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=0.01)
    several = mine.predict([EXAMPLES[0], EXAMPLES[0], EXAMPLES[0]], batch=2)
    assert several[0] == several[1] == several[2]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head(head: str, tmp_path: Path, exported: Any) -> None:
    made = exported("tinyssd256", (96, 64))
    layout = Layout(head, 1 if HEADS[head].single else None, preprocess=head == "nms")
    path = written(made, tmp_path / "a.xml", layout)
    pictures = [np.asarray(read_picture(EXAMPLES[0])), *drawn_pictures()[3:6]]
    report = verify(path, made.detector, made.card, pictures)
    assert report.failures == []
    assert {row.output for row in report.tensors} == {"network_input", "offsets", "logits"}


def test_refusals(tmp_path: Path, exported: Any) -> None:
    made = exported("tinyssd256", (96, 64))
    with pytest.raises(ContractError, match=r"ends in \.xml"):
        written(made, tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match="exported with head=nms"):
        Detector(written(made, tmp_path / "a.xml", Layout("nms")))
    path = written(made, tmp_path / "b.xml")
    with pytest.raises(OptionError, match="unknown device 'tpu'"):
        Detector(path, device="tpu")
    with pytest.raises(ModelFileError, match="failed on an input"):
        Detector(path).engine.run(np.zeros((1, 3, 5, 5), np.float32))
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelFileError, match="OpenVINO cannot open it"):
        Detector(path)
    path.write_text("<net/>", encoding="utf-8")
    with pytest.raises(ModelFileError, match="OpenVINO cannot open it"):
        Detector(path)


def test_importing_openvino_sends_no_report() -> None:
    code = (
        "import sys; from multibox.quiet import import_quietly as q\n"
        "q('openvino', purpose='a test', extra='openvino')\n"
        "print(any(name.startswith('openvino_telemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="the quantize extra is not installed")
@pytest.mark.parametrize("head", ["nms", "tflite4"])
def test_int8_leaves_heads_and_preprocessing_alone(head: str, tmp_path: Path, exported: Any) -> None:
    from onnxscript import ir

    from multibox.export.int8_onnx import last_convolutions

    made = exported("tinyssd256", (96, 64))
    layout = Layout(head, preprocess=True)
    model = compose(made.network, made.card, layout)
    pictures = drawn_pictures()
    last, _ = last_convolutions(ir.from_proto(made.network).graph)
    levels = [handler.level for handler in logging.root.handlers]
    quantised = quantise_openvino(model, [picture[None] for picture in pictures], keep_float=last)
    assert [handler.level for handler in logging.root.handlers] == levels  # a program's own messages go on
    rounded = [op for op in quantised.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert rounded
    for op in quantised.get_ops():
        name = op.get_friendly_name()
        if name.startswith(("head/", "input/", *HEADS[head].outputs)) or name.split("/")[0] in last:
            sources = {port.get_source_output().get_node().get_type_name() for port in op.inputs()}
            assert "FakeQuantize" not in sources, name
    path = tmp_path / "a.xml"
    write(quantised, path, metadata_of(made.card, layout, precision="int8"), made.card)
    report = verify(path, made.detector, made.card, pictures)
    assert report.failures == []
    assert report.head_alone is not None


LET_GO_ELSEWHERE = """
import gc, signal, subprocess, sys, threading
from multibox import load
signal.signal(signal.SIGCHLD, lambda *_: None)
held = [load("ssdlite300-coco", engine="openvino")]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
gc.collect()
subprocess.run([sys.executable, "-c", ""])
print("alive")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_signals_are_handled_after_another_thread_has_let_go_of_a_model() -> None:
    ended = subprocess.run([sys.executable, "-c", LET_GO_ELSEWHERE], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "alive\n")
