"""Import of TensorFlow's frozen graphs (`.pb`) of the Object Detection API, without TensorFlow."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, ModelFileError
from multibox.spec.anchors import AnchorSpec
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.mobilenet import import_mobilenet_ssd, is_mobilenet_ssd
from multibox.weights.foreign.protobuf import integers, read_wire
from multibox.weights.foreign.ssdlite import BOX_HEAD, TRUNK, import_ssdlite_mobilenetv2, named_classes
from multibox.weights.foreign.table import Imported

__all__ = ["read", "read_constants", "recognise"]

DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # TensorFlow's numbers of types
VALUES = {1: 5, 2: 6, 3: 7, 9: 10}  # the field with values one by one
LITE_MARKS = (f"{TRUNK}/Conv/weights", f"BoxPredictor_5/{BOX_HEAD}_depthwise/depthwise_weights")
MARKS = ("FeatureExtractor/MobilenetV", f"BoxPredictor_5/{BOX_HEAD}/weights")
BOXES = "MultipleGridAnchorGenerator"
SCORES = "Postprocessor/convert_scores"
NMS_IOU = "non_max_suppression/iou_threshold"
Constants = dict[str, NDArray[Any]]


def recognise(path: Path) -> str | None:
    """A `.pb` file with the weights of such a network."""
    if path.suffix.lower() != ".pb" or not path.is_file():
        return None
    content = path.read_bytes()
    if all(mark.encode() in content for mark in LITE_MARKS):
        return f"the weights of {TRUNK} and of depthwise predictors"
    if not all(mark.encode() in content for mark in MARKS):
        return None
    return is_mobilenet_ssd(read_constants(path)[0])


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a frozen graph, with the default boxes that the graph computes."""
    constants, operations = read_constants(path)
    if operations.get(SCORES, "Sigmoid") != "Sigmoid":
        raise ContractError(f"{path.name}: scores by {operations[SCORES]}, which is not known here")
    sizes = {
        tuple(v.tolist())
        for k, v in constants.items()
        if "ResizeImage" in k and v.shape == (2,) and v.dtype.kind == "i"
    }
    sizes -= {size for size in sizes if min(size) < 2}
    if len(sizes) != 1:
        raise ContractError(f"{path.name}: it does not resize pictures to one size, found {sorted(sizes)}")
    height, width = sizes.pop()
    size_hw, names, anchors = (int(height), int(width)), named_classes(constants, class_map), _anchors(constants)
    if is_mobilenet_ssd(constants):
        network, classes = import_mobilenet_ssd(constants, names, size_hw=size_hw, anchors=anchors)
    else:
        network, classes = import_ssdlite_mobilenetv2(constants, names, anchors=anchors)
    overlaps = [float(v) for k, v in constants.items() if k.endswith(NMS_IOU) and v.size == 1]
    network.spec = replace(
        network.spec,
        preprocess=replace(network.spec.preprocess, size_hw=size_hw),
        postprocess=replace(network.spec.postprocess, nms_iou=round(overlaps[0], 6) if overlaps else 0.6),
    )
    return Imported(network, classes, path.stem, f"TensorFlow frozen graph {path.name}")


def read_constants(path: Path) -> tuple[Constants, dict[str, str]]:
    """The constants of a graph by name, and the operation of every node.

    Raises:
        ModelFileError: it cannot be read, or is no graph.
    """
    constants: Constants = {}
    operations: dict[str, str] = {}
    try:
        for content in read_wire(memoryview(path.read_bytes()))[1]:
            node = read_wire(_bytes(content))
            name, operation = (bytes(_bytes(node[field][0])).decode() for field in (1, 2))
            operations[name] = operation
            if operation != "Const":
                continue
            for entry in node.get(5, []):
                attribute = read_wire(_bytes(entry))
                if bytes(_bytes(attribute[1][0])) == b"value":
                    tensor = read_wire(_bytes(read_wire(_bytes(attribute[2][0]))[8][0]))
                    if tensor[1][0] in DTYPES:
                        constants[name] = _array(tensor)
    except OSError as error:
        raise ModelFileError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelFileError(str(path), f"not a usable frozen graph ({error})", "get the file again") from None
    return constants, operations


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _array(tensor: Any) -> NDArray[Any]:
    """One tensor; a single value stands for all of a shape."""
    kind = int(tensor[1][0])
    dimensions = read_wire(_bytes(tensor[2][0])).get(2, []) if 2 in tensor else []
    shape = [int(read_wire(_bytes(one)).get(1, [0])[0]) for one in dimensions]
    if 4 in tensor:
        return np.frombuffer(_bytes(tensor[4][0]), DTYPES[kind]).reshape(shape)
    values = tensor.get(VALUES[kind], [])
    if kind in (3, 9):
        found = np.array(integers(values) or [0], np.uint64).astype(np.int64).astype(DTYPES[kind])
    else:
        found = np.frombuffer(b"".join(_bytes(value) for value in values) or bytes(8), DTYPES[kind])
    return np.full(shape, found[0]) if found.size != np.prod(shape, dtype=np.int64) else found.reshape(shape)


def _anchors(constants: Constants) -> AnchorSpec:
    """The rule that the graph computes its default boxes by: scales and ratios of each level, in its own order.

    Raises:
        ContractError: the graph has no such rule.
    """

    def levels(name: str) -> list[NDArray[Any]]:
        found = {
            int(match[1] or 0): value
            for key, value in constants.items()
            if (match := re.fullmatch(rf"{BOXES}/{name}(?:_(\d+))?/x", key))
            and value.ndim == 1
            and value.size in (3, 6)
        }
        return [found[number] for number in sorted(found)]

    ratios, scales = levels("Sqrt"), levels("truediv")
    if not ratios or [r.shape for r in ratios] != [s.shape for s in scales]:
        raise ContractError(f"the graph has no scales and ratios under {BOXES}, so its default boxes are unknown")
    return AnchorSpec(
        tuple(
            tuple((float(s) * float(r) ** 0.5, float(s) / float(r) ** 0.5) for s, r in zip(scale, ratio, strict=True))
            for scale, ratio in zip(scales, ratios, strict=True)
        )
    )
