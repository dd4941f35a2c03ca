"""Import of SSD300 and SSD512 on VGG16 as PyTorch ports store them, whose files differ in the names of the tensors.

amdegroot's `ssd.pytorch`, lufficc's `SSD` and mmdetection hold neither classes nor default boxes. All choose the
default boxes by the data set, VOC's for 20 classes; that is taken over and said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from multibox.errors import ContractError
from multibox.models.vgg import RATIOS_300, RATIOS_512, SCALES_300, SCALES_512, STEPS_300, STEPS_512, ScaleTable
from multibox.spec.anchors import AnchorSpec, Clip, ssd_anchors
from multibox.spec.classes import VOC_CLASSES, ClassMap
from multibox.spec.postprocess import BoxClip, PostprocessSpec
from multibox.spec.preprocess import Preprocess
from multibox.weights.foreign.names import COCO_IN_ORDER, class_names
from multibox.weights.foreign.state_dicts import read_state_dict, stored_classes, tensors_of
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["VggNames", "read", "recognise", "vgg_anchors", "write_vgg"]

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # their places among VGG16's layers
POOLS = {4: False, 9: False, 16: True, 23: False}  # place, whether the size is rounded up
CONV4_3, FC6, FC7 = 21, 31, 33


@dataclass(frozen=True)
class VggNames:
    """What a port calls its tensors.

    Args:
        trunk: of the convolution at a place among VGG16's layers.
        norm: of the normalisation of conv4_3.
        extra: of the extra layers: {pair} counts pairs, {half} is 0 or 1, {place} 0 or 2, {number} counts through,
            {block} is 8, 9 … as in the paper, with {part} 1 or 2.
        offsets, logits: of the heads; the level comes in.
        title: of the project.
        batch_norm: conv4_3 has batch normalisation in place of L2 normalisation.
        background_last: the last class score of a box is background's; otherwise the first.
        mean: of pictures, RGB.
        whole_pixels: sizes of default boxes are cut to whole pixels.
        clip_anchors, clip_boxes: how default boxes, and when found boxes, are cut at the border.
    """

    trunk: Callable[[int], str]
    norm: str
    extra: str
    offsets: str
    logits: str
    title: str
    batch_norm: bool = False
    background_last: bool = False
    mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    whole_pixels: bool = False
    clip_anchors: Clip = "cxcywh"
    clip_boxes: BoxClip = "after_nms"


PORTS = (
    VggNames("vgg.{}".format, "L2Norm", "extras.{number}", "loc.{}", "conf.{}", "amdegroot's ssd.pytorch"),
    VggNames(
        "backbone.vgg.{}".format,
        "backbone.l2_norm",
        "backbone.extras.{number}",
        "box_head.predictor.reg_headers.{}",
        "box_head.predictor.cls_headers.{}",
        "lufficc's SSD",
    ),
    VggNames(
        "backbone.features.{}".format,
        "neck.l2_norm",
        "neck.extra_layers.{pair}.{half}.conv",
        "bbox_head.reg_convs.{}.0",
        "bbox_head.cls_convs.{}.0",
        "mmdetection's SSD",
        background_last=True,
        mean=(123.675, 116.28, 103.53),
        whole_pixels=True,
        clip_anchors="none",
        clip_boxes="before_nms",
    ),
)


def _port(tensors: Mapping[str, Tensor]) -> VggNames | None:
    for port in PORTS:
        evidence = (port.trunk(28), port.norm)
        if all(f"{name}.weight" in tensors for name in evidence):
            return port
    return None


def recognise(path: Path) -> str | None:
    """A `.pth` file with the tensors of one of the ports."""
    tensors = tensors_of(path)
    port = None if tensors is None else _port(tensors)
    return None if port is None else f"the tensors of {port.title}"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a state dict."""
    tensors = read_state_dict(path)
    port = _port(tensors)
    if port is None:
        raise ContractError(f"{path.name}: not the tensors of {' or '.join(port.title for port in PORTS)}")
    heads = [f"{name.format(level)}.weight" for name in (port.offsets, port.logits) for level in range(8)]
    levels = 7 if sum(name in tensors for name in heads) > 12 else 6
    writer = GraphWriter(tensors, f"{port.title} on VGG16")
    write_vgg(writer, port, levels=levels)
    classes = writer.outputs(4) - 1
    table: ScaleTable = "voc" if classes == len(VOC_CLASSES) else "coco"
    side = 300 if levels == 6 else 512
    network = writer.network(
        anchors=vgg_anchors(levels, table, clip=port.clip_anchors, whole_pixels=port.whole_pixels),
        preprocess=Preprocess((side, side), mean=port.mean, rounding=True),
        postprocess=PostprocessSpec("softmax", nms_iou=0.45, top_k=200, clip=port.clip_boxes),
    )
    names = class_names(classes, class_map, stored_classes(path), VOC_CLASSES, COCO_IN_ORDER)
    said = f"default boxes for {table.upper()} were taken, because the weights have {classes} classes"
    return Imported(network, names, path.stem, f"{port.title} from {path.name}", notes=(said,))


def vgg_anchors(levels: int, table: ScaleTable, *, clip: Clip = "cxcywh", whole_pixels: bool = False) -> AnchorSpec:
    """The released default boxes of SSD300 (6 levels) or SSD512 (7), cut at the border as a port does.

    Raises:
        ContractError: another number of levels.
    """
    if levels not in (6, 7):
        raise ContractError(f"SSD300 has 6 levels and SSD512 7, the file has {levels}")
    rules = ((SCALES_300, RATIOS_300, STEPS_300, 300), (SCALES_512, RATIOS_512, STEPS_512, 512))
    scales, ratios, steps, side = rules[levels - 6]
    used = [int(scale * side + 1e-6) / side for scale in scales[table]] if whole_pixels else scales[table]
    return ssd_anchors(used, ratios, steps=steps, nominal_size_hw=(side, side), clip=clip)


def write_vgg(writer: GraphWriter, names: VggNames, *, levels: int = 6) -> None:
    """Describe SSD on VGG16: the trunk, conv4_3's normalisation, the extra levels, 3×3 heads."""
    taps = []
    for place in CONVOLUTIONS:
        theirs = names.trunk(place)
        if place - 1 in POOLS:
            writer.pool(f"{theirs}.pool", 2, 2, ceil=POOLS[place - 1])
        writer.conv(theirs, pad=1)
        relu = writer.plain("relu", f"{theirs}.relu")
        if place == CONV4_3:
            taps.append(writer.norm(names.norm) if names.batch_norm else writer.l2norm(names.norm))
            writer.last = relu
    fc6, fc7 = names.trunk(FC6), names.trunk(FC7)
    writer.pool(f"{fc6}.pool", 3, 1, 1, ceil=False)
    writer.conv(fc6, pad=6, dilation=6)
    writer.plain("relu", f"{fc6}.relu")
    writer.conv(fc7)
    taps.append(writer.plain("relu", f"{fc7}.relu"))
    for pair in range(levels - 2):
        one, two = (
            names.extra.format(pair=pair, half=i, place=2 * i, number=2 * pair + i, block=8 + pair, part=i + 1)
            for i in (0, 1)
        )
        writer.conv(one)
        writer.plain("relu", f"{one}.relu")
        last_of_512 = levels == 7 and pair == levels - 3
        stride = 2 if pair < (2 if levels == 6 else 4) else 1
        writer.conv(two, stride=stride, pad=1 if stride == 2 or last_of_512 else 0)
        taps.append(writer.plain("relu", f"{two}.relu"))
    for level, tap in enumerate(taps):
        offsets, logits = ([(name.format(level), 1)] for name in (names.offsets, names.logits))
        writer.head(tap, offsets=offsets, logits=logits, background_last=names.background_last)
