"""What single layers of a Caffe prototxt compute, and the rules of its PriorBox and DetectionOutput layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from multibox.errors import ContractError
from multibox.spec.anchors import AnchorSpec
from multibox.spec.postprocess import PostprocessSpec, Variances
from multibox.weights.foreign.protobuf import Text

__all__ = ["Node", "default_boxes", "layer_of", "number", "postprocess_of", "true"]


@dataclass(frozen=True)
class Node:
    """A layer with the names of the layers that it takes; "image" is the input."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    text: Text

    def parameters(self, name: str) -> Text:
        """The message of this name, empty when left out."""
        found: Text = self.text.get(name, [{}])[0]
        return found


def number(message: Text, name: str, default: float | None = None) -> float:
    """A number of a message.

    Raises:
        ContractError: it is missing and has no default, or is none.
    """
    if name not in message:
        if default is None:
            raise ContractError(f"the prototxt gives no {name}")
        return default
    try:
        return float(message[name][0])
    except (TypeError, ValueError):
        raise ContractError(f"the prototxt gives {name} as {message[name][0]!r}, which is no number") from None


def true(message: Text, name: str, default: bool) -> bool:
    """A truth value of a message."""
    return message.get(name, [str(default)])[0] in ("true", "True", "1")


def layer_of(node: Node) -> dict[str, Any]:
    """What a layer computes.

    Raises:
        ContractError: a layer or a rule that is not known here; it names the layer.
    """
    if node.kind in ("Convolution", "DepthwiseConvolution"):
        given = node.parameters("convolution_param")
        return {
            "op": "conv",
            "channels": int(number(given, "num_output")),
            "kernel": _pair(given, "kernel", "kernel_size", None),
            "stride": _pair(given, "stride", "stride", 1),
            "pad": _pair(given, "pad", "pad", 0),
            "dilation": [int(number(given, "dilation", 1))] * 2,
            "groups": int(number(given, "group", 1)),
            "bias": true(given, "bias_term", True),
        }
    if node.kind == "BatchNorm":
        return {"op": "norm", "eps": number(node.parameters("batch_norm_param"), "eps", 1e-5)}
    if node.kind == "Pooling":
        given = node.parameters("pooling_param")
        kind = {"MAX": "max_pool", "0": "max_pool", "AVE": "avg_pool", "1": "avg_pool"}.get(
            given.get("pool", ["MAX"])[0]
        )
        if kind and not true(given, "global_pooling", False):
            window = {"stride": _pair(given, "stride", "stride", 1), "pad": _pair(given, "pad", "pad", 0)}
            return {"op": kind, "kernel": _pair(given, "kernel", "kernel_size", None), **window}
    if node.kind == "ReLU" and not number(node.parameters("relu_param"), "negative_slope", 0):
        return {"op": "relu"}
    if node.kind == "Normalize" and not true(node.parameters("norm_param"), "across_spatial", True):
        return {"op": "l2norm"}
    if node.kind == "Concat" and number(node.parameters("concat_param"), "axis", 1) == 1:
        return {"op": "concat"}
    if node.kind == "Eltwise":
        given = node.parameters("eltwise_param")
        if given.get("operation", ["SUM"])[0] in ("SUM", "1") and set(given.get("coeff", [])) <= {"1", "1.0"}:
            return {"op": "add"}
    plain = {"ReLU6": {"op": "relu6"}, "Scale": {"op": "scale"}}
    if node.kind in plain:
        return plain[node.kind]
    raise ContractError(f"layer {node.name}: {node.kind} with these parameters is not known here")


def _pair(given: Text, stem: str, both: str, default: int | None) -> list[int]:
    if f"{stem}_h" in given:
        return [int(number(given, f"{stem}_h")), int(number(given, f"{stem}_w"))]
    values = [int(value) for value in given.get(both, [])]
    if len(values) == 2:
        return values
    return [int(number(given, both, default))] * 2


def default_boxes(layers: list[Node], size_hw: tuple[int, int]) -> tuple[AnchorSpec, Variances]:
    """The rule of PriorBox layers: of each smallest size a square, one between it and the largest, then the ratios.

    Raises:
        ContractError: another kind of layer, or rules that differ between the layers in what they must share.
    """
    levels, steps, rules = [], [], set()
    side = min(size_hw)
    for layer in layers:
        if layer.kind != "PriorBox":
            raise ContractError(f"layer {layer.name}: a PriorBox was expected, not {layer.kind}")
        given = layer.parameters("prior_box_param")
        # Caffe keeps whole pixels of the sizes: SSD512's 35.84 is 35 in the network that was trained.
        smallest, largest = ([int(float(v)) for v in given.get(name, [])] for name in ("min_size", "max_size"))
        if largest and len(largest) != len(smallest):
            raise ContractError(f"layer {layer.name}: {len(smallest)} min_size but {len(largest)} max_size")
        ratios: list[float] = []
        for ratio in (float(value) for value in given.get("aspect_ratio", [])):
            for wanted in (ratio, 1 / ratio) if true(given, "flip", True) else (ratio,):
                if all(abs(wanted - known) > 1e-6 for known in (1.0, *ratios)):
                    ratios.append(wanted)
        shapes = []
        for index, size in enumerate(smallest):
            shapes.append((size / side, size / side))
            if largest:
                shapes.append((math.sqrt(size * largest[index]) / side,) * 2)
            shapes += [(size * math.sqrt(ratio) / side, size / math.sqrt(ratio) / side) for ratio in ratios]
        levels.append(tuple(shapes))
        if given.get("step_h", [0]) != given.get("step_w", [0]):
            raise ContractError(f"layer {layer.name}: other steps across than down are not known here")
        steps.append(number(given, "step_h" if "step_h" in given else "step", 0))
        variances = [float(value) for value in given.get("variance", ["0.1"])]
        rules.add((true(given, "clip", False), number(given, "offset", 0.5), *(variances * (4 // len(variances)))))
    if len(rules) != 1 or (any(steps) and not all(steps)):
        raise ContractError("the PriorBox layers differ in clip, offset, variance, or in having a step")
    clip, offset, *variance = next(iter(rules))
    spec = AnchorSpec(
        tuple(levels),
        steps=tuple(steps) if all(steps) else None,
        nominal_size_hw=size_hw,
        offset=offset,
        clip="xyxy" if clip else "none",
    )
    return spec, tuple(variance)  # type: ignore[return-value]


def postprocess_of(given: Text) -> PostprocessSpec:
    """The rule of a DetectionOutput layer.

    Raises:
        ContractError: a rule that is not known here.
    """
    if given.get("code_type", [""])[0] not in ("CENTER_SIZE", "2"):
        raise ContractError(
            f"boxes are coded as {given.get('code_type', ['CORNER'])[0]}, only CENTER_SIZE is known here"
        )
    for name, wanted in (("share_location", True), ("variance_encoded_in_target", False)):
        if true(given, name, wanted) is not wanted:
            raise ContractError(f"DetectionOutput with another {name} than {str(wanted).lower()} is not known here")
    if number(given, "background_label_id", 0) != 0:
        raise ContractError("background is not class 0, which is not known here")
    suppression: Text = given.get("nms_param", [{}])[0]
    each, all_of_them = int(number(suppression, "top_k", -1)), int(number(given, "keep_top_k", -1))
    return PostprocessSpec(
        "softmax",
        score_threshold=number(given, "confidence_threshold", 0.01),
        nms_iou=number(suppression, "nms_threshold", 0.3),
        top_k=each if each > 0 else None,
        max_detections=all_of_them if all_of_them > 0 else 200,
        clip="after_nms",
    )
