"""A Caffe prototxt of an SSD as a network that `graph_ssd` builds: layers, heads, default boxes, post-processing.

The prototxt alone says strides, paddings, default boxes and thresholds; the caffemodel beside it has the weights. What
is not understood is refused by the name of the layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from multibox.errors import ContractError
from multibox.models.graph import IMAGE, key_of
from multibox.spec.anchors import AnchorSpec
from multibox.spec.postprocess import DEFAULT_VARIANCES
from multibox.weights.foreign.caffe_layers import Node, default_boxes, layer_of, number, postprocess_of
from multibox.weights.foreign.protobuf import Text
from multibox.weights.foreign.ultra_light import POSTPROCESS, ultra_light_anchors

__all__ = ["CaffeSsd", "describe"]

PASSED = ("Flatten", "Reshape", "Permute", "Softmax", "Sigmoid", "Split", "Dropout")  # behind heads
IN_BRANCH = ("Convolution", "ReLU", "BatchNorm", "Scale")


@dataclass
class CaffeSsd:
    """What a prototxt says.

    Attributes:
        arguments: of `graph_ssd`, but for preprocessing.
        places: caffe layer -> (prefix of our keys, what it is: "conv", "norm", "scale", "l2norm").
        size_hw: of the input.
        names: of all layers, by which families are told apart.
        notes: what was corrected or assumed.
    """

    arguments: dict[str, Any]
    places: dict[str, tuple[str, str]]
    size_hw: tuple[int, int]
    names: frozenset[str]
    notes: list[str] = field(default_factory=list)


def nodes_of(text: Text) -> tuple[dict[str, Node], tuple[int, int]]:
    """The layers in their order, by name, and the (height, width) of the input.

    A layer that writes over its input gives a new value, so every name stands for one value.

    Raises:
        ContractError: an old prototxt, no size of the input, or a layer that takes what no layer gives.
    """
    if "layers" in text:
        raise ContractError(
            "it is a prototxt of before 2014 (`layers`); bring it up to date with Caffe's own converter"
        )
    current = dict.fromkeys(map(str, text.get("input", [])), IMAGE)
    shape = [int(number({"dim": [d]}, "dim")) for d in text.get("input_dim", [])]
    shape = shape or [int(d) for m in text.get("input_shape", []) for d in m.get("dim", [])]
    nodes: dict[str, Node] = {}
    for layer in text.get("layer", []):
        kind, name = str(layer.get("type", [""])[0]), str(layer.get("name", [""])[0])
        tops = [str(top) for top in layer.get("top", [])]
        if any("TRAIN" in rule.get("phase", []) for rule in layer.get("include", [])):
            continue
        if kind == "Input":
            shape = [int(d) for m in layer.get("input_param", [{}])[0].get("shape", []) for d in m.get("dim", [])]
            current[tops[0]] = IMAGE
            continue
        missing = [bottom for bottom in layer.get("bottom", []) if bottom not in current]
        if missing or not name or name in nodes:
            why = f"takes {missing[0]!r}, which no layer before it gives" if missing else "has no name of its own"
            raise ContractError(f"layer {name or kind!r} {why}; use the prototxt for deployment")
        nodes[name] = Node(name, kind, tuple(current[bottom] for bottom in layer.get("bottom", [])), layer)
        current.update((top, name) for top in tops)
    if len(shape) != 4 or shape[1] != 3:
        raise ContractError("it gives no input of 1 × 3 × height × width; use the prototxt for deployment")
    return nodes, (shape[2], shape[3])


def describe(text: Text) -> CaffeSsd:
    """What a prototxt says of an SSD.

    Raises:
        ContractError: it is no SSD, or one with a layer or a rule that is not known here.
    """
    nodes, size_hw = nodes_of(text)
    notes = list(_mended(nodes))
    outputs = [node for node in nodes.values() if node.kind == "DetectionOutput"]
    if outputs:
        box_outputs, score_outputs, prior_outputs = (list(_sources(nodes, of)) for of in outputs[0].inputs[:3])
        anchors, variances = default_boxes([nodes[name] for name in prior_outputs], size_hw)
        postprocess = postprocess_of(outputs[0].parameters("detection_output_param"))
    elif {"scores", "boxes"} <= nodes.keys():
        box_outputs, score_outputs = (list(_sources(nodes, of)) for of in ("boxes", "scores"))
        anchors, variances = ultra_light_anchors(size_hw), DEFAULT_VARIANCES
        postprocess = POSTPROCESS
        notes.append("the prototxt has no default boxes: those of the Ultra-Light face detectors were taken")
    else:
        raise ContractError("it has no layer DetectionOutput, so it is no whole SSD")
    if len(box_outputs) != len(score_outputs) or len(box_outputs) != len(anchors.levels):
        counts = f"{len(box_outputs)} of boxes, {len(score_outputs)} of scores, {len(anchors.levels)} of default boxes"
        raise ContractError(f"its levels do not agree: {counts}")
    if not any(
        nodes[name].kind == "Softmax" for name in _ancestors(nodes, outputs[0].inputs[1] if outputs else "scores")
    ):
        raise ContractError("its scores do not come from a Softmax, the only function of scores that is known here")
    heads: list[dict[str, Any]] = []
    places: dict[str, tuple[str, str]] = {}
    needed: set[str] = set()
    for level, (boxes, scores) in enumerate(zip(box_outputs, score_outputs, strict=True)):
        chains = {"offsets": _chain(nodes, boxes), "logits": _chain(nodes, scores)}
        tap = next((name for name in chains["offsets"] if name in chains["logits"]), None)
        if tap is None:
            raise ContractError(f"the heads {boxes} and {scores} read different maps")
        needed |= {tap, *_ancestors(nodes, tap)}
        head: dict[str, Any] = {"map": tap}
        for kind, chain in chains.items():
            names = chain[: chain.index(tap)][::-1]
            head[kind] = list(_layers(nodes, names, places, f"heads.0.{kind}.{level}", set(names)))
        heads.append(head)
    layers = list(_layers(nodes, [name for name in nodes if name in needed], places, "features.layers", needed))
    aliases = _aliases(nodes, needed)
    for head in heads:
        head["map"] = aliases.get(head["map"], head["map"])
    classes = _class_count(heads, anchors)
    arguments = {
        "layers": layers,
        "heads": heads,
        "anchors": anchors.to_dict(),
        "postprocess": postprocess.to_dict(),
        "num_classes": classes,
        "variances": list(variances),
    }
    return CaffeSsd(arguments, places, size_hw, frozenset(nodes), notes)


def _mended(nodes: dict[str, Node]) -> Iterator[str]:
    """OpenCV's prototxt of 2018 pads two convolutions of its face detector, whose weights were learnt without."""
    if "layer_512_1_conv2_h" not in nodes or "data_bn" not in nodes:
        return
    for name in ("conv8_2_h", "conv9_2_h"):
        parameters = nodes[name].parameters("convolution_param") if name in nodes else {}
        if parameters.get("pad") == ["1"]:
            parameters["pad"] = ["0"]
            yield f"{name} has pad 1 in this prototxt, but was trained with pad 0, which is taken (opencv/opencv#15106)"


def _sources(nodes: dict[str, Node], name: str) -> Iterator[str]:
    """The layers whose outputs are put one after another into an output, in their order."""
    node = nodes[name]
    if node.kind == "Concat" or node.kind in PASSED:
        if node.kind == "Permute" and node.parameters("permute_param").get("order") != ["0", "2", "3", "1"]:
            raise ContractError(f"layer {name} permutes in an order that is not known here")
        for source in node.inputs:
            yield from _sources(nodes, source)
    else:
        yield name


def _ancestors(nodes: dict[str, Node], name: str) -> set[str]:
    """The layer and all that it needs."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found and one != IMAGE:
            found.add(one)
            waiting += nodes[one].inputs
    return found


def _chain(nodes: dict[str, Node], name: str) -> list[str]:
    """A layer, the one that it takes, and so on, as long as each takes one; the last is no longer of the branch."""
    chain = [name]
    while nodes[chain[-1]].kind in IN_BRANCH and nodes[chain[-1]].inputs[0] != IMAGE:
        chain.append(nodes[chain[-1]].inputs[0])
    return chain


def _aliases(nodes: dict[str, Node], needed: set[str]) -> dict[str, str]:
    """Layer -> the one whose module does its work: a Scale is the affine part of the BatchNorm that it alone reads."""
    readers = Counter(source for name in needed for source in nodes[name].inputs)
    found = {}
    for name in needed:
        node = nodes[name]
        if node.kind in ("Dropout", "Split"):
            found[name] = node.inputs[0]
        elif node.kind == "Scale" and node.inputs[0] in needed:
            source = nodes[node.inputs[0]]
            if source.kind == "BatchNorm" and readers[source.name] == 1:
                found[name] = source.name
    for name in list(found):
        while found[name] in found:
            found[name] = found[found[name]]
    return found


def _layers(
    nodes: dict[str, Node], names: Sequence[str], places: dict[str, tuple[str, str]], prefix: str, within: set[str]
) -> Iterator[dict[str, Any]]:
    aliases = _aliases(nodes, within)
    for name in names:
        node = nodes[name]
        if name in aliases:
            if node.kind == "Scale":
                places[name] = f"{prefix}.{key_of(aliases[name])}", "scale"
            continue
        layer = layer_of(node)
        if node.kind == "BatchNorm":
            layer["affine"] = name in aliases.values()
        if layer["op"] in ("conv", "norm", "scale", "l2norm"):
            places[name] = f"{prefix}.{key_of(name)}", layer["op"]
        yield {"name": name, "inputs": [aliases.get(of, of) for of in node.inputs], **layer}


def _class_count(heads: Sequence[dict[str, Any]], anchors: AnchorSpec) -> int:
    """Classes without background, the same on every level."""
    found = set()
    for head, boxes in zip(heads, anchors.boxes_per_cell, strict=True):
        offsets, logits = head["offsets"][-1], head["logits"][-1]
        if offsets["op"] != "conv" or logits["op"] != "conv" or offsets["channels"] != 4 * boxes:
            raise ContractError(f"the heads of {head['map']} do not end in convolutions for {boxes} boxes at a cell")
        found.add(logits["channels"] / boxes - 1)
    count = min(found)
    if len(found) != 1 or count != int(count) or count < 1:
        raise ContractError(f"the heads disagree about the number of classes: {sorted(found)}")
    return int(count)
