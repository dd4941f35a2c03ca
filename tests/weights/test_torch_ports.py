"""Importers of other torch projects, against plain functions of the same tensors."""

from __future__ import annotations

import argparse
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the train extra is not installed")

import foreign_more as more
import foreign_networks as foreign

from multibox.errors import ContractError, ModelFileError, OptionError
from multibox.inference import Detector
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.table import importer_row, recognised
from multibox.weights.opening import open_model

MAPS_300, STEPS_300 = [38, 19, 10, 5, 3, 1], [8, 16, 32, 64, 100, 300]
MAPS_1200 = (50, 25, 13, 7, 3, 3)
MAPS_512, STEPS_512 = [64, 32, 16, 8, 4, 2, 1], [8, 16, 32, 64, 128, 256, 512]
RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
VOC_300 = [30, 60, 111, 162, 213, 264, 315]
COCO_300 = [21, 45, 99, 153, 207, 261, 315]
COCO_512 = [20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72]


def numbered(pattern: str) -> Callable[[int, int], str]:
    return lambda pair, half: pattern.format(pair=pair, half=half, place=2 * half, number=2 * pair + half)


@dataclass(frozen=True)
class Port:
    """A network of another project, and what its importer must find."""

    kind: str
    evidence: str
    made: tuple[Callable[[int], dict[str, Any]], Callable[..., tuple[Any, Any]]]
    outputs: int
    priors: Any
    background_last: bool = False
    box_first: bool = False
    chosen: bool = False  # by the user, because its tensors are also another network's
    maps: tuple[int, ...] = (38, 19, 10, 5, 3, 1)


def mobile_priors() -> Any:
    sizes = [60, 105, 150, 195, 240, 285, 330]
    steps = [16, 32, 64, 100, 150, 300]
    return foreign.priors(sizes, [[2, 3]] * 6, [19, 10, 5, 3, 2, 1], steps, 300, clamp=True)


def even_priors(sizes: list[float], maps: tuple[int, ...]) -> Any:
    """Centres divide the input evenly; sizes are fractions of 300."""
    found = []
    for level, cells in enumerate(maps):
        part = foreign.priors(sizes[level : level + 2], [RATIOS[level]], [cells], [1], 300, clamp=False)
        part[:, :2] *= 300 / cells
        found.append(part)
    return torch.cat(found).clamp(0, 1)


def vgg_priors(sizes: list[float], *, clamp: bool = True) -> Any:
    if len(sizes) == 7:
        return foreign.priors(sizes, RATIOS, MAPS_300, STEPS_300, 300, clamp=clamp)
    ratios = [*RATIOS[:4], [2, 3], [2], [2]]
    return foreign.priors(sizes, ratios, MAPS_512, STEPS_512, 512, clamp=clamp)


QFGAOHAO = ("regression_headers.{}", "classification_headers.{}")
LUFFICC = ("box_head.predictor.reg_headers.{}", "box_head.predictor.cls_headers.{}")
MMDET = ("bbox_head.reg_convs.{}.0", "bbox_head.cls_convs.{}.0")
MMDET_VGG = ("backbone.features.{}", "neck.l2_norm", numbered("neck.extra_layers.{pair}.{half}.conv"), *MMDET)
PORTS = {
    "mb1-ssd": Port("pytorch-ssd", "mb1-ssd", foreign.mobilenet_v1(lite=False), 4, mobile_priors),
    "mb1-ssd-lite": Port("pytorch-ssd", "mb1-ssd-lite", foreign.mobilenet_v1(lite=True), 4, mobile_priors),
    "mb2-ssd-lite": Port("pytorch-ssd", "mb2-ssd-lite", foreign.mobilenet_v2_lite(), 21, mobile_priors),
    "vgg16-ssd": Port(
        "pytorch-ssd",
        "vgg16-ssd",
        foreign.vgg_port("base_net.{}", "source_layer_add_ons.0", numbered("extras.{pair}.{place}"), *QFGAOHAO),
        3,
        lambda: vgg_priors(VOC_300),
    ),
    "ssd.pytorch": Port(
        "vgg-ports",
        "amdegroot's ssd.pytorch",
        foreign.vgg_port("vgg.{}", "L2Norm", numbered("extras.{number}"), "loc.{}", "conf.{}"),
        21,
        lambda: vgg_priors(VOC_300),
    ),
    "lufficc 512": Port(
        "vgg-ports",
        "lufficc's SSD",
        foreign.vgg_port(
            "backbone.vgg.{}", "backbone.l2_norm", numbered("backbone.extras.{number}"), *LUFFICC, levels=7
        ),
        5,
        lambda: vgg_priors(COCO_512),
    ),
    "mmdetection": Port(
        "vgg-ports",
        "mmdetection's SSD",
        foreign.vgg_port(*MMDET_VGG),
        4,
        lambda: vgg_priors(COCO_300, clamp=False),
        background_last=True,
    ),
    "nvidia": Port(
        "nvidia-ssd300",
        "loc.5",
        (foreign.nvidia_tensors, foreign.nvidia_forward),
        4,
        lambda: vgg_priors(COCO_300),
        box_first=True,
    ),
    "mlperf 300": Port(
        "mlperf-ssd300",
        "loc.5",
        (more.mlperf_tensors, more.mlperf_forward),
        4,
        lambda: vgg_priors(COCO_300),
        box_first=True,
        chosen=True,
    ),
    "mlperf 1200": Port(
        "mlperf-ssd1200",
        "loc.5",
        (more.mlperf_tensors, more.mlperf_forward),
        4,
        lambda: even_priors(COCO_300, MAPS_1200),
        box_first=True,
        chosen=True,
        maps=MAPS_1200,
    ),
    "mmdetection lite": Port(
        "mmdet-ssdlite",
        "pointwise_conv",
        (more.mmdet_lite_tensors, more.mmdet_lite_forward),
        5,
        lambda: foreign.priors(
            [48, 100, 150, 202, 253, 304, 320],
            [[2, 3]] * 6,
            [20, 10, 5, 3, 2, 1],
            [16, 32, 64, 107, 160, 320],
            320,
            clamp=False,
        ),
        background_last=True,
    ),
}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def by_cell(rows: Any, port: Port) -> Any:
    """Rows that run by level, box, cell put into the order level, cell, box."""
    if not port.box_first:
        return rows
    parts, start = [], 0
    for cells, boxes in zip(port.maps, foreign.NVIDIA_BOXES, strict=True):
        count = cells * cells * boxes
        part = rows[:, start : start + count]
        parts.append(part.reshape(len(part), boxes, cells * cells, -1).transpose(1, 2).reshape(len(part), count, -1))
        start += count
    return torch.cat(parts, dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", PORTS)
def test_the_numbers_are_the_other_projects(name: str, tmp_path: Path) -> None:
    port = PORTS[name]
    tensors = port.made[0](port.outputs)
    path = saved(tmp_path / "some.pth", tensors)
    if port.chosen:
        row = importer_row(port.kind)
        with pytest.raises(OptionError, match=r"could be mlperf-ssd300 .* and mlperf-ssd1200 .*as=NAME"):
            recognised(path)
    else:
        row, evidence = recognised(path)  # type: ignore[misc]
        assert (row.name, port.evidence in evidence) == (port.kind, True)
    imported = row.read(path)
    network = imported.network
    assert network.spec.num_classes == port.outputs - 1 == len(imported.class_map)
    torch.testing.assert_close(network.anchors_cxcywh(), port.priors(), rtol=0, atol=1e-6)
    images = torch.randn(1, 3, *network.spec.preprocess.size_hw).double()  # in which nothing but a fault can differ
    with torch.inference_mode():
        ours = network.double()(images)[0]
        doubled = {key: value.double() for key, value in tensors.items()}
        offsets, logits = (by_cell(part, port) for part in port.made[1](doubled, images))
    if port.background_last:
        logits = torch.cat([logits[..., -1:], logits[..., :-1]], dim=-1)
    for found, expected in ((ours.offsets, offsets), (ours.logits, logits)):
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 * max(1.0, float(expected.abs().max())))


@pytest.mark.slow
@pytest.mark.parametrize("name", PORTS)
def test_what_does_not_fit_is_refused_by_name(name: str, tmp_path: Path) -> None:
    port = PORTS[name]
    tensors = port.made[0](port.outputs)
    row = importer_row(port.kind)
    victim = next(key for key in reversed(tensors) if key.endswith("weight") and tensors[key].dim() == 4)
    middle = list(tensors)[len(tensors) // 3]
    for change, message in (
        ({victim: None}, victim),
        ({middle: None}, middle),
        ({"more.weight": torch.zeros(3)}, "more.weight is unknown"),
        ({victim: tensors[victim][:, :-1]}, "which takes no|instead of"),
    ):
        changed = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        with pytest.raises(ContractError, match=message.replace(".", r"\.")):
            row.read(saved(tmp_path / "some.pth", changed))
    with pytest.raises(ContractError, match="1 class names for weights with"):
        row.read(saved(tmp_path / "some.pth", tensors), ClassMap(("one",)))
    content = (tmp_path / "some.pth").read_bytes()
    (tmp_path / "some.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="not a plain file of tensors"):
        row.read(tmp_path / "some.pth")
    assert recognised(tmp_path / "some.pth") is None


class Bomb:
    """Makes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "bomb.pth", {"model": PORTS["mb1-ssd"].made[0](3), "more": Bomb(tmp_path / "boom")})
    assert recognised(path) is None
    for kind in ("pytorch-ssd", "vgg-ports", "nvidia-ssd300", "ultra-light-face", "torchvision-ssd300"):
        with pytest.raises(ModelFileError, match=r"not a plain file of tensors .*model\.state_dict\(\)"):
            importer_row(kind).read(path)
    assert not (tmp_path / "boom").exists()


def test_the_checkpoints_of_training(tmp_path: Path) -> None:
    """Inside what trainers save, with the names that wrappers give."""
    tensors = PORTS["mb1-ssd"].made[0](3)
    expected = open_model(saved(tmp_path / "plain.pth", tensors))[0].state_dict()
    wrapped = {f"module.{key}": value for key, value in tensors.items()}
    for content in (
        {"model": tensors, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1), "epoch": 3},
        {"state_dict": wrapped, "meta": {"time": "now"}},
        {"model_state_dict": {f"_orig_mod.{key}": value for key, value in wrapped.items()}},
    ):
        found = open_model(saved(tmp_path / "checkpoint.pth", content))[0].state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    with pytest.raises(ModelFileError, match="does not hold a state dict"):
        importer_row("pytorch-ssd").read(saved(tmp_path / "nothing.pth", {"epoch": 3}))


class HistoryBuffer:
    """As mmengine's: arrays, and its own methods by name, which a pickle holds as calls of `getattr`."""

    def __init__(self) -> None:
        self._log_history = np.arange(3.0)
        self._statistics_methods = {"mean": self.mean}

    def mean(self) -> float:
        raise AssertionError("called")


def test_a_checkpoint_of_mmengine_is_read_without_its_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = PORTS["mmdetection lite"].made[0](3)
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {
        "meta": {"epoch": 3, "dataset_meta": {"CLASSES": ("cat", "dog"), "palette": [(1, 2, 3)]}},
        "state_dict": tensors,
        "message_hub": {"log_scalars": {"loss": HistoryBuffer(), "lr": np.float64(0.1)}},
    }
    path = saved(tmp_path / "epoch_3.pth", content)
    bomb = saved(tmp_path / "bomb.pth", {**content, "more": Bomb(tmp_path / "boom")})
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    row, _ = recognised(path)  # type: ignore[misc]
    imported = row.read(path)
    assert imported.class_map.names == ("cat", "dog")
    expected = open_model(saved(tmp_path / "plain.pth", tensors))[0].state_dict()
    assert all(torch.equal(value, imported.network.state_dict()[key]) for key, value in expected.items())
    assert recognised(bomb) is None
    with pytest.raises(ModelFileError, match="not a plain file of tensors"):
        row.read(bomb)
    assert not (tmp_path / "boom").exists()


def test_class_names_stand_beside_the_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "mb1.pth", PORTS["mb1-ssd"].made[0](3))
    row = importer_row("pytorch-ssd")
    assert row.read(path).class_map.names == ("class 0", "class 1")
    (tmp_path / "labels.txt").write_text("BACKGROUND\ncat\ndog\n\n")
    imported = row.read(path)
    assert imported.class_map.names == ("cat", "dog")
    assert imported.notes[0] == "classes of labels.txt, without its background"
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(ContractError, match="2 lines, the weights have 2 classes and background"):
        row.read(path)


def test_a_real_face_detector_is_its_own_onnx_file(tmp_path: Path) -> None:
    import onnxruntime

    shared = Path(os.environ.get("MULTIBOX_WEIGHTS", Path(__file__).parents[3] / "shared" / "weights"))
    if not shared.is_dir():
        pytest.skip(f"no weights folder {shared}; set MULTIBOX_WEIGHTS to run this test")
    path = shared / "ultra_light_face" / "version-RFB-320.pth"
    assert recognised(path)[1] == "the tensors of RFB"  # type: ignore[index]
    network, card = open_model(path)
    assert card.class_map.names == ("face",)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path.with_name(f"{path.stem}_without_postprocessing.onnx")), quiet)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 240, 320)).astype(np.float32)
    scores, boxes = session.run(["scores", "boxes"], {session.get_inputs()[0].name: image})
    with torch.inference_mode():
        raw = network(torch.from_numpy(image))[0]
    np.testing.assert_allclose(raw.offsets.numpy(), boxes, rtol=0, atol=1e-5)
    np.testing.assert_allclose(torch.softmax(raw.logits, -1).numpy(), scores, rtol=0, atol=1e-5)
    found = Detector(str(path), engine="torch")(Path(__file__).parents[2] / "examples" / "astronaut.png", conf=0.7)
    np.testing.assert_allclose(found.boxes_xyxy, [[179, 63, 269, 173]], atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [False, True])
def test_torchvisions_ssdlite_gives_torchvisions_numbers(
    pretrained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both widths of the trunk's end: the wide one belongs to a pretrained trunk, which is not fetched here."""
    from torchvision.models import MobileNet_V3_Large_Weights
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    chosen = MobileNet_V3_Large_Weights.DEFAULT if pretrained else None
    monkeypatch.setattr(MobileNet_V3_Large_Weights, "get_state_dict", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=chosen, num_classes=4).eval()
    monkeypatch.undo()
    torch.manual_seed(0)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in")
    path = saved(tmp_path / "lite.pth", {"model": theirs.state_dict(), "epoch": 1, "args": argparse.Namespace(lr=0.1)})
    row, _ = recognised(path)  # type: ignore[misc]
    assert row.name == "torchvision-ssdlite320"
    imported = row.read(path)
    assert imported.class_map.names == ("class 0", "class 1", "class 2")
    images = torch.randn(1, 3, 320, 320).double()
    theirs = theirs.double()
    with torch.inference_mode():
        maps = list(theirs.backbone(images).values())
        expected = theirs.head(maps)
        found = imported.network.double()(images)[0]
    for ours, other in ((found.offsets, expected["bbox_regression"]), (found.logits, expected["cls_logits"])):
        assert other.std() > 0.05
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-8 * max(1.0, float(other.abs().max())))
    from torchvision.models.detection.image_list import ImageList

    corners = theirs.anchor_generator(ImageList(images.float(), [(320, 320)]), [one.float() for one in maps])[0] / 320
    boxes = imported.network.anchors_cxcywh().numpy()
    xyxy = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    np.testing.assert_allclose(xyxy, corners.numpy(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_torchvisions_detections(tmp_path: Path) -> None:
    """The whole path, resizing and suppression included, on a picture."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(1)
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in")
    picture = np.asarray(Image.open(Path(__file__).parents[2] / "examples" / "astronaut.png").convert("RGB"))
    with torch.inference_mode():
        expected = theirs([torch.from_numpy(picture / 255).permute(2, 0, 1).float()])[0]
    detector = Detector(str(saved(tmp_path / "lite.pth", theirs.state_dict())), engine="torch")
    found = detector(picture, conf=0.001)
    assert len(found) == len(expected["scores"]) > 20
    np.testing.assert_allclose(found.scores, expected["scores"], rtol=0, atol=1e-5)
    boxes = expected["boxes"].numpy()
    apart = np.abs(found.boxes_xyxy[:, None] - boxes[None]).max(-1)  # near-equal scores may change places
    assert np.quantile(apart.min(axis=1), 0.95) < 1e-2


CHAINER_BLOCKS = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        ["1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3"],
        strict=True,
    )
)


def chainer_arrays(tensors: dict[str, Any]) -> dict[str, Any]:
    """A state dict of ssd.pytorch with ChainerCV's names and its order (y, x, height, width)."""
    found = {}
    for key, value in tensors.items():
        part, number, kind = (*key.split("."), "")[:3] if key.count(".") == 2 else (key.split(".")[0], "", "weight")
        end = {"weight": "W", "bias": "b"}[kind]
        if part == "L2Norm":
            found["extractor/norm4/scale"] = value.numpy()
        elif part == "vgg":
            block = {31: "6", 33: "7", **CHAINER_BLOCKS}[int(number)]
            found[f"extractor/conv{block}/{end}"] = value.numpy()
        elif part == "extras":
            found[f"extractor/conv{8 + int(number) // 2}_{1 + int(number) % 2}/{end}"] = value.numpy()
        else:
            if part == "loc":
                value = value.reshape(-1, 4, *value.shape[1:])[:, [1, 0, 3, 2]].reshape(value.shape)
            found[f"multibox/{part}/{number}/{end}"] = value.numpy()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "updater/model:main/model/"])
def test_chainercvs_arrays(prefix: str, tmp_path: Path) -> None:
    tensors = PORTS["ssd.pytorch"].made[0](21)
    arrays = {f"{prefix}{key}": value for key, value in chainer_arrays(tensors).items()}
    more = {"updater/optimizer:main/t": np.int32(3)} if prefix else {}
    path = tmp_path / "model.npz"
    np.savez(path, **arrays, **more)
    row, _ = recognised(path)  # type: ignore[misc]
    assert row.name == "chainercv"
    imported = row.read(path)
    assert imported.class_map.names[0] == "aeroplane"
    network = imported.network
    torch.testing.assert_close(network.anchors_cxcywh(), vgg_priors(VOC_300, clamp=False), rtol=0, atol=1e-6)
    images = torch.randn(1, 3, 300, 300).double()
    with torch.inference_mode():
        ours = network.double()(images)[0]
        offsets, logits = PORTS["ssd.pytorch"].made[1]({k: v.double() for k, v in tensors.items()}, images)
    torch.testing.assert_close(ours.offsets, offsets, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.logits, logits, rtol=0, atol=1e-6)
    for change, message in (
        ({f"{prefix}extractor/conv9_1/b": None}, "extractor/conv9_1.bias is missing"),
        ({f"{prefix}extractor/more/W": np.zeros(3)}, "extractor/more.weight is unknown"),
    ):
        changed = {key: value for key, value in {**arrays, **change}.items() if value is not None}
        np.savez(path, **changed)
        with pytest.raises(ContractError, match=message):
            row.read(path)
    np.savez(path, **arrays, **{f"{prefix}extractor/x/W": np.array([{}], object)})
    with pytest.raises(ModelFileError, match="not a file of plain arrays"):
        row.read(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="not a file of plain arrays"):
        row.read(path)
    assert recognised(path) is None
