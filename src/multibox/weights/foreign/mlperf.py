"""Import of MLPerf's SSD on ResNet-34 (Apache-2.0): trained at 300×300, and run at 1200×1200 with the same tensors.

The two differ in strides alone, which no file says, so there is a row for each and the user chooses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import imagenet_preprocess
from multibox.weights.foreign.names import COCO_IN_ORDER, class_names
from multibox.weights.foreign.state_dicts import read_state_dict, tensors_of
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.vgg import vgg_anchors
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["read", "read_at", "recognise"]

EVIDENCE = ("model.layer1.4.0.conv1.weight", "model.layer2.0.5.conv2.weight", "additional_blocks.4.2.weight")
STAGES = (("model.layer1.4", 3, 1), ("model.layer1.5", 4, 2), ("model.layer2.0", 6, 1))  # blocks, first stride
EXTRAS: dict[int, tuple[tuple[int, int], ...]] = {  # stride and padding by the side of the input
    300: ((2, 1), (2, 1), (2, 1), (1, 0), (1, 0)),
    1200: ((2, 1), (2, 1), (2, 1), (2, 0), (1, 0)),
}
HEAD_STRIDE = 3  # at 1200
LEVELS = 6
TITLE = "MLPerf's SSD on ResNet-34"


def recognise(path: Path) -> str | None:
    """A file with the tensors of this network, at either size."""
    tensors = tensors_of(path)
    return None if tensors is None or not tensors.keys() >= set(EVIDENCE) else f"the tensors {EVIDENCE[1]} and loc.5"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a file, as it is trained at 300×300."""
    return read_at(path, class_map, side=300)


def read_at(path: Path, class_map: ClassMap | None, *, side: Literal[300, 1200]) -> Imported:
    """The network of a file at a side of the input.

    Raises:
        ModelFileError: the file cannot be read.
        ContractError: tensors that are not this network's.
    """
    tensors = read_state_dict(path)
    large = side == 1200
    if large:
        for name in [f"{kind}.{level}.weight" for kind in ("loc", "conf") for level in range(LEVELS)]:
            # A 3×3 convolution of stride 3 sees each block of 3×3 places once: a 1×1 convolution of the blocks.
            if name in tensors and tensors[name].dim() == 4:
                tensors[name] = tensors[name].flatten(1)[:, :, None, None]
    writer = GraphWriter(tensors, TITLE)
    _write(writer, side)
    anchors = vgg_anchors(LEVELS, "coco")
    network = writer.network(
        anchors=replace(anchors, steps=None, nominal_size_hw=None) if large else anchors,
        preprocess=imagenet_preprocess((side, side), rounding=True),
        postprocess=PostprocessSpec("softmax", score_threshold=0.05, nms_iou=0.5, top_k=200, clip="after_nms"),
    )
    names = class_names(network.spec.num_classes, class_map, COCO_IN_ORDER)
    said = f"its strides are those of {side}×{side}, as was asked for: no file says them"
    return Imported(network, names, path.stem, f"{TITLE} from {path.name}", notes=(said,))


def _write(writer: GraphWriter, side: int) -> None:
    writer.normed("model.layer1.0", "model.layer1.1", act="relu", stride=2, pad=3)
    writer.pool("model.layer1.3", 3, 2, 1, ceil=False)
    for stage, blocks, first in STAGES:
        for block in range(blocks):
            theirs, stride, taken = f"{stage}.{block}", first if block == 0 else 1, writer.last
            writer.normed(f"{theirs}.conv1", f"{theirs}.bn1", act="relu", stride=stride, pad=1)
            out, shortcut = writer.normed(f"{theirs}.conv2", f"{theirs}.bn2", pad=1), taken
            if block == 0 and stage != STAGES[0][0]:
                writer.last = taken
                shortcut = writer.normed(f"{theirs}.downsample.0", f"{theirs}.downsample.1", stride=stride)
            writer.plain("add", f"{theirs}.add", out, shortcut)
            writer.plain("relu", f"{theirs}.relu")
    taps = [writer.last]
    for number, (stride, pad) in enumerate(EXTRAS[side]):
        theirs = f"additional_blocks.{number}"
        writer.conv(f"{theirs}.0")
        writer.plain("relu", f"{theirs}.1")
        writer.conv(f"{theirs}.2", stride=stride, pad=pad)
        taps.append(writer.plain("relu", f"{theirs}.3"))
    for level, tap in enumerate(taps):
        large = side == 1200
        seen = writer.blocks(f"blocks.{level}", tap, size=HEAD_STRIDE, pad=1) if large else tap
        pad = 0 if large else 1
        writer.head(seen, offsets=[(f"loc.{level}", pad)], logits=[(f"conf.{level}", pad)], output_major=True)
