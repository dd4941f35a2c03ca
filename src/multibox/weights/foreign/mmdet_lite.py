"""Import of mmdetection's SSDLite320 on MobileNetV2 (Apache-2.0): a state dict or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from multibox.spec.anchors import AnchorSpec, ssd_anchors
from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import imagenet_preprocess
from multibox.weights.foreign.names import COCO_IN_ORDER, class_names
from multibox.weights.foreign.state_dicts import read_state_dict, stored_classes, tensors_of
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["read", "recognise"]

EVIDENCE = (
    "backbone.layer1.0.depthwise_conv.conv.weight",
    "neck.extra_layers.0.1.pointwise_conv.conv.weight",
    "bbox_head.cls_convs.5.1.weight",
)
STAGES = ((1, 1, 1), (2, 2, 2), (3, 3, 2), (4, 4, 2), (5, 3, 1), (6, 3, 2), (7, 1, 1))  # layer, blocks, first stride
TAPPED = 5  # the layer whose last map is read first
SIZE, EPSILON = 320, 1e-3
SIDES, STEPS = (48, 100, 150, 202, 253, 304, 320), (16, 32, 64, 107, 160, 320)  # pixels


def recognise(path: Path) -> str | None:
    """A file with the tensors of this network."""
    tensors = tensors_of(path)
    return None if tensors is None or not tensors.keys() >= set(EVIDENCE) else f"the tensor {EVIDENCE[1]}"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a file."""
    writer = GraphWriter(read_state_dict(path), "mmdetection's SSDLite on MobileNetV2")
    _write(writer)
    network = writer.network(
        anchors=_anchors(),
        preprocess=imagenet_preprocess((SIZE, SIZE), rounding=True),
        postprocess=PostprocessSpec("softmax", score_threshold=0.02, nms_iou=0.45, top_k=1000, clip="before_nms"),
    )
    names = class_names(network.spec.num_classes, class_map, stored_classes(path), COCO_IN_ORDER)
    return Imported(network, names, path.stem, f"mmdetection's SSDLite on MobileNetV2 from {path.name}")


def _anchors() -> AnchorSpec:
    sides = [side / SIZE for side in SIDES]
    return ssd_anchors(sides, ((2, 3),) * len(STEPS), steps=STEPS, nominal_size_hw=(SIZE, SIZE))


def _write(writer: GraphWriter) -> None:
    def unit(theirs: str, *, stride: int = 1, pad: int = 0, act: str = "relu6") -> str:
        return writer.normed(f"{theirs}.conv", f"{theirs}.bn", act=act, eps=EPSILON, stride=stride, pad=pad)

    unit("backbone.conv1", stride=2, pad=1)
    taps = []
    for layer, blocks, first in STAGES:
        for block in range(blocks):
            theirs, stride, taken = f"backbone.layer{layer}.{block}", first if block == 0 else 1, writer.last
            if layer > 1:
                unit(f"{theirs}.expand_conv")
            unit(f"{theirs}.depthwise_conv", stride=stride, pad=1)
            out = unit(f"{theirs}.linear_conv", act="")
            if block > 0:
                writer.plain("add", f"{theirs}.add", out, taken)
        if layer == TAPPED:
            taps.append(writer.last)
    taps.append(unit("backbone.conv2"))
    for number in range(4):
        theirs = f"neck.extra_layers.{number}"
        unit(f"{theirs}.0")
        unit(f"{theirs}.1.depthwise_conv", stride=2, pad=1)
        taps.append(unit(f"{theirs}.1.pointwise_conv"))
    for level, tap in enumerate(taps):
        names = (f"bbox_head.reg_convs.{level}", f"bbox_head.cls_convs.{level}")
        offsets, logits = ([(f"{n}.0.conv", 1, False), f"{n}.0.bn", "relu6", (f"{n}.1", 0)] for n in names)
        writer.head(tap, offsets=offsets, logits=logits, background_last=True, eps=EPSILON)
