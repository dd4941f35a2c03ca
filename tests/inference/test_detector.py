"""The detector: sources, options, order, and what it refuses."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox import Detector, load
from multibox.errors import ClassMapError, ImageError, ModelFileError, OptionError

EXAMPLES = Path(__file__).parents[2] / "examples"
CAT = EXAMPLES / "chelsea.png"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load("ssdlite300-coco")


def test_every_kind_of_source_gives_the_same(detector: Detector) -> None:
    data = CAT.read_bytes()
    expected = detector(CAT)
    assert expected.names == ["cat"]
    for source in (str(CAT), data, io.BytesIO(data), Image.open(CAT), np.array(Image.open(CAT))):
        assert detector(source) == expected
    assert expected.path == str(CAT)
    assert detector(np.array(Image.open(CAT))).path is None


def test_stream_is_lazy_ordered_and_the_same_in_batches(detector: Detector) -> None:
    names = ["chelsea", "coffee", "astronaut", "chelsea"]
    drawn: list[str] = []

    def pictures():
        for name in names:
            drawn.append(name)
            yield EXAMPLES / f"{name}.png"

    stream = detector.stream(pictures())
    assert drawn == []
    first = next(stream)
    assert drawn == ["chelsea"]
    rest = [first, *stream]
    assert [Path(d.path or "").stem for d in rest] == names
    for batch in (2, 3, 10):
        for one, other in zip(rest, detector.predict([EXAMPLES / f"{n}.png" for n in names], batch=batch), strict=True):
            assert one.names == other.names
            np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=1e-5)
            np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=1e-2)
    assert detector.predict([]) == []


def test_options(detector: Detector) -> None:
    coffee = EXAMPLES / "coffee.png"
    everything = detector(coffee, conf=0.01, max_det=1000)
    assert len(everything) > 10
    assert (everything.scores > 0.01).all()
    assert (np.diff(everything.scores) <= 0).all()
    assert len(detector(coffee, conf=0.01, max_det=3)) == 3
    assert set(detector(coffee, conf=0.01, classes=["cup", 60]).names) <= {"cup", "dining table"}
    assert len(detector(coffee, conf=0.01, iou=0.1, max_det=1000)) < len(everything)
    assert len(detector(coffee, conf=0.01, agnostic_nms=True, max_det=1000)) < len(everything)
    assert len(detector(coffee, conf=0.99)) == 0
    with pytest.raises(ClassMapError, match="did you mean 'cup'"):
        detector(coffee, classes=["cups"])
    for bad in ({"conf": -0.1}, {"conf": 2.0}, {"iou": 1.5}, {"max_det": 0}, {"batch": 0}):
        with pytest.raises(OptionError):
            detector(coffee, **bad)


def test_boxes_lie_in_the_upright_picture(detector: Detector, tmp_path: Path) -> None:
    picture = Image.open(CAT)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    path = tmp_path / "turned.jpg"
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    found, expected = detector(path), detector(CAT)
    assert found.picture_size_hw == expected.picture_size_hw == (300, 451)
    assert found.names == expected.names
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=6)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (2000, 1), (3, 3)])
def test_extreme_shapes(detector: Detector, size_hw: tuple[int, int]) -> None:
    found = detector(np.zeros((*size_hw, 3), np.uint8), conf=0.01)
    assert found.picture_size_hw == size_hw
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= [size_hw[1], size_hw[0]] * 2).all()


def test_errors_name_the_thing_and_the_remedy(detector: Detector, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        detector(bad)
    with pytest.raises(OptionError, match=r"predict\(\[\.\.\.\]\)"):
        detector([CAT])
    with pytest.raises(ModelFileError, match="did you mean 'ssdlite300-coco'"):
        Detector("ssdlite300-cocoa")
    with pytest.raises(OptionError, match="did you mean 'onnxruntime'"):
        Detector(engine="onnxruntim")
    with pytest.raises(OptionError, match="device"):
        Detector(device="gpu")
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(b"\x80\x04")
    with pytest.raises(ModelFileError, match=r"model\.pt.*not opened"):
        Detector(pickled)


def test_one_picture_in_place_of_several_is_refused(detector: Detector) -> None:
    for single in (str(CAT), CAT, CAT.read_bytes(), np.zeros((4, 4, 3), np.uint8), Image.new("RGB", (4, 4))):
        with pytest.raises(OptionError, match="give a list"):
            detector.stream(single)
        with pytest.raises(OptionError, match="give a list"):
            detector.predict(single)


def test_options_are_checked_before_any_picture(detector: Detector) -> None:
    with pytest.raises(OptionError, match="did you mean 'conf'"):
        detector.stream([CAT], cnof=0.5)
    with pytest.raises(OptionError, match="conf must be a number"):
        detector.stream([CAT], conf=7)
    with pytest.raises(OptionError, match="conf must be below 1"):
        detector.stream([CAT], conf=1)
    for bad in ({"conf": "0.5"}, {"conf": float("nan")}, {"batch": "2"}, {"batch": 1.5}, {"max_det": True}):
        with pytest.raises(OptionError):
            detector.stream([CAT], **bad)
    numpy_numbers = detector(CAT, conf=np.float32(0.5), max_det=np.int64(5), classes=15)
    assert numpy_numbers.names == ["cat"]
    assert detector(CAT, classes="dog").names == []
    assert detector(CAT, classes=np.int64(15)).names == ["cat"]


def test_open_files_keep_their_name_and_can_be_drawn(detector: Detector, tmp_path: Path) -> None:
    with CAT.open("rb") as file:
        found = detector(file)
    assert found.path == str(CAT)
    assert found.save(tmp_path / "drawn.png").stat().st_size > 0


def test_a_detector_travels_to_worker_processes(detector: Detector) -> None:
    import pickle

    twin = pickle.loads(pickle.dumps(detector))
    assert twin(CAT) == detector(CAT)


def rewritten_card(tmp_path: Path, **changes: object) -> Path:
    """The shipped ONNX file with another card in its metadata."""
    import json

    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    from multibox.catalogue import CATALOGUE

    model = onnx.load(CATALOGUE["ssdlite300-coco"].path(".onnx"))
    for entry in model.metadata_props:
        if entry.key == "multibox":
            card = json.loads(entry.value)
            for key, value in changes.items():
                part = card
                *path, last = key.split("__")
                for step in path:
                    part = part[step]
                part.pop(last) if value is None else part.update({last: value})
            entry.value = json.dumps(card)
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_map": {"names": ["a", "b"], "ids": [1, 2]}}, r"logits are \[1917, 80\], its metadata say \[1917, 2\]"),
        ({"postprocess__activation": "softmax"}, r"its metadata say \[1917, 81\]"),
        ({"preprocess__size_hw": [320, 320]}, r"images are \[3, 300, 300\], its metadata say \[3, 320, 320\]"),
        ({"preprocess__mean": None}, "preprocessing lacks 'mean'"),
        ({"postprocess__nms_iou": None}, "postprocess lacks 'nms_iou'"),
        ({"preprocess__size_hw": [10**6, 10**6]}, "size_hw must be"),
    ],
)
def test_a_card_that_contradicts_the_network_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = rewritten_card(tmp_path, **changes)
    with pytest.raises(ModelFileError, match=message) as caught:
        Detector(path)
    assert str(path) in str(caught.value)


def test_broken_weights_name_the_model_and_the_picture(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    from multibox.catalogue import CATALOGUE

    model = onnx.load(CATALOGUE["ssdlite300-coco"].path(".onnx"))
    tensor = next(t for t in model.graph.initializer if t.name == "features.stem.conv.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, np.float32), tensor.name))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"broken\.onnx: it gives nonsense on .*chelsea\.png .*not finite"):
        Detector(path)(CAT)


def test_threads_of_the_torch_engine_are_its_own() -> None:
    torch = pytest.importorskip("torch", reason="the train extra is not installed")
    before = torch.get_num_threads()
    detector = load("ssdlite300-coco", engine="torch", threads=before + 1)
    assert detector.engine.threads == before + 1
    during = []
    plain = detector.engine._network.forward
    detector.engine._network.forward = lambda batch: (during.append(torch.get_num_threads()), plain(batch))[1]
    assert detector(CAT).names == ["cat"]
    assert during == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_the_compiled_engine_gives_what_the_eager_one_gives(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the train extra is not installed")
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    toys = Path(__file__).parents[1] / "models"
    # In a process of its own: torch cannot compile functions whose shapes are checked, as they are under pytest.
    code = f"""
import sys
sys.path.append({str(toys)!r})
import numpy as np
import toy_cascades
from pathlib import Path
from multibox import load
from multibox.weights.opening import open_model
from multibox.weights.store import save_detector
path = Path({str(tmp_path / "toy.safetensors")!r})
save_detector(path, *open_model("toy_cascade"))
images = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
numbers = []
for engine in ("torch-compile", "torch"):
    opened = load(path, engine=engine).engine
    assert opened.name == engine
    numbers.append(opened.run(images))
for ours, theirs in zip(*numbers, strict=True):
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_compiler_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the train extra is not installed")

    def broken(*_: object) -> None:
        raise RuntimeError("no compiler found\nmore")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    with pytest.raises(
        OptionError, match=r"engine 'torch-compile' does not work here \(no compiler found\); use engine"
    ):
        load("ssdlite300-coco", engine="torch-compile")
    assert load("ssdlite300-coco").engine.name == "onnxruntime"
