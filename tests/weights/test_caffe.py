"""Caffe's SSDs against OpenCV, which runs them by itself."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from foreign_files import field, varint

from multibox.errors import ContractError, ModelFileError, MultiboxError, OptionError
from multibox.inference import Detector
from multibox.models.registry import list_models
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.caffe import read, recognise
from multibox.weights.foreign.protobuf import parse_text
from multibox.weights.foreign.table import recognised
from multibox.weights.opening import open_model

CLASSES, SIZE_HW = 2, (60, 90)
EXAMPLES = Path(__file__).parents[2] / "examples"
Blobs = dict[str, list[NDArray[np.float32]]]


def conv(name: str, bottom: str, channels: int, more: str) -> str:
    return f"""
layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"
  convolution_param {{ num_output: {channels} {more} }} }}"""


def plain(name: str, kind: str, bottoms: str, top: str = "", more: str = "") -> str:
    listed = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'\nlayer {{ name: "{name}" type: "{kind}" {listed} top: "{top or name}" {more} }}'


def head(tap: str, boxes: int, priors: str) -> str:
    text = ""
    for kind, outputs in (("loc", 4), ("conf", CLASSES + 1)):
        name = f"{tap}_mbox_{kind}"
        text += conv(name, tap, boxes * outputs, "kernel_size: 3 pad: 1")
        text += plain(f"{name}_perm", "Permute", name, more="permute_param { order: 0 order: 2 order: 3 order: 1 }")
        text += plain(f"{name}_flat", "Flatten", f"{name}_perm", more="flatten_param { axis: 1 }")
    variances = "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
    more = f"prior_box_param {{ {priors} {variances} offset: 0.5 }}"
    return text + plain(f"{tap}_mbox_priorbox", "PriorBox", f"{tap} data", more=more)


def joined(kind: str, axis: int) -> str:
    parts = " ".join(f"{tap}_mbox_{kind}{'' if kind == 'priorbox' else '_flat'}" for tap in ("norm1", "mixed", "deep"))
    return plain(f"mbox_{kind}", "Concat", parts, more=f"concat_param {{ axis: {axis} }}")


PREPARED = "transform_param { mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.02 }"
SHAPE = f"dim: 0 dim: -1 dim: {CLASSES + 1}"
PROTOTXT = f"""name: "made"  # a comment
input: "data"
input_shape {{ dim: 1 dim: 3 dim: {SIZE_HW[0]} dim: {SIZE_HW[1]} }}
{plain("data_bn", "BatchNorm", "data", more=PREPARED)}
{plain("data_scale", "Scale", "data_bn", "data_bn", "scale_param { bias_term: true }")}
{conv("conv1", "data_bn", 8, "kernel_size: 5 stride: 2 pad: 2")}
{plain("relu1", "ReLU", "conv1", "conv1")}
{plain("norm1", "Normalize", "conv1", more="norm_param { across_spatial: false channel_shared: false }")}
{plain("pool1", "Pooling", "conv1", more="pooling_param { pool: MAX kernel_size: 2 stride: 2 }")}
{conv("conv2", "pool1", 8, "kernel_h: 3 kernel_w: 3 pad_h: 2 pad_w: 2 dilation: 2 group: 8 bias_term: false")}
{plain("conv2_bn", "BatchNorm", "conv2", "conv2", "batch_norm_param { eps: 0.001 }")}
{plain("conv2_scale", "Scale", "conv2", "conv2", "scale_param { bias_term: true }")}
{plain("sum", "Eltwise", "pool1 conv2", more="eltwise_param { operation: SUM }")}
{conv("conv3", "sum", 4, "kernel_size: 1")}
{plain("mixed", "Concat", "sum conv3")}
{plain("pool2", "Pooling", "mixed", more="pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }")}
{conv("deep", "pool2", 8, "kernel_size: 3 stride: 2 pad: 1")}
{plain("relu_deep", "ReLU", "deep", "deep")}
{head("norm1", 4, "min_size: 12 max_size: 20 aspect_ratio: 2 flip: true clip: true")}
{head("mixed", 3, "min_size: 24.0 aspect_ratio: 3 aspect_ratio: 1 flip: true clip: true")}
{head("deep", 2, "min_size: 40 max_size: 55 flip: false clip: true")}
{joined("loc", 1)}{joined("conf", 1)}{joined("priorbox", 2)}
{plain("mbox_conf_reshape", "Reshape", "mbox_conf", more=f"reshape_param {{ shape {{ {SHAPE} }} }}")}
{plain("mbox_conf_softmax", "Softmax", "mbox_conf_reshape", more="softmax_param { axis: 2 }")}
{plain("mbox_conf_flatten", "Flatten", "mbox_conf_softmax", more="flatten_param { axis: 1 }")}
layer {{ name: "detection_out" type: "DetectionOutput" bottom: "mbox_loc" bottom: "mbox_conf_flatten"
  bottom: "mbox_priorbox" top: "detection_out" detection_output_param {{
    num_classes: {CLASSES + 1} share_location: true background_label_id: 0
    nms_param {{ nms_threshold: 0.45 top_k: 100 }} code_type: CENTER_SIZE keep_top_k: 50 confidence_threshold: 0.3 }} }}
"""


def caffemodel(blobs: Blobs, *, half: bool = False, old_shapes: bool = False) -> bytes:
    """As Caffe writes it; `half` as OpenCV's tool does; `old_shapes` with four sides and numbers one by one."""
    layers = b""
    for name, arrays in blobs.items():
        layer = field(1, name.encode()) + field(2, b"Any")
        for array in arrays:
            if old_shapes:
                sides = (1, 1, 1, 1, *array.shape)[-4:]
                blob = b"".join(varint(number << 3) + varint(side) for number, side in enumerate(sides, 1))
                blob += b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in array.ravel())
            else:
                blob = field(7, field(1, b"".join(map(varint, array.shape))))
                if half and array.ndim == 4:
                    blob += varint(10 << 3) + varint(2) + field(12, array.astype("<f2").tobytes())
                else:
                    blob += field(5, array.astype("<f4").tobytes())
            layer += field(7, blob)
        layers += field(100, layer)
    return field(1, b"made") + layers


def random_blobs(seed: int = 0) -> Blobs:
    rng = np.random.default_rng(seed)
    inputs = {"conv1": 3, "conv2": 1, "conv3": 8, "deep": 12}
    channels = {"norm1": 8, "mixed": 12, "deep": 8}
    blobs: Blobs = {}
    for layer in parse_text(PROTOTXT)["layer"]:
        name, kind = layer["name"][0], layer["type"][0]
        width = {"data": 3, "conv2": 8, "norm1": 8}.get(name.split("_")[0], 3)
        if kind == "Convolution":
            given = layer["convolution_param"][0]
            outputs, kernel = int(given["num_output"][0]), int(given.get("kernel_size", given.get("kernel_h"))[0])
            taken = inputs.get(name) or channels[name.split("_")[0]]
            weight = rng.normal(0, 1 / (taken * kernel**2) ** 0.5, (outputs, taken, kernel, kernel))
            blobs[name] = [weight, rng.normal(0, 0.5, outputs)][: 1 if "bias_term" in given else 2]
        elif kind == "BatchNorm":
            factor = 0.25  # both arrays are stored multiplied by it
            blobs[name] = [rng.normal(0, 0.2, width) * factor, rng.uniform(0.5, 2, width) * factor, np.array([factor])]
        elif kind == "Scale":
            blobs[name] = [rng.uniform(0.5, 1.5, width), rng.normal(0, 0.3, width)]
        elif kind == "Normalize":
            blobs[name] = [rng.uniform(1, 3, width)]
    return {name: [np.float32(array) for array in arrays] for name, arrays in blobs.items()}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "made.prototxt").write_text(PROTOTXT)
    (tmp_path / "made.caffemodel").write_bytes(caffemodel(random_blobs()))
    return tmp_path / "made.prototxt"


def raw_of(network: torch.nn.Module, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.inference_mode():
        raw = network(torch.from_numpy(image))[0]
    return raw.offsets.numpy(), raw.logits.numpy()


# ------------------------------------------------------------------------------------------------ the numbers


def test_every_layer_and_rule_gives_opencvs_numbers(made: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
    network = read(made).network
    net = cv2.dnn.readNetFromCaffe(str(made), str(made.with_suffix(".caffemodel")))
    rng = np.random.default_rng(1)
    for _ in range(3):
        image = rng.normal(0, 1, (1, 3, *SIZE_HW)).astype(np.float32)
        net.setInput(image)
        loc, conf, priors, found = net.forward(["mbox_loc", "mbox_conf_softmax", "mbox_priorbox", "detection_out"])
        offsets, logits = raw_of(network, image)
        np.testing.assert_allclose(offsets.reshape(-1), loc.reshape(-1), rtol=0, atol=1e-5 * np.abs(loc).max())
        scores = torch.softmax(torch.from_numpy(logits), -1).numpy()
        np.testing.assert_allclose(scores.reshape(-1), conf.reshape(-1), rtol=0, atol=1e-5)
        xyxy = priors[0, 0].reshape(-1, 4)
        expected = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        np.testing.assert_allclose(network.anchors_cxcywh().numpy(), expected, rtol=0, atol=1e-6)
        assert found.shape[2] > 3


def test_detections_are_opencvs(made: Path, tmp_path: Path) -> None:
    """On a picture of the network's size, which nothing resizes; OpenCV's boxes reach outside it, ours are cut off."""
    cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
    from multibox.export.onnx import export_onnx

    network, card = open_model(made)
    export_onnx(network, card, tmp_path / "made.onnx")
    picture = np.random.default_rng(2).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    picture[20:40, 30:60] = 255
    net = cv2.dnn.readNetFromCaffe(str(made), str(made.with_suffix(".caffemodel")))
    blob = cv2.dnn.blobFromImage(np.ascontiguousarray(picture[..., ::-1]), 0.02, mean=(104, 117, 123))
    net.setInput(blob)
    theirs = net.forward("detection_out")[0, 0]
    theirs = theirs[np.lexsort((-theirs[:, 2], theirs[:, 1]))]  # by class, then by score
    for detector in (Detector(tmp_path / "made.onnx"), Detector(str(made.with_suffix(".caffemodel")), engine="torch")):
        ours = detector(picture, conf=0.3)
        assert len(ours) == len(theirs) > 5
        order = np.lexsort((-ours.scores, ours.labels))
        assert (ours.labels[order] + 1).tolist() == theirs[:, 1].astype(int).tolist()
        np.testing.assert_allclose(ours.scores[order], theirs[:, 2], rtol=0, atol=1e-5)
        scaled = theirs[:, 3:].clip(0, 1) * np.array([SIZE_HW[1], SIZE_HW[0]] * 2)
        np.testing.assert_allclose(ours.boxes_xyxy[order], scaled, rtol=0, atol=1e-3)


@pytest.mark.parametrize("form", ["half", "old_shapes"])
def test_other_forms_of_the_caffemodel(made: Path, form: str) -> None:
    image = np.random.default_rng(3).normal(0, 1, (1, 3, *SIZE_HW)).astype(np.float32)
    expected = raw_of(read(made).network, image)
    made.with_suffix(".caffemodel").write_bytes(caffemodel(random_blobs(), **{form: True}))  # type: ignore[arg-type]
    for ours, theirs in zip(raw_of(read(made).network, image), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-2 if form == "half" else 0)


def test_weights_of_training_are_merged_into_the_convolutions_of_deployment(made: Path) -> None:
    image = np.random.default_rng(6).normal(0, 1, (1, 3, *SIZE_HW)).astype(np.float32)
    blobs = random_blobs()
    conv2, norm, scale = (blobs.pop(name) for name in ("conv2", "conv2_bn", "conv2_scale"))
    expected = raw_of(read(made).network, image)
    norm_and_scale = re.compile(r'\nlayer \{ name: "conv2_(bn|scale)".*')
    deployed = norm_and_scale.sub("", PROTOTXT).replace("group: 8 bias_term: false", "group: 8")
    made.write_text(deployed)
    norm[1] = norm[1] + np.float32((1e-3 - 1e-5) * norm[2][0])  # the epsilon of this one is not Caffe's own
    together = {**blobs, "conv2": conv2, "conv2/bn": norm, "conv2/scale": scale}
    made.with_suffix(".caffemodel").write_bytes(caffemodel(together))
    for ours, theirs in zip(raw_of(read(made).network, image), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture(scope="session")
def ultra_light() -> Path:
    """Linzaer's face detector: MULTIBOX_WEIGHTS, or ../shared/weights beside the checkout."""
    folder = Path(os.environ.get("MULTIBOX_WEIGHTS", Path(__file__).parents[3] / "shared" / "weights"))
    if not folder.is_dir():
        pytest.skip(f"no weights folder {folder}; set MULTIBOX_WEIGHTS to run this test")
    return folder / "ultra_light_face"


def test_a_real_face_detector_gives_the_numbers_of_its_own_onnx_file(ultra_light: Path) -> None:
    import onnxruntime

    imported = read(ultra_light / "RFB-320.caffemodel")
    assert imported.class_map.names == ("face",)
    assert any("default boxes" in note for note in imported.notes)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    file = ultra_light / "version-RFB-320_without_postprocessing.onnx"
    session = onnxruntime.InferenceSession(str(file), quiet)
    image = np.random.default_rng(4).uniform(-1, 1, (1, 3, 240, 320)).astype(np.float32)
    scores, boxes = session.run(["scores", "boxes"], {session.get_inputs()[0].name: image})
    offsets, logits = raw_of(imported.network, image)
    np.testing.assert_allclose(offsets, boxes, rtol=0, atol=1e-5)
    np.testing.assert_allclose(torch.softmax(torch.from_numpy(logits), -1).numpy(), scores, rtol=0, atol=1e-5)
    found = Detector(str(ultra_light / "RFB-320.prototxt"), engine="torch")(EXAMPLES / "astronaut.png", conf=0.7)
    assert found.names == ["face"]
    assert found.scores[0] > 0.9999
    np.testing.assert_allclose(found.boxes_xyxy[0], [179, 63, 269, 173], atol=1)


def test_opencvs_face_detector() -> None:
    """The real one, with the prototxt of wrong paddings, and OpenCV's own detections on the picture beside it."""
    folder = os.environ.get("MULTIBOX_RES10")
    if not folder:
        pytest.skip("MULTIBOX_RES10 does not name the folder with OpenCV's face detector")
    prototxt, picture = (next(Path(folder).rglob(name)) for name in ("deploy.prototxt", "face_detection_input.jpg"))
    imported = read(prototxt)
    assert sum("pad 1" in note for note in imported.notes) == 2
    assert len(imported.network.anchors_cxcywh()) == 8732
    found = Detector(str(prototxt), engine="torch")(picture, conf=0.85)
    expected = [
        (0.9904, 0.2658, 0.1055, 0.3364, 0.2950),
        (0.9831, 0.8273, 0.0902, 0.9106, 0.2762),
        (0.9760, 0.6127, 0.0708, 0.6858, 0.2439),
        (0.9192, 0.0981, 0.2067, 0.1799, 0.4047),
        (0.8851, 0.4225, 0.1864, 0.4882, 0.3551),
    ]
    np.testing.assert_allclose(found.scores, [row[0] for row in expected], atol=2e-3)  # of other bytes after resizing
    np.testing.assert_allclose(found.boxes_xyxy / [1920, 1080, 1920, 1080], [row[1:] for row in expected], atol=4e-4)


# ------------------------------------------------------------------------------------------------ files


def test_either_file_or_the_folder_may_be_named(made: Path) -> None:
    for path in (made, made.with_suffix(".caffemodel"), made.parent):
        assert recognise(path) == 'the layer type: "DetectionOutput" in made.prototxt'
        assert recognised(path)[0].name == "caffe"  # type: ignore[index]
        assert read(path).name == "made"
    assert "graph_ssd" not in list_models()  # nobody can build it by its name alone


def test_names_come_from_the_family_or_the_user(made: Path) -> None:
    assert read(made).class_map.names == ("class 0", "class 1")
    assert read(made, ClassMap(("cat", "dog"))).class_map.names == ("cat", "dog")
    with pytest.raises(ContractError, match="1 class names for weights with 2 classes"):
        read(made, ClassMap(("cat",)))


def test_the_written_file_keeps_everything_and_learns(made: Path, tmp_path: Path) -> None:
    from multibox.weights.store import load_detector, save_detector

    network, card = open_model(made)
    assert card.preprocess.mean == (104, 117, 123)
    assert card.preprocess.rounding
    save_detector(tmp_path / "again.safetensors", network, card)
    again, kept = load_detector(tmp_path / "again.safetensors")
    assert kept == card
    image = torch.randn(1, 3, *SIZE_HW)
    assert torch.equal(again(image)[0].logits, network(image)[0].logits)
    other, _ = open_model(tmp_path / "again.safetensors", size_hw=(90, 60))
    other.train()(torch.randn(2, 3, 90, 60))[0].offsets.sum().backward()
    assert all(p.grad is not None for key, p in other.named_parameters() if "logits" not in key)


def broken(made: Path) -> Iterator[tuple[str, type[MultiboxError], str]]:
    """Each way to break the files in turn, with the error that must follow."""
    blobs, weights = random_blobs(), made.with_suffix(".caffemodel")

    def spoilt(change: dict[str, list[NDArray[np.float32]] | None]) -> None:
        changed = {**blobs, **change}
        weights.write_bytes(caffemodel({name: arrays for name, arrays in changed.items() if arrays is not None}))

    spoilt({"conv3": None})
    yield "a layer missing", ContractError, "conv3 has 0 arrays instead of 2"
    spoilt({"conv3": blobs["conv3"][:1]})
    yield "a bias missing", ContractError, "conv3 has 1 arrays instead of 2"
    spoilt({"more": blobs["conv3"]})
    yield "a layer too many", ContractError, "more is no layer of the prototxt"
    spoilt({"conv3": [blobs["conv3"][0].transpose(1, 0, 2, 3), blobs["conv3"][1]]})
    yield "another shape", ContractError, r"conv3: \[8, 4, 1, 1\] instead of \[4, 8, 1, 1\]"
    weights.write_bytes(caffemodel(blobs)[:-100])
    yield "cut off", ModelFileError, "not a usable caffemodel .*100 bytes are missing at the end"
    weights.write_bytes(b"")
    yield "empty", ModelFileError, "no layers of today's form"
    weights.unlink()
    yield "gone", ModelFileError, "a .caffemodel belongs to it, but beside it there is none"
    for name in ("a.caffemodel", "b.caffemodel"):
        (made.parent / name).write_bytes(caffemodel(blobs))
    yield "two", ModelFileError, r"there is 2 \(a.caffemodel, b.caffemodel\)"
    for name in ("a.caffemodel", "b.caffemodel"):
        (made.parent / name).unlink()
    spoilt({})
    for old, new, message in (
        ('type: "ReLU" bottom: "deep"', 'type: "PReLU" bottom: "deep"', "layer relu_deep: PReLU with these parameters"),
        ("mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.02", "", "nothing says how a picture is prepared"),
        ("CENTER_SIZE", "CORNER", "boxes are coded as CORNER"),
        ("background_label_id: 0", "background_label_id: 2", "background is not class 0"),
        ("order: 0 order: 2 order: 3 order: 1", "order: 0 order: 3 order: 2 order: 1", "permutes in an order"),
        ("min_size: 40 max_size: 55 flip: false", "min_size: 40 flip: false", "do not end in convolutions for 1 boxes"),
        ("min_size: 40 max_size: 55", "min_size: 40 max_size: 55 step: 9", "in having a step"),
        ('type: "Softmax"', 'type: "Sigmoid"', "do not come from a Softmax"),
        (f"dim: 1 dim: 3 dim: {SIZE_HW[0]} dim: {SIZE_HW[1]}", "", "no input of 1 × 3 × height × width"),
        ('bottom: "sum" top: "conv3"', 'bottom: "sums" top: "conv3"', "takes 'sums', which no layer before it gives"),
    ):
        assert old in PROTOTXT
        made.write_text(PROTOTXT.replace(old, new))
        yield message, ContractError, message
    made.write_text(PROTOTXT.replace("{ dim", "{ { dim", 1))
    yield "no text of a message", ModelFileError, "not a usable prototxt"


def test_broken_files_are_refused_with_the_right_words(made: Path) -> None:
    for what, kind, message in broken(made):
        with pytest.raises(kind) as caught:
            read(made)
        assert re.search(message, str(caught.value)), what


def test_any_damage_is_an_error_of_ours(made: Path) -> None:
    weights, rng = made.with_suffix(".caffemodel"), np.random.default_rng(5)
    content = weights.read_bytes()
    for _ in range(60):
        spoilt = bytearray(content)
        spoilt[rng.integers(0, 600)] ^= 1 << int(rng.integers(8))
        weights.write_bytes(bytes(spoilt[: rng.integers(1, len(spoilt))]))
        with pytest.raises((ModelFileError, ContractError, OptionError)):
            read(made)
