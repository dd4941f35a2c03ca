"""SSD on networks of torchvision and timm gives what those networks give at the layers that are read."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
torchvision = pytest.importorskip("torchvision", reason="the train extra is not installed")

from multibox.errors import MissingDependencyError, OptionError
from multibox.models import create_model
from multibox.models.backbones import BackboneFeatures
from multibox.spec.classes import ClassMap
from multibox.training.transfer import start_from


def test_the_default_layers_are_the_last_of_their_stride() -> None:
    features = BackboneFeatures("resnet18").eval()
    network = torchvision.models.resnet18(weights=None).eval()
    features.trunk.load_state_dict(network.state_dict(), strict=False)  # but for the classifier
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        maps = features(images)
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        third = network.layer3(network.layer2(network.layer1(x)))
        torch.testing.assert_close(maps[0], third)
        torch.testing.assert_close(maps[1], network.layer4(third))
    assert [tuple(m.shape[2:]) for m in maps] == [(6, 8), (3, 4), (2, 2), (1, 1), (1, 1), (1, 1)]


def test_ssdlite_reads_mobilenetv3_where_torchvision_does() -> None:
    """`ssdlite320_mobilenet_v3_large` taps the expansion of the block that halves the map for the last time."""
    features = create_model("ssdlite320_mobilenetv3_large").features.eval()
    theirs = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert features.level_names[:2] == ("features.13.block.0", "features.16")
    with torch.no_grad():
        expected = list(theirs.backbone.eval()(torch.zeros(1, 3, 320, 320)).values())
        found = features(torch.zeros(1, 3, 320, 320))
    assert [m.shape for m in found[:1]] == [m.shape for m in expected[:1]]
    assert [tuple(m.shape[2:]) for m in found] == [tuple(m.shape[2:]) for m in expected]


def test_resnet_keeps_the_size_of_its_second_stage() -> None:
    network = create_model("ssd300_resnet34")
    assert network.feature_sizes_hw() == [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (2, 2)]
    assert not any(name.startswith("layer4") for name, _ in network.features.trunk.named_modules())


@pytest.mark.parametrize("name", ["timm/mobilenetv3_small_050", "shufflenet_v2_x0_5"])
def test_any_network_by_name(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="the backbones extra is not installed")
    network = create_model("ssd_backbone", backbone=name, kind="ssdlite", fine=True, levels=4, num_classes=2)
    assert network.feature_sizes_hw((96, 128)) == [(12, 16), (6, 8), (3, 4), (2, 2)]
    with torch.no_grad():
        (stage,) = network.eval()(torch.zeros(1, 3, 96, 128))
    assert stage.logits.shape[1:] == (len(network.anchors_cxcywh((96, 128))), 3)


def test_layers_by_name() -> None:
    network = create_model("ssd_backbone", taps=["layer2", "layer3"], levels=3)
    assert network.level_names == ("layer2", "layer3", "extra_1")
    pytest.importorskip("timm", reason="the backbones extra is not installed")
    network = create_model("ssd_backbone", backbone="timm/resnet18", taps=[2, 3], levels=3)
    assert network.level_names == ("layer2", "layer3", "extra_1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet19"}, r"torchvision has no such network; did you mean 'resnet18'"),
        ({"taps": ["layer9"]}, "backbone=resnet18: .*layer9"),
        ({"backbone": "swin_t"}, "no map of stride 16; give taps"),
        ({"levels": 1}, "levels=1, but 2 layers are read"),
        ({"levels": 9}, "levels=9: at most 7"),
        ({"kind": "yolo"}, "kind='yolo' is unknown"),
        ({"scales": [0.1, 0.2]}, "2 scales for 6 levels"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_model("ssd_backbone", **arguments)


def test_timm_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"'timm'.*multibox\[backbones\]"):
        create_model("ssd_backbone", backbone="timm/resnet18")


def test_a_state_dict_of_torchvision_is_the_start(tmp_path) -> None:
    network = torchvision.models.resnet18(weights=None)
    path = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), path)
    start = start_from("ssd_backbone", ClassMap(("a",)), backbone=str(path))
    assert torch.equal(
        start.detector.features.trunk.get_submodule("layer4.1.conv2").weight, network.layer4[1].conv2.weight
    )
    assert start.table[0].fate == "from resnet18.pth"
    with pytest.raises(OptionError, match=r"its layers are not those of ssd300_resnet50 \(trunk\."):
        start_from("ssd300_resnet50", ClassMap(("a",)), backbone=str(path))


def test_an_argument_of_a_builder_may_be_called_as_one_of_ours() -> None:
    with pytest.raises(OptionError, match="has no argument 'name'"):
        create_model("ssd_backbone", name="resnet18")
