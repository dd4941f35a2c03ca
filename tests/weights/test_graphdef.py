"""Frozen graphs of TensorFlow, on graphs made here and on a real one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

import tf_networks
from foreign_files import OUTPUTS, field, graph_tensors, varint

from multibox.errors import ContractError, ModelFileError
from multibox.inference import Detector
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.graphdef import read, read_constants, recognise
from multibox.weights.foreign.table import recognised

EXAMPLES = Path(__file__).parents[2] / "examples"
RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333, 1.0)
NUMBERS = {"float32": 1, "int32": 3}
Graph = dict[str, np.ndarray]


def constant(name: str, value: np.ndarray, *, one_by_one: bool = False) -> bytes:
    kind = NUMBERS[str(value.dtype)]
    shape = b"".join(field(2, varint(1 << 3) + varint(side)) for side in value.shape)
    tensor = varint(1 << 3) + varint(kind) + field(2, shape)
    if one_by_one and kind == 3:
        tensor += field(7, b"".join(varint(int(number) % (1 << 64)) for number in value.ravel()))
    elif one_by_one:
        tensor += field(5, value.astype("<f4").tobytes())
    else:
        tensor += field(4, value.astype({1: "<f4", 3: "<i4"}[kind]).tobytes())
    attribute = field(5, field(1, b"value") + field(2, field(8, tensor)))
    return field(1, field(1, name.encode()) + field(2, b"Const") + attribute)


def node(name: str, operation: str) -> bytes:
    return field(1, field(1, name.encode()) + field(2, operation.encode()) + field(3, b"something"))


def rule(*, square_second: bool = False) -> Graph:
    """The constants that the default boxes are computed from; models of 2017 have the larger square second."""
    order = [0, 5, 1, 2, 3, 4] if square_second else [0, 1, 2, 3, 4, 5]
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0]
    found: Graph = {"MultipleGridAnchorGenerator/Sqrt/x": np.float32([1, 2, 0.5])}
    found["MultipleGridAnchorGenerator/truediv_14/x"] = np.float32([0.1, 0.2, 0.2])
    for level in range(1, 6):
        six = [scales[level]] * 5 + [(scales[level] * scales[level + 1]) ** 0.5]
        found[f"MultipleGridAnchorGenerator/Sqrt_{level}/x"] = np.float32(RATIOS)[order]
        found[f"MultipleGridAnchorGenerator/truediv_{level + 14}/x"] = np.float32(six)[order]
    return found


def write(path: Path, tensors: Graph, scores: str = "Sigmoid", size_hw: tuple[int, int] = (300, 300)) -> Path:
    content = b"".join(constant(name, value) for name, value in tensors.items())
    content += constant("Preprocessor/map/while/ResizeImage/size", np.int32(size_hw), one_by_one=True)
    path.write_bytes(node("image_tensor", "Placeholder") + content + node("Postprocessor/convert_scores", scores))
    return path


@pytest.fixture(scope="module")
def made() -> tuple[Any, Graph]:
    network, tensors = graph_tensors(3, trunk_norm=True)
    return network, {name: value for name, value in tensors.items() if not name.startswith("Postprocessor")}


def test_a_graph_comes_back_as_the_network_it_was(made: tuple[Any, Graph], tmp_path: Path) -> None:
    network, tensors = made
    path = write(tmp_path / "frozen.pb", {**tensors, **rule()})
    assert recognised(path)[0].name == "tf-graph"  # type: ignore[index]
    imported = read(path, ClassMap(tuple("abcdef")))
    assert imported.class_map.ids == (1, 2, 3, 4, 5, 6)  # row 0 is background
    image = torch.randn(1, 3, 300, 300)
    with torch.inference_mode():
        ours, theirs = imported.network(image)[0], network(image)[0]
    torch.testing.assert_close(ours.offsets, theirs.offsets, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.logits[..., [1, 4]], theirs.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(imported.network.anchors_cxcywh(), network.anchors_cxcywh(), rtol=0, atol=1e-6)
    assert imported.network.spec.postprocess.clip == "after_nms"


def test_the_order_of_the_boxes_in_a_cell_is_that_of_the_graph(made: tuple[Any, Graph], tmp_path: Path) -> None:
    network, tensors = made
    path = write(tmp_path / "frozen.pb", {**tensors, **rule(square_second=True)})
    ours, usual = read(path).network.anchors_cxcywh().numpy(), network.anchors_cxcywh().numpy()
    rows = 19 * 19 * 3 + np.arange(6)  # the first cell of the second level
    np.testing.assert_allclose(ours[rows], usual[rows[[0, 5, 1, 2, 3, 4]]], rtol=0, atol=1e-6)


def test_other_graphs_are_refused(made: tuple[Any, Graph], tmp_path: Path) -> None:
    _, tensors = made
    whole = {**tensors, **rule()}
    path = tmp_path / "frozen.pb"
    depthwise = "FeatureExtractor/MobilenetV2/expanded_conv_3/depthwise/depthwise_weights"
    for change, message in (
        ({"scores": "Softmax"}, "scores by Softmax"),
        ({"size_hw": (1, 1)}, "does not resize pictures to one size"),
        ({"tensors": tensors}, "no scales and ratios under MultipleGridAnchorGenerator"),
        ({"tensors": {k: v for k, v in whole.items() if k != depthwise}}, "has no tensor"),
        ({"tensors": {**whole, depthwise: whole[depthwise][..., :-1, :]}}, "expected"),
    ):
        with pytest.raises(ContractError, match=message):
            read(write(path, **{"tensors": whole, **change}))  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=f"2 class names for weights with {OUTPUTS - 1} classes"):
        read(write(path, whole), ClassMap(("a", "b")))
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(ModelFileError, match=r"not a usable frozen graph .*missing at the end"):
        read(path)
    path.write_bytes(b"MobileNet")
    assert recognise(path) is None
    assert recognise(tmp_path) is None


def test_values_one_by_one_and_one_for_all(tmp_path: Path) -> None:
    path = tmp_path / "some.pb"
    values = np.int32([[3, -1], [7, 2]])
    filled = constant("filled", np.float32([2.5]), one_by_one=True)
    wide = re.sub(re.escape(field(2, varint(1 << 3) + varint(1))), field(2, varint(1 << 3) + varint(4)), filled)
    path.write_bytes(
        constant("whole", values, one_by_one=True) + constant("floats", np.float32([1, 2]), one_by_one=True) + wide
    )
    constants, operations = read_constants(path)
    np.testing.assert_array_equal(constants["whole"], values)
    np.testing.assert_array_equal(constants["floats"], [1, 2])
    np.testing.assert_array_equal(constants["filled"], [2.5] * 4)
    assert set(operations.values()) == {"Const"}


def test_a_real_pedestrian_detector() -> None:
    """Trained by others, with all its normalisation; TensorFlow's own detections on the example."""
    folder = os.environ.get("MULTIBOX_PEDESTRIAN")
    if not folder:
        pytest.skip("MULTIBOX_PEDESTRIAN does not name the folder with a pedestrian detector")
    found = Detector(str(next(Path(folder).rglob("frozen_inference_graph.pb"))), engine="torch")(
        EXAMPLES / "astronaut.png", conf=0.01
    )
    np.testing.assert_allclose(found.scores[:2], [0.9024, 0.0612], atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy[0] / 512, [0.0088, 0.0617, 0.7369, 0.9941], atol=1e-4)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("trunk", ["v1", "v2"])
def test_an_ssd_with_plain_predictors_computes_what_the_api_does(trunk: str, folded: bool, tmp_path: Path) -> None:
    image = torch.randn(1, 3, 300, 300)
    codes, scores, arrays = tf_networks.run(trunk, image, columns=4)
    tensors = fold(arrays) if folded else arrays
    path = write(tmp_path / "frozen.pb", {**tensors, **rule(square_second=trunk == "v1")})
    found = recognised(path)
    assert found is not None
    assert found[0].name == "tf-graph"
    assert "1×1 predictors" in found[1]
    network = read(path, ClassMap(("a", "b", "c"))).network
    with torch.inference_mode():
        (stage,) = network.double()(image.double())
    within = 1e-3 if folded else 1e-5  # products of folding are rounded to single precision
    assert stage.offsets[0].numpy() == pytest.approx(codes[:, [1, 0, 3, 2]], abs=within)
    assert stage.logits[0].numpy() == pytest.approx(scores[:, 1:], abs=within)
    assert network.spec.anchors.levels[1][1 if trunk == "v1" else 5] == pytest.approx([(0.35 * 0.5) ** 0.5] * 2)


def fold(arrays: Graph) -> Graph:
    """As the API's exporter writes a graph for other runtimes: normalisation inside kernels, or as a factor."""
    out: Graph = {}
    for name, value in arrays.items():
        if "/BatchNorm/" in name:
            continue
        layer, _, kind = name.rpartition("/")
        norm = [arrays.get(f"{layer}/BatchNorm/{key}") for key in ("gamma", "beta", "moving_mean", "moving_variance")]
        if norm[0] is None:
            out[name] = value
            continue
        gamma, beta, mean, variance = norm
        factor = (gamma / np.sqrt(variance + 1e-3)).astype(np.float32)
        out[f"{layer}/BatchNorm/batchnorm/sub"] = (beta - mean * factor).astype(np.float32)
        if kind == "weights":
            out[f"{layer}/Conv2D/merged_input"] = value * factor
        else:
            out[name], out[f"{layer}/BatchNorm/batchnorm/mul"] = value, factor
    return out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("FeatureExtractor/MobilenetV1/Conv2d_7_pointwise/weights"), "Conv2d_7_pointwise"),
        (lambda t: t.update({"FeatureExtractor/MobilenetV1/Other/weights": np.zeros((1, 1, 2, 2), "f4")}), "Other"),
        (
            lambda t: t.update(
                {"FeatureExtractor/MobilenetV1/Conv2d_3_pointwise/weights": np.zeros((1, 1, 5, 11), "f4")}
            ),
            "Conv2d_3_pointwise",
        ),
    ],
)
def test_tensors_of_another_ssd_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    _, _, arrays = tf_networks.run("v1", torch.zeros(1, 3, 300, 300), columns=4)
    change(arrays)
    path = write(tmp_path / "frozen.pb", {**arrays, **rule()})
    with pytest.raises(ContractError, match=said):
        read(path)
