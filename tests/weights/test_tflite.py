"""TensorFlow Lite files, on files made here and on a real one; their own runtime is the oracle."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tflite_files import COLUMNS, SIZE, default_boxes, small_ssd

torch = pytest.importorskip("torch", reason="the train extra is not installed")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="the litert-runtime extra is not installed")

from multibox.errors import ContractError, ModelFileError
from multibox.inference import Detector
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.table import recognised
from multibox.weights.foreign.tflite import read
from multibox.weights.foreign.tflite_file import _numbers, _quantised

EXAMPLES = Path(__file__).parents[2] / "examples"
LABELS = 184  # bytes of names before the model in MediaPipe's packed file
OPTIONS = {
    "max_detections": 20,
    "max_classes_per_detection": 1,
    "detections_per_class": 100,
    "use_regular_nms": False,
    "nms_score_threshold": 0.3,
    "nms_iou_threshold": 0.6,
    "num_classes": COLUMNS - 1,
    "y_scale": 10.0,
    "x_scale": 10.0,
    "h_scale": 5.0,
    "w_scale": 5.0,
}


@pytest.fixture(scope="module")
def rgb() -> Any:
    return np.asarray(Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize((SIZE, SIZE)))


def run(path: Path, image: Any) -> list[Any]:
    """The outputs of a file in their order, by its own runtime; integers as the numbers that they stand for."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    found = []
    for one in interpreter.get_output_details():
        scale, zero = one["quantization"]
        value = interpreter.get_tensor(one["index"])[0].astype(np.float32)
        found.append((value - zero) * scale if scale else value)
    return found


def raw_of(path: Path, rgb: Any) -> tuple[Any, Any, Any]:
    network = read(path).network
    image, _ = network.spec.preprocess(rgb)
    with torch.inference_mode():
        (stage,) = network(torch.from_numpy(image)[None])
    return np.ascontiguousarray(image.transpose(1, 2, 0)), stage.offsets[0].numpy(), stage.logits[0].numpy()


def test_raw_outputs_are_the_runtime_s(tmp_path: Path, rgb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_ssd(schema, tmp_path / "small.tflite", rgb)
    rule = [(3, 16), (6, 8)]
    monkeypatch.setattr("multibox.weights.foreign.tflite.tf_rules", lambda: {"": _spec()})
    image, offsets, logits = raw_of(path, rgb)
    boxes, scores = run(path, image)
    assert len(boxes) == sum(count * cells**2 for count, cells in rule)
    assert offsets == pytest.approx(boxes[:, [1, 0, 3, 2]], abs=1e-5)
    assert logits == pytest.approx(scores[:, 1:], abs=1e-5)


def test_default_boxes_that_no_rule_gives_are_not_guessed(tmp_path: Path, rgb: Any) -> None:
    with pytest.raises(ContractError, match=r"holds no default boxes, and no rule is known for \(3, 6\) of them"):
        read(small_ssd(schema, tmp_path / "small.tflite", rgb))


def _spec() -> Any:
    from multibox.spec.anchors import AnchorSpec

    return AnchorSpec((((0.1, 0.1),) * 3, ((0.2, 0.2),) * 6))


@pytest.mark.parametrize("regular", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_detections_are_the_runtime_s(tmp_path: Path, rgb: Any, quantised: bool, regular: bool) -> None:
    options = {**OPTIONS, "use_regular_nms": regular}
    path = small_ssd(schema, tmp_path / "small.tflite", rgb, quantised=quantised, postprocess=options)
    found = recognised(path)
    assert found is not None
    assert found[0].name == "tflite"
    imported = read(path)
    spec = imported.network.spec
    assert spec.postprocess.class_agnostic is not regular
    image, _ = spec.preprocess(rgb)
    given = rgb if quantised else np.ascontiguousarray(image.transpose(1, 2, 0))
    boxes, classes, scores, count = run(path, given)
    assert count == len(scores) > 5
    expected = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2]], axis=1).clip(0, 1) * SIZE
    ours = Detector(path, engine="torch")(Image.fromarray(rgb), conf=0.3, iou=0.6, max_det=20)
    if not quantised:
        assert ours.scores == pytest.approx(scores, abs=1e-5)
        assert ours.boxes_xyxy == pytest.approx(expected, abs=1e-3)
        assert ours.labels.tolist() == classes.astype(int).tolist()
        return
    assert any("integers" in note for note in imported.notes)
    best = ours.scores[0], ours.labels[0], ours.boxes_xyxy[0]
    near = int(np.argmin(np.abs(expected - best[2]).max(axis=1)))
    assert abs(scores[near] - best[0]) < 0.03
    assert classes[near] == best[1]
    assert expected[near] == pytest.approx(best[2], abs=0.8)


def test_an_integer_input_says_how_pictures_are_prepared(tmp_path: Path, rgb: Any) -> None:
    path = small_ssd(schema, tmp_path / "small.tflite", rgb, quantised=True, postprocess=OPTIONS)
    preprocess = read(path).network.spec.preprocess
    assert preprocess.mean == (128, 128, 128)
    assert preprocess.scale == (1 / 128,) * 3


def test_default_boxes_are_the_stored_ones(tmp_path: Path, rgb: Any) -> None:
    path = small_ssd(schema, tmp_path / "small.tflite", rgb, postprocess=OPTIONS)
    rng = np.random.default_rng(3)
    network = read(path).network
    ours = network.anchors_cxcywh().numpy()
    # The boxes are drawn last, after the weights, so only their form is known here.
    assert ours.shape == default_boxes(rng).shape
    assert ours[:3, :2] == pytest.approx(np.full((3, 2), 0.5 / 16), abs=1e-6)


def test_each_output_of_a_kernel_may_have_its_own_scale() -> None:
    tensor = schema.TensorT()
    tensor.shape, tensor.type = [2, 1, 1, 3], schema.TensorType.INT8
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5, 0.25], [0, 3]
    tensor.quantization.quantizedDimension = 0
    stored = np.array([[-2, 0, 4], [3, 4, 127]], np.int8)
    found = _numbers(tensor, stored.tobytes(), _quantised(tensor))
    assert found[:, 0, 0].tolist() == [[-1, 0, 2], [0, 0.25, 31]]


def test_labels_that_are_packed_behind_the_model_are_taken(tmp_path: Path, rgb: Any) -> None:
    path = small_ssd(schema, tmp_path / "small.tflite", rgb, postprocess=OPTIONS)
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("labels.txt", "cat\n???\ndog\n")
    imported = read(path)
    assert imported.class_map.names == ("cat", "dog")
    assert imported.class_map.ids == (1, 3)
    assert imported.network.spec.num_classes == 2
    assert read(path, ClassMap(("a", "b", "c"))).class_map.names == ("a", "b", "c")
    with pytest.raises(ContractError, match="2 class names for weights with 3 classes"):
        read(path, ClassMap(("a", "b")))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, rgb: Any) -> None:
    path = small_ssd(schema, tmp_path / "small.tflite", rgb, postprocess=OPTIONS)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="not a usable TensorFlow Lite file"):
        read(path)
    path.write_bytes(b"nothing of it")
    with pytest.raises(ModelFileError, match="does not begin as one"):
        read(path)


def test_an_operator_that_is_not_known_is_named(tmp_path: Path, rgb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_ssd(schema, tmp_path / "small.tflite", rgb, postprocess=OPTIONS)
    model = schema.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.ADD:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MAXIMUM
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(ContractError, match="MAXIMUM, which is not known here"):
        read(path)


def test_a_file_of_neither_kind_is_refused_with_what_to_do(tmp_path: Path, rgb: Any) -> None:
    path = small_ssd(schema, tmp_path / "small.tflite", rgb, postprocess=OPTIONS)
    path.write_bytes(path.read_bytes().replace(b"TFLite_Detection_PostProcess", b"TFLite_Detection_PostProcesX"))
    assert recognised(path) is None
    with pytest.raises(ModelFileError, match="a file without multibox metadata"):
        Detector(path)


@pytest.mark.slow
def test_a_real_file_gives_what_its_runtime_gives(tmp_path: Path) -> None:
    given = os.environ.get("MULTIBOX_OBJECTRON", "")
    if not given:
        pytest.skip("MULTIBOX_OBJECTRON does not name the folder with MediaPipe's objectron package")
    packed = (Path(given) / "objectron_solution_packed_assets.data").read_bytes()
    path = tmp_path / "objects.tflite"
    path.write_bytes(packed[LABELS:])
    rgb = np.asarray(Image.open(EXAMPLES / "coffee.png").convert("RGB"))
    image, offsets, logits = raw_of(path, rgb)
    boxes, scores = run(path, image)
    assert offsets == pytest.approx(boxes[:, [1, 0, 3, 2]], abs=2e-4)
    assert logits == pytest.approx(scores[:, 1:], abs=1e-4)
    assert logits.max(axis=0).argmax() + 1 == 13  # a coffee cup
