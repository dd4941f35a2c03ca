"""Import of torchvision's `ssdlite320_mobilenet_v3_large`: a state dict, or a checkpoint of its training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet

from multibox.errors import ContractError
from multibox.spec.anchors import ssd_anchors
from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess
from multibox.weights.foreign.names import COCO_WITH_UNUSED, class_names
from multibox.weights.foreign.state_dicts import read_state_dict, tensors_of
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.traced import trace
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["read", "recognise"]

HEADS = ("head.regression_head.module_list", "head.classification_head.module_list")
EVIDENCE = ("backbone.features.0.0.0.weight", f"{HEADS[1]}.0.0.0.weight", f"{HEADS[1]}.0.1.bias")
SIZE = 320
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
EPSILON = 1e-3  # of batch normalisation


def recognise(path: Path) -> str | None:
    """A `.pth` file whose keys are those of torchvision's network."""
    keys = tensors_of(path)
    return f"the keys {EVIDENCE[0]} and {EVIDENCE[2]}" if keys and set(EVIDENCE) <= keys.keys() else None


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a state dict."""
    tensors = read_state_dict(path)
    title = "torchvision's ssdlite320_mobilenet_v3_large"
    if EVIDENCE[2] not in tensors:
        raise ContractError(f"{path.name}: it has no tensor {EVIDENCE[2]!r}, so it is not {title}")
    writer = GraphWriter(tensors, title)
    taps = trace(writer, _backbone(tensors, title), "backbone")
    for level, tap in enumerate(taps):
        offsets, logits = (
            [(f"{name}.{level}.0.0", 1, False), f"{name}.{level}.0.1", "relu6", (f"{name}.{level}.1", 0)]
            for name in HEADS
        )
        writer.head(tap, offsets=offsets, logits=logits, eps=EPSILON)
    network = writer.network(
        anchors=ssd_anchors(SCALES, ((2, 3),) * 6, clip="wh"),
        preprocess=Preprocess((SIZE, SIZE), mean=(127.5,) * 3, scale=(1 / 127.5,) * 3),
        postprocess=PostprocessSpec("softmax", score_threshold=0.001, nms_iou=0.55, top_k=300, max_detections=300),
    )
    names = class_names(network.spec.num_classes, class_map, COCO_WITH_UNUSED)
    return Imported(network, names, path.stem, f"{title} state dict {path.name}")


def _backbone(tensors: Mapping[str, Tensor], title: str) -> nn.Module:
    """Their backbone of the same shapes: the trunk's last layers are half as wide where it was not pretrained."""
    norm = partial(nn.BatchNorm2d, eps=EPSILON)
    wrong: list[str] = []
    for reduced in (True, False):
        layers = mobilenet_v3_large(weights=None, norm_layer=norm, reduced_tail=reduced).features
        last_stage = [number for number, layer in enumerate(layers) if getattr(layer, "_is_cn", False)][-1]
        made: nn.Module = SSDLiteFeatureExtractorMobileNet(layers, last_stage, norm)
        expected = {f"backbone.{key}": value.shape for key, value in made.state_dict().items()}
        wrong = [key for key, shape in expected.items() if key not in tensors or tensors[key].shape != shape]
        if not wrong:
            return made
    raise ContractError(f"the tensors are not those of {title}: {wrong[0]} is missing or of another shape")
