"""SSDLite-MobileNetV2 of the TensorFlow Object Detection API, from the tensors of a graph, whatever holds them.

The network is this package's own `ssdlite300_mobilenetv2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.errors import ContractError
from multibox.models.network import DetectionNetwork
from multibox.models.registry import create_model
from multibox.spec.anchors import AnchorSpec
from multibox.spec.classes import COCO_CLASSES, ClassMap

__all__ = [
    "ANCHORS",
    "BOX_HEAD",
    "CLASS_HEAD",
    "TRUNK",
    "Arrays",
    "anchors_difference",
    "import_ssdlite_mobilenetv2",
    "named_classes",
]

Arrays = Mapping[str, NDArray[Any]]
TRUNK = "FeatureExtractor/MobilenetV2"
BOX_HEAD, CLASS_HEAD = "BoxEncodingPredictor", "ClassPredictor"
LATER_BOXES = 6  # boxes at a cell of every level but the first
ANCHORS = "Postprocessor/ExpandDims"  # [1, A, 4] as (ymin, xmin, ymax, xmax), unit frame
ANCHOR_TOLERANCE = 1e-6
XYWH_OF_YXHW = (1, 0, 3, 2)  # TensorFlow codes a box as (y, x, height, width)


def named_classes(tensors: Arrays, names: ClassMap | None) -> ClassMap:
    """The classes of the rows of the class head, whose row 0 is background: the user's names, COCO's, or made-up ones.

    Raises:
        ContractError: another number of names than of classes.
    """
    count = len(_get(tensors, f"BoxPredictor_1/{CLASS_HEAD}/biases")) // LATER_BOXES - 1
    if names is None:
        coco = count == max(COCO_CLASSES.ids)
        return COCO_CLASSES if coco else ClassMap.from_ids({i: f"class {i}" for i in range(1, count + 1)})
    if len(names) != count:
        raise ContractError(f"{len(names)} class names for weights with {count} classes (background not counted)")
    return ClassMap.from_ids(dict(enumerate(names.names, 1)))


def import_ssdlite_mobilenetv2(
    tensors: Arrays, class_map: ClassMap = COCO_CLASSES, *, anchors: AnchorSpec | None = None
) -> tuple[DetectionNetwork, ClassMap]:
    """SSDLite-MobileNetV2 with the weights of a graph.

    Where the exporter folded the trunk's normalisation into its convolutions, it cannot be recovered, and the network
    is built without it; the heads keep theirs. The class head has rows for background and for ids without a name: only
    the rows of `class_map.ids` are kept (independent sigmoids, so the others' absence changes no score).

    Args:
        tensors: by their names in the graph.
        class_map: ids are rows of the class head.
        anchors: the rule of the graph's default boxes; without it the boxes that `tensors` hold must be the network's.

    Raises:
        ContractError: shapes or anchors that are not this network's.
    """
    norm = f"{TRUNK}/Conv/BatchNorm/gamma" in tensors
    detector = create_model("ssdlite300_mobilenetv2", num_classes=len(class_map), trunk_norm=norm)
    state: dict[str, NDArray[Any]] = {}
    for ours, theirs in _trunk_names(detector):
        _folded(state, ours, theirs, tensors)
    for level, boxes in enumerate(detector.spec.anchors.boxes_per_cell):
        for ours, theirs, keep in (("offsets", BOX_HEAD, XYWH_OF_YXHW), ("logits", CLASS_HEAD, class_map.ids)):
            _predictor(
                state, f"heads.0.{ours}.{level}", f"BoxPredictor_{level}/{theirs}", tensors, keep=keep, boxes=boxes
            )
    expected = detector.state_dict()
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            state[key] = value.numpy()
        if key not in state or tuple(state[key].shape) != tuple(value.shape):
            found = list(state[key].shape) if key in state else "nothing"
            raise ContractError(f"{key}: expected {list(value.shape)}, the graph model has {found}")
    detector.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    if anchors is None:
        _require_same_anchors(detector, tensors[ANCHORS])
    else:
        detector.spec = replace(detector.spec, anchors=anchors)
    return detector.eval(), class_map


def _trunk_names(detector: DetectionNetwork) -> list[tuple[str, str]]:
    """(our layer, their prefix) for every layer of the trunk and the extra levels."""
    names = [("stem", "Conv"), ("last", "Conv_1")]
    features: Any = detector.features
    for number in range(len(features.blocks)):
        prefix = "expanded_conv" if number == 0 else f"expanded_conv_{number}"
        parts = ("expand", "depthwise", "project") if number else ("depthwise", "project")
        names += [(f"blocks.{number}.{part}", f"{prefix}/{part}") for part in parts]
    for number, extra in enumerate(features.extras, start=2):
        squeeze, outputs = extra[0].conv.out_channels, extra[2].conv.out_channels
        second = f"layer_19_2_Conv2d_{number}_3x3_s2_{outputs}"
        theirs = (f"layer_19_1_Conv2d_{number}_1x1_{squeeze}", f"{second}_depthwise", second)
        names += [(f"extras.{number - 2}.{i}", name) for i, name in enumerate(theirs)]
    return [(f"features.{ours}", f"{TRUNK}/{theirs}") for ours, theirs in names]


def _folded(state: dict[str, NDArray[Any]], ours: str, theirs: str, tensors: Arrays) -> None:
    """A layer of the trunk. Folded normalisation is a merged kernel, or a factor of a depthwise one, and a bias."""
    if f"{theirs}/BatchNorm/gamma" in tensors:
        depthwise = tensors.get(f"{theirs}/depthwise_weights")
        kernel = (
            _get(tensors, f"{theirs}/weights").transpose(3, 2, 0, 1) if depthwise is None else _depthwise(depthwise)
        )
        state[f"{ours}.conv.weight"] = kernel
        _norm(state, ours, theirs, tensors)
        return
    norm = f"{theirs}/BatchNorm/batchnorm"
    if f"{theirs}/depthwise_weights" in tensors:
        kernel = _depthwise(tensors[f"{theirs}/depthwise_weights"]) * _get(tensors, f"{norm}/mul")[:, None, None, None]
    else:
        kernel = _get(tensors, f"{theirs}/Conv2D/merged_input").transpose(3, 2, 0, 1)
    state[f"{ours}.conv.weight"] = kernel
    state[f"{ours}.conv.bias"] = _get(tensors, f"{norm}/sub")


def _predictor(
    state: dict[str, NDArray[Any]], ours: str, theirs: str, tensors: Arrays, *, keep: Sequence[int], boxes: int
) -> None:
    """Depthwise convolution, its normalisation, and the 1×1 convolution with the wanted outputs of each box."""
    depthwise = f"{theirs}_depthwise"
    state[f"{ours}.0.conv.weight"] = _depthwise(_get(tensors, f"{depthwise}/depthwise_weights"))
    _norm(state, f"{ours}.0", depthwise, tensors)
    kernel = _get(tensors, f"{theirs}/weights").transpose(3, 2, 0, 1)
    bias = _get(tensors, f"{theirs}/biases")
    per_box = np.arange(len(bias)).reshape(boxes, -1)
    if max(keep) >= per_box.shape[1]:
        raise ContractError(f"{theirs} has {per_box.shape[1]} outputs a box, so no row for id {max(keep)}")
    rows = per_box[:, list(keep)].reshape(-1)
    state[f"{ours}.1.weight"], state[f"{ours}.1.bias"] = kernel[rows], bias[rows]


def _norm(state: dict[str, NDArray[Any]], ours: str, theirs: str, tensors: Arrays) -> None:
    for name, key in (
        ("weight", "gamma"),
        ("bias", "beta"),
        ("running_mean", "moving_mean"),
        ("running_var", "moving_variance"),
    ):
        state[f"{ours}.norm.{name}"] = _get(tensors, f"{theirs}/BatchNorm/{key}")


def _depthwise(kernel: NDArray[Any]) -> NDArray[Any]:
    return kernel.transpose(2, 3, 0, 1)  # [kh, kw, C, 1] -> [C, 1, kh, kw]


def _get(tensors: Arrays, name: str) -> NDArray[Any]:
    if name not in tensors:
        raise ContractError(f"the graph model has no tensor {name!r}; it is not an SSDLite-MobileNetV2")
    return tensors[name]


def _require_same_anchors(detector: DetectionNetwork, stored_yxyx: NDArray[Any]) -> None:
    difference = anchors_difference(detector, stored_yxyx)
    if difference > ANCHOR_TOLERANCE:
        raise ContractError(f"the graph's anchors differ from this network's default boxes by {difference}")


def anchors_difference(detector: DetectionNetwork, stored_yxyx: NDArray[Any]) -> float:
    """By how much a network's default boxes differ from those of a graph, [..., 4] as (ymin, xmin, ymax, xmax)."""
    ymin, xmin, ymax, xmax = stored_yxyx.reshape(-1, 4).astype(np.float64).T
    theirs = np.stack([(xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin], axis=1)
    ours = detector.anchors_cxcywh().numpy()
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
