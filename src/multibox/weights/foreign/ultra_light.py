"""Import of Linzaer's Ultra-Light face detectors, RFB and slim, as state dicts; `caffe` reads their Caffe files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from multibox.errors import ContractError
from multibox.spec.anchors import AnchorSpec
from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess
from multibox.weights.foreign.names import class_names
from multibox.weights.foreign.state_dicts import read_state_dict, tensors_of
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["POSTPROCESS", "read", "recognise", "ultra_light_anchors"]

SIZE_HW = (240, 320)
SIDES = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))  # of the default boxes, in pixels
STRIDE_2 = (2, 4, 8, 11)
MIXED_BLOCK = 7  # several dilations beside each other, in the RFB variant
DILATIONS = (2, 3, 5)
TAPS = (7, 10, 12)
POSTPROCESS = PostprocessSpec("softmax", nms_iou=0.3, top_k=None, clip="after_nms")


def ultra_light_anchors(size_hw: tuple[int, int] = SIZE_HW) -> AnchorSpec:
    """Squares in pixels whatever the input, on cells that divide it evenly; centre and size are cut at [0, 1]."""
    levels = tuple(tuple((side / min(size_hw),) * 2 for side in sides) for sides in SIDES)
    return AnchorSpec(levels, clip="cxcywh")


def _variant(tensors: Mapping[str, Tensor]) -> str | None:
    head = tensors.get("regression_headers.3.weight")
    if head is None or tuple(head.shape) != (12, 256, 3, 3):
        return None
    if f"base_net.{MIXED_BLOCK}.branch0.0.conv.weight" in tensors:
        return "RFB"
    return "slim" if f"base_net.{MIXED_BLOCK}.0.weight" in tensors else None


def recognise(path: Path) -> str | None:
    """A `.pth` file with the tensors of one of the two."""
    tensors = tensors_of(path)
    variant = None if tensors is None else _variant(tensors)
    return None if variant is None else f"the tensors of {variant}"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a state dict."""
    tensors = read_state_dict(path)
    variant = _variant(tensors)
    if variant is None:
        raise ContractError(f"{path.name}: not the tensors of an Ultra-Light face detector, RFB or slim")
    writer = GraphWriter(tensors, f"the Ultra-Light face detector {variant}")
    _write(writer, mixed=variant == "RFB")
    network = writer.network(
        anchors=ultra_light_anchors(),
        preprocess=Preprocess(SIZE_HW, mean=(127.0,) * 3, scale=(1 / 128,) * 3, rounding=True),
        postprocess=POSTPROCESS,
    )
    names = class_names(network.spec.num_classes, class_map, ClassMap(("face",)))
    said = f"an input of {SIZE_HW[0]} × {SIZE_HW[1]} (height × width) was taken, which the file does not say"
    return Imported(network, names, path.stem, f"Ultra-Light face detector {variant} from {path.name}", notes=(said,))


def _write(writer: GraphWriter, *, mixed: bool) -> None:
    def part(theirs: str, *, act: str = "relu", **window: int) -> str:
        return writer.normed(f"{theirs}.conv", f"{theirs}.bn", act=act, **window)

    def mix(theirs: str) -> None:
        """Branches of several dilations, put together by a 1×1 convolution and added to a shortcut."""
        taken, ends = writer.last, []
        for number, dilation in enumerate(DILATIONS):
            writer.last, steps = taken, 2 if number == 2 else 1
            part(f"{theirs}.branch{number}.0", act="")
            for step in range(1, steps + 1):
                part(f"{theirs}.branch{number}.{step}", pad=1)
            last = f"{theirs}.branch{number}.{steps + 1}"
            ends.append(part(last, act="", pad=dilation, dilation=dilation))
        writer.plain("concat", f"{theirs}.concat", *ends)
        together = part(f"{theirs}.ConvLinear", act="")
        writer.last = taken
        shortcut = part(f"{theirs}.shortcut", act="")
        writer.plain("add", f"{theirs}.add", together, shortcut)
        writer.plain("relu", f"{theirs}.relu")

    writer.normed("base_net.0.0", "base_net.0.1", act="relu", stride=2, pad=1)
    taps = []
    for block in range(1, 13):
        theirs = f"base_net.{block}"
        if mixed and block == MIXED_BLOCK:
            mix(theirs)
        else:
            writer.normed(f"{theirs}.0", f"{theirs}.1", act="relu", stride=2 if block in STRIDE_2 else 1, pad=1)
            writer.normed(f"{theirs}.3", f"{theirs}.4", act="relu")
        if block in TAPS:
            taps.append(writer.last)
    writer.conv("extras.0.0")
    writer.plain("relu", "extras.0.1")
    writer.conv("extras.0.2.0", stride=2, pad=1)
    writer.plain("relu", "extras.0.2.1")
    writer.conv("extras.0.2.2")
    taps.append(writer.plain("relu", "extras.0.3"))
    for level, tap in enumerate(taps):
        offsets, logits = f"regression_headers.{level}", f"classification_headers.{level}"
        if level == 3:
            writer.head(tap, offsets=[(offsets, 1)], logits=[(logits, 1)])
        else:
            separable = ([(f"{name}.0", 1), "relu", (f"{name}.2", 0)] for name in (offsets, logits))
            writer.head(tap, offsets=next(separable), logits=next(separable))
