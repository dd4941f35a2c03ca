"""Import of SSD300 on ResNet-50 from NVIDIA's DeepLearningExamples (Apache-2.0): a state dict or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import imagenet_preprocess
from multibox.weights.foreign.names import COCO_IN_ORDER, class_names
from multibox.weights.foreign.state_dicts import read_state_dict, tensors_of
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.vgg import vgg_anchors
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["read", "recognise"]

TRUNK = "feature_extractor.feature_extractor"
EVIDENCE = (f"{TRUNK}.6.5.conv3.weight", "additional_blocks.4.3.weight", "loc.5.weight", "conf.5.weight")
STAGES = ((4, 3, 1), (5, 4, 2), (6, 6, 1))  # place, blocks, stride: the last keeps its size, unlike ResNet-50's
EXTRAS = ((2, 1), (2, 1), (2, 1), (1, 0), (1, 0))  # stride and padding
SIZE = 300


def recognise(path: Path) -> str | None:
    """A file with the tensors of this network."""
    tensors = tensors_of(path)
    return None if tensors is None or not tensors.keys() >= set(EVIDENCE) else f"the tensors {EVIDENCE[0]} and loc.5"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a file."""
    writer = GraphWriter(read_state_dict(path), "NVIDIA's SSD300 on ResNet-50")
    _write(writer)
    network = writer.network(
        anchors=vgg_anchors(6, "coco"),
        preprocess=imagenet_preprocess((SIZE, SIZE), rounding=True),
        postprocess=PostprocessSpec("softmax", score_threshold=0.05, nms_iou=0.5, top_k=200, clip="after_nms"),
    )
    names = class_names(network.spec.num_classes, class_map, COCO_IN_ORDER)
    said = "pictures are prepared with ImageNet's mean and deviation, as for its validation"
    return Imported(network, names, path.stem, f"NVIDIA's SSD300 on ResNet-50 from {path.name}", notes=(said,))


def _write(writer: GraphWriter) -> None:
    writer.normed(f"{TRUNK}.0", f"{TRUNK}.1", act="relu", stride=2, pad=3)
    writer.pool(f"{TRUNK}.3", 3, 2, 1, ceil=False)
    for place, blocks, first in STAGES:
        for block in range(blocks):
            theirs, stride, taken = f"{TRUNK}.{place}.{block}", first if block == 0 else 1, writer.last
            writer.normed(f"{theirs}.conv1", f"{theirs}.bn1", act="relu")
            writer.normed(f"{theirs}.conv2", f"{theirs}.bn2", act="relu", stride=stride, pad=1)
            out, shortcut = writer.normed(f"{theirs}.conv3", f"{theirs}.bn3"), taken
            if block == 0:
                writer.last = taken
                shortcut = writer.normed(f"{theirs}.downsample.0", f"{theirs}.downsample.1", stride=stride)
            writer.plain("add", f"{theirs}.add", out, shortcut)
            writer.plain("relu", f"{theirs}.relu")
    taps = [writer.last]
    for number, (stride, pad) in enumerate(EXTRAS):
        theirs = f"additional_blocks.{number}"
        writer.normed(f"{theirs}.0", f"{theirs}.1", act="relu")
        taps.append(writer.normed(f"{theirs}.3", f"{theirs}.4", act="relu", stride=stride, pad=pad))
    for level, tap in enumerate(taps):
        writer.head(tap, offsets=[(f"loc.{level}", 1)], logits=[(f"conf.{level}", 1)], output_major=True)
