"""Import of the SSD-MobileNetV1 face detector of face-api.js: a manifest of TensorFlow.js without a graph."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from multibox.errors import ContractError, ModelFileError
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.mobilenet import V1, import_mobilenet_ssd
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.tfjs import read_manifest

__all__ = ["read", "recognise"]

MANIFEST = "ssd_mobilenetv1_model-weights_manifest.json"
ANCHORS = "Output/extra_dim"
SIZE_HW = (512, 512)
FACE = 1  # column of the class head; column 2 is not used
EXTRA = re.compile(r"Prediction/Conv2d_(\d)_pointwise/(.+)")


def recognise(path: Path) -> str | None:
    """The manifest, or the folder that it lies in."""
    file = _manifest(path)
    if file is None:
        return None
    try:
        names = {entry["name"] for group in json.loads(file.read_bytes()) for entry in group["weights"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    found = {ANCHORS, "MobilenetV1/Conv2d_0_pointwise/weights", "Prediction/Conv2d_7_pointwise/weights"} <= names
    return f"the tensors {ANCHORS} and Prediction/Conv2d_7_pointwise in its manifest" if found else None


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a manifest. Boxes are cut at the border at the end, suppression is at 0.5, as face-api does."""
    file = _manifest(path)
    if file is None:
        raise ModelFileError(str(path), f"neither {MANIFEST} nor a folder that holds it", "get the package's files")
    tensors = {_object_detection_name(name): value for name, value in read_manifest(file).items()}
    if class_map is not None and len(class_map) != 1:
        raise ContractError(f"{len(class_map)} class names for weights with one class, a face")
    names = ClassMap.from_ids({FACE: "face" if class_map is None else class_map.names[0]})
    network, classes = import_mobilenet_ssd(tensors, names, size_hw=SIZE_HW, stored_yxyx=_stored(tensors))
    spec = network.spec
    network.spec = replace(
        spec,
        preprocess=replace(spec.preprocess, resize="pad_corner"),
        postprocess=replace(spec.postprocess, nms_iou=0.5),
    )
    said = "pictures are filled up with black at their right or bottom to squares, as face-api.js does"
    return Imported(network, classes, "face-api-ssd512", f"face-api.js's {file.name}", notes=(said,))


def _manifest(path: Path) -> Path | None:
    file = path / MANIFEST if path.is_dir() else path
    return file if file.name.endswith("manifest.json") and file.is_file() else None


def _stored(tensors: dict[str, NDArray[Any]]) -> NDArray[Any]:
    if ANCHORS not in tensors:
        raise ContractError(f"the manifest has no tensor {ANCHORS!r}, the default boxes")
    return tensors[ANCHORS]


def _object_detection_name(name: str) -> str:
    """What the Object Detection API calls a tensor."""
    extra = EXTRA.fullmatch(name)
    if extra:
        number = int(extra[1])
        size = "3x3_s2_1" if number % 2 else "1x1_1"
        return f"{V1}/Conv2d_13_pointwise_{number % 2 + 1}_Conv2d_{number // 2 + 2}_{size}/{extra[2]}"
    name = name.removeprefix("Prediction/")
    return f"FeatureExtractor/{name}".replace("Conv2d_0_pointwise", "Conv2d_0") if name.startswith("Mobile") else name
