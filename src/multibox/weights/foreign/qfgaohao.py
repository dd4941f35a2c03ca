"""Import of the networks of qfgaohao's pytorch-ssd, which NVIDIA's jetson-inference trains (dusty-nv's branch of it).

`mb1-ssd`, `mb1-ssd-lite`, `mb2-ssd-lite` and `vgg16-ssd` are told apart by their tensors. A file holds neither classes
nor preprocessing; the classes stand in a `labels.txt` beside it, with the background first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from multibox.errors import ContractError
from multibox.spec.anchors import AnchorSpec, ssd_anchors
from multibox.spec.classes import VOC_CLASSES, ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess
from multibox.weights.foreign.names import class_names
from multibox.weights.foreign.state_dicts import Tensors, read_state_dict, tensors_of
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.vgg import VggNames, vgg_anchors, write_vgg
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["read", "recognise", "variant_of"]

Steps = list[str | tuple[str, int]]
SIZE = 300  # of the input; the files do not say another
LABELS = "labels.txt"
MOBILE_SIZES = (60, 105, 150, 195, 240, 285, 330)
MOBILE_STEPS = (16, 32, 64, 100, 150, 300)
VGG = VggNames(
    trunk="base_net.{}".format,
    norm="source_layer_add_ons.0",
    extra="extras.{pair}.{place}",
    offsets="regression_headers.{}",
    logits="classification_headers.{}",
    title="pytorch-ssd",
    batch_norm=True,
)
STRIDE_2 = (2, 4, 6, 12)  # blocks of MobileNetV1
MOBILENET_V2 = ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))  # blocks, stride of the first


def variant_of(tensors: Tensors) -> str | None:
    """Which of the networks these tensors are; None where they are none."""
    names = set(tensors)
    if not {"base_net.0.weight", "classification_headers.0.weight"} - names:
        return "vgg16-ssd" if any(name.startswith("source_layer_add_ons.0.") for name in names) else None
    if "base_net.1.3.weight" in names and "base_net.13.3.weight" in names:
        return "mb1-ssd" if "classification_headers.0.weight" in names else "mb1-ssd-lite"
    return "mb2-ssd-lite" if {"base_net.17.conv.0.weight", "classification_headers.0.3.weight"} <= names else None


def recognise(path: Path) -> str | None:
    """A `.pth` file with the tensors of one of the networks."""
    tensors = tensors_of(path)
    variant = None if tensors is None else variant_of(tensors)
    return None if variant is None else f"the tensors of {variant}"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a state dict, with the classes of the `labels.txt` beside it."""
    tensors = read_state_dict(path)
    variant = variant_of(tensors)
    if variant is None:
        raise ContractError(f"{path.name}: not the tensors of {', '.join(BUILDERS)}")
    writer = GraphWriter(tensors, f"pytorch-ssd's {variant}")
    BUILDERS[variant](writer)
    vgg = variant == "vgg16-ssd"
    network = writer.network(
        anchors=_anchors(vgg),
        preprocess=Preprocess(
            (SIZE, SIZE),
            mean=(123, 117, 104) if vgg else (127,) * 3,
            scale=(1.0,) * 3 if vgg else (1 / 128,) * 3,
            rounding=True,
        ),
        postprocess=PostprocessSpec("softmax", nms_iou=0.45, top_k=200, clip="after_nms"),
    )
    count = network.spec.num_classes
    names, said = _classes(path.with_name(LABELS), count) if class_map is None else (class_map, "")
    names = class_names(count, names)
    notes = [text for text in (said, f"an input of {SIZE} × {SIZE} was taken, which the file does not say") if text]
    return Imported(network, names, path.stem, f"pytorch-ssd's {variant} from {path.name}", notes=tuple(notes))


def _anchors(vgg: bool) -> AnchorSpec:
    if vgg:
        return vgg_anchors(6, "voc")
    scales = [size / SIZE for size in MOBILE_SIZES]
    return ssd_anchors(scales, ((2, 3),) * 6, steps=MOBILE_STEPS, nominal_size_hw=(SIZE, SIZE), clip="cxcywh")


def _classes(path: Path, count: int) -> tuple[ClassMap, str]:
    if path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
        names = tuple(line for line in lines if line)
        if len(names) == count + 1 and names[0].upper() == "BACKGROUND":
            return ClassMap(names[1:]), f"classes of {path.name}, without its background"
        raise ContractError(
            f"{path} has {len(names)} lines, the weights have {count} classes and background; put the labels.txt of "
            "these weights there, with BACKGROUND as its first line"
        )
    if count == len(VOC_CLASSES):
        return VOC_CLASSES, f"no {path.name} beside it: the classes are taken to be Pascal VOC's, because they are 20"
    return ClassMap(tuple(f"class {i}" for i in range(count))), f"no {path.name} beside it: the classes have no names"


def _mobilenet_v1(writer: GraphWriter, *, lite: bool) -> None:
    def normed(theirs: str, number: int, **window: int) -> None:
        writer.normed(f"{theirs}.{number}", f"{theirs}.{number + 1}", act="relu", **window)

    taps = []
    normed("base_net.0", 0, stride=2, pad=1)
    for block in range(1, 14):
        if block == 12:
            taps.append(writer.last)
        normed(f"base_net.{block}", 0, stride=2 if block in STRIDE_2 else 1, pad=1)
        normed(f"base_net.{block}", 3)
    taps.append(writer.last)
    for extra in range(4):
        theirs = f"extras.{extra}"
        writer.conv(f"{theirs}.0")
        writer.plain("relu", f"{theirs}.1")
        writer.conv(f"{theirs}.2.0" if lite else f"{theirs}.2", stride=2, pad=1)
        if lite:
            writer.plain("relu", f"{theirs}.2.1")
            writer.conv(f"{theirs}.2.2")
        taps.append(writer.plain("relu", f"{theirs}.3"))
    for level, tap in enumerate(taps):
        separable = lite and level < 5
        steps: Steps = [("{}.0", 1), "relu", ("{}.2", 0)] if separable else [("{}", 0 if lite else 1)]
        _head(writer, tap, level, steps)


def _mobilenet_v2(writer: GraphWriter) -> None:
    def inverted(theirs: str, *, stride: int, skip: bool, expanded: bool) -> str:
        """The output of the expansion."""
        before, parts = writer.last, [f"{theirs}.conv.{i}" for i in ((0, 1, 3, 4, 6, 7) if expanded else (0, 1, 3, 4))]
        tap = writer.normed(parts[0], parts[1], act="relu6") if expanded else before
        depthwise, norm, pointwise, last = parts[-4:]
        writer.normed(depthwise, norm, act="relu6", stride=stride, pad=1)
        writer.normed(pointwise, last)
        if skip:
            writer.plain("add", f"{theirs}.add", before, writer.last)
        return tap

    writer.normed("base_net.0.0", "base_net.0.1", act="relu6", stride=2, pad=1)
    number, taps = 1, []
    for repeats, stride in MOBILENET_V2:
        for repeat in range(repeats):
            expansion = inverted(
                f"base_net.{number}", stride=stride if repeat == 0 else 1, skip=repeat > 0, expanded=number > 1
            )
            if number == 14:
                taps.append(expansion)
            number += 1
    taps.append(writer.normed("base_net.18.0", "base_net.18.1", act="relu6"))
    for extra in range(4):
        inverted(f"extras.{extra}", stride=2, skip=False, expanded=True)
        taps.append(writer.last)
    for level, tap in enumerate(taps):
        _head(writer, tap, level, [("{}", 0)] if level == 5 else [("{}.0", 1), "{}.1", "relu6", ("{}.3", 0)])


def _head(writer: GraphWriter, tap: str, level: int, steps: Steps) -> None:
    """Both branches of a level; "{}" in a step stands for the prefix of the branch."""

    def branch(theirs: str) -> Steps:
        prefix = f"{theirs}_headers.{level}"
        return [s.format(prefix) if isinstance(s, str) else (s[0].format(prefix), s[1]) for s in steps]

    writer.head(tap, offsets=branch("regression"), logits=branch("classification"))


BUILDERS: dict[str, Callable[[GraphWriter], None]] = {
    "mb1-ssd": lambda writer: _mobilenet_v1(writer, lite=False),
    "mb1-ssd-lite": lambda writer: _mobilenet_v1(writer, lite=True),
    "mb2-ssd-lite": _mobilenet_v2,
    "vgg16-ssd": lambda writer: write_vgg(writer, VGG),
}
