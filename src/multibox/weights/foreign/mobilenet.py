"""SSD on MobileNetV1 or V2 of the TensorFlow Object Detection API, from the tensors of a graph, whatever holds them.

Its predictors are 1×1 convolutions and its extra levels full 3×3 ones; the Lite network with depthwise ones is read by
`multibox.weights.foreign.ssdlite`. The network is built as `graph_ssd`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multibox.errors import ContractError
from multibox.models.network import DetectionNetwork
from multibox.models.ssdlite import mobilenet_preprocess
from multibox.spec.anchors import AnchorSpec, tf_anchors
from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.weights.foreign.ssdlite import BOX_HEAD, CLASS_HEAD, Arrays, anchors_difference
from multibox.weights.foreign.writer import GraphWriter

__all__ = [
    "V1",
    "XYWH_OF_YXHW",
    "import_mobilenet_ssd",
    "is_mobilenet_ssd",
    "rows_of_boxes",
    "settle_anchors",
    "shapes_of_counts",
    "tf_rules",
]

V1, V2 = "FeatureExtractor/MobilenetV1", "FeatureExtractor/MobilenetV2"
EPSILON = 1e-3  # of its batch normalisation
V1_HALVED = (2, 4, 6, 12)  # depthwise layers of stride 2
V2_HALVED, V2_BLOCKS = (1, 3, 6, 13), 17
EXTRA = re.compile(r"(?:layer_19|Conv2d_13_pointwise)_([12])_Conv2d_(\d+)_\dx\d_(?:s2_)?\d+")
KINDS = {
    "weights": "weight",
    "depthwise_weights": "weight",
    "Conv2D/merged_input": "weight",
    "biases": "bias",
    "convolution_bn_offset": "bias",
    "BatchNorm/batchnorm/sub": "bias",
    "BatchNorm/gamma": "BatchNorm.weight",
    "BatchNorm/beta": "BatchNorm.bias",
    "BatchNorm/moving_mean": "BatchNorm.running_mean",
    "BatchNorm/moving_variance": "BatchNorm.running_var",
}
"""What an array is called behind its layer's name, and what it is called here."""
FACTOR = "BatchNorm/batchnorm/mul"  # of a depthwise kernel whose normalisation was folded
XYWH_OF_YXHW = [1, 0, 3, 2]
SQUARE_SECOND = (0, 5, 1, 2, 3, 4)  # the place of a cell's boxes in models of 2017


def is_mobilenet_ssd(names: Iterable[str]) -> str | None:
    """By what tensors are those of such a network; None where they are not."""
    known = set(names)
    if any(name.startswith(f"BoxPredictor_0/{BOX_HEAD}_depthwise/") for name in known):
        return None
    if not {f"BoxPredictor_{level}/{BOX_HEAD}/weights" for level in range(6)} <= known:
        return None
    trunk = next((trunk for trunk in (V1, V2) if any(name.startswith(f"{trunk}/") for name in known)), None)
    return None if trunk is None else f"the weights of {trunk} and of 1×1 predictors"


def tf_rules() -> dict[str, AnchorSpec]:
    """The Object Detection API's default boxes, with the order of a cell's boxes in words."""
    last = tf_anchors()
    first, *others = last.levels
    second = replace(last, levels=(first, *(tuple(level[i] for i in SQUARE_SECOND) for level in others)))
    return {"the larger square last": last, "the larger square second, as in 2017": second}


def import_mobilenet_ssd(
    arrays: Arrays,
    class_map: ClassMap | None,
    *,
    size_hw: Sequence[int],
    anchors: AnchorSpec | None = None,
    stored_yxyx: NDArray[Any] | None = None,
) -> tuple[DetectionNetwork, ClassMap]:
    """An SSD with the weights of a graph.

    Args:
        arrays: by their names in the graph; those that are no weights are passed over.
        class_map: ids are columns of the class head, whose column 0 is background; made-up names for all when left
            out. Scores are independent sigmoids, so a column without a class can go.
        size_hw: of the input.
        anchors: the rule of the graph's default boxes.
        stored_yxyx: [A, 4], the default boxes that the graph holds, in place of their rule.

    Raises:
        ContractError: tensors or default boxes that are not such a network's.
    """
    columns = len(_get(arrays, f"BoxPredictor_1/{CLASS_HEAD}/biases")) // 6
    if class_map is None:
        class_map = ClassMap.from_ids({i: f"class {i}" for i in range(1, columns)})
    if max(class_map.ids) >= columns:
        raise ContractError(f"{max(class_map.ids)} class names for weights with {columns - 1} classes")
    tensors = dict(_torch_tensors(arrays, class_map.ids, columns))
    trunk = V1 if any(name.startswith(f"{V1}/") for name in tensors) else V2
    writer = _Writer(tensors, f"an SSD on {trunk.rpartition('/')[2]}")
    taps = writer.v1() if trunk == V1 else writer.v2()
    for level, tap in enumerate(taps + writer.extras(trunk)):
        heads = (f"BoxPredictor_{level}/{kind}" for kind in (BOX_HEAD, CLASS_HEAD))
        offsets, logits = ([(name, 0)] for name in heads)
        writer.head(tap, offsets=offsets, logits=logits)
    rules = tf_rules() if anchors is None else {"": anchors}
    network = writer.network(
        anchors=next(iter(rules.values())),
        preprocess=mobilenet_preprocess(size_hw),
        postprocess=PostprocessSpec("sigmoid", nms_iou=0.6, top_k=None, max_detections=100, clip="after_nms"),
    )
    if stored_yxyx is not None:
        settle_anchors(network, rules.values(), stored_yxyx)
    return network, class_map


def shapes_of_counts(counts: Sequence[int]) -> AnchorSpec:
    """Any default boxes in these numbers at a cell, until the right ones are known."""
    return AnchorSpec(tuple(((1.0, 1.0),) * count for count in counts))


def settle_anchors(
    network: DetectionNetwork,
    rules: Iterable[AnchorSpec],
    stored_yxyx: NDArray[Any] | None = None,
    *,
    tolerance: float = 1e-6,
) -> None:
    """Takes the rule that gives the stored default boxes, whose order is that of the heads' channels.

    Where none does, the stored boxes of each level's first cell are taken as the shapes of all its cells.

    Args:
        network: whose specification is changed.
        rules: to be tried in turn.
        stored_yxyx: [A, 4] corners as fractions of the input; without them the first rule is taken.
        tolerance: within which stored boxes are those of a rule.

    Raises:
        ContractError: the stored boxes are not the same ones at every cell.
    """
    cells = network.feature_sizes_hw()
    for rule in rules:
        if rule.boxes_per_cell == network.spec.anchors.boxes_per_cell:
            network.spec = replace(network.spec, anchors=rule)
            if stored_yxyx is None or anchors_difference(network, stored_yxyx) <= tolerance:
                return
    counts = network.spec.anchors.boxes_per_cell
    if stored_yxyx is None:
        raise ContractError(f"the file holds no default boxes, and no rule is known for {counts} of them at a cell")
    network.spec = replace(network.spec, anchors=_first_cells(stored_yxyx, cells, counts, network))
    if anchors_difference(network, stored_yxyx) > tolerance:
        raise ContractError("its default boxes are not the same ones at every cell of a map")


def _first_cells(
    stored_yxyx: NDArray[Any], cells: Sequence[tuple[int, int]], counts: Sequence[int], network: DetectionNetwork
) -> AnchorSpec:
    """The shapes of default boxes at each level's first cell, as fractions of the shorter side."""
    height, width = network.spec.preprocess.size_hw
    start, levels = 0, []
    for (rows, columns), count in zip(cells, counts, strict=True):
        first = stored_yxyx.reshape(-1, 4)[start : start + count]
        if len(first) != count:
            raise ContractError(f"the file has {len(stored_yxyx)} default boxes, too few for its heads")
        sides = (first[:, 2:] - first[:, :2]) * (height, width) / min(height, width)
        levels.append(tuple((float(w), float(h)) for h, w in sides))
        start += rows * columns * count
    return AnchorSpec(tuple(levels))


def _get(arrays: Arrays, name: str) -> NDArray[Any]:
    if name not in arrays:
        raise ContractError(f"the graph has no tensor {name!r}; it is not an SSD on MobileNet")
    return arrays[name]


def _torch_tensors(arrays: Arrays, keep: Sequence[int], columns: int) -> Iterable[tuple[str, Tensor]]:
    """The weights under the names and in the layout of torch: kernels by output, boxes as (x, y, width, height)."""
    for name, value in arrays.items():
        ending = next((one for one in KINDS if name.endswith(f"/{one}")), None)
        if ending is None or not name.startswith((f"{V1}/", f"{V2}/", "BoxPredictor_")):
            continue
        layer = name.removesuffix(f"/{ending}")
        array = np.asarray(value, np.float32)
        if KINDS[ending] == "weight" and array.ndim != 4:
            raise ContractError(f"{name} is {list(array.shape)}, which is no kernel of a convolution")
        if ending == "depthwise_weights":
            factor = arrays.get(f"{layer}/{FACTOR}")
            array = array.transpose(2, 3, 0, 1) * (1 if factor is None else factor[:, None, None, None])
        elif KINDS[ending] == "weight":
            array = array.transpose(3, 2, 0, 1)
        if layer.endswith(f"/{BOX_HEAD}"):
            array = rows_of_boxes(array, 4, XYWH_OF_YXHW, name)
        elif layer.endswith(f"/{CLASS_HEAD}"):
            array = rows_of_boxes(array, columns, keep, name)
        inside = "/" if KINDS[ending].startswith("BatchNorm") else "."
        yield f"{layer}{inside}{KINDS[ending]}", torch.from_numpy(np.array(array, order="C"))


def rows_of_boxes(array: NDArray[Any], width: int, keep: Sequence[int], name: str) -> NDArray[Any]:
    """The wanted outputs of each box."""
    if len(array) % width:
        raise ContractError(f"{name} has {len(array)} outputs, which is no multiple of {width}")
    return array.reshape(-1, width, *array.shape[1:])[:, list(keep)].reshape(-1, *array.shape[1:])


@dataclass
class _Layer:
    name: str
    half: int
    level: int


class _Writer(GraphWriter):
    """Describes the trunks and the extra levels."""

    def __init__(self, tensors: Mapping[str, Tensor], title: str) -> None:
        super().__init__(tensors, title)
        self._names = {name.rpartition(".")[0] for name in tensors}

    def unit(self, theirs: str, *, stride: int = 1, act: bool = True) -> str:
        """A convolution, its batch normalisation where that was not folded, and ReLU6."""
        normed = f"{theirs}/BatchNorm" in self._names
        self.conv(theirs, bias=not normed, stride=stride, same=True)
        if normed:
            self.norm(f"{theirs}/BatchNorm", eps=EPSILON)
        return self.plain("relu6", f"{theirs}/Relu6") if act else self.last

    def v1(self) -> list[str]:
        """MobileNetV1, of which the maps of stride 16 and 32 are read."""
        self.unit(f"{V1}/Conv2d_0", stride=2)
        taps = []
        for number in range(1, 14):
            self.unit(f"{V1}/Conv2d_{number}_depthwise", stride=2 if number in V1_HALVED else 1)
            taps.append(self.unit(f"{V1}/Conv2d_{number}_pointwise"))
        return [taps[10], taps[12]]

    def v2(self) -> list[str]:
        """MobileNetV2, of which the widened map of stride 16 and the last one are read."""
        self.unit(f"{V2}/Conv", stride=2)
        taps = []
        for number in range(V2_BLOCKS):
            block = f"{V2}/expanded_conv" + (f"_{number}" if number else "")
            taken, stride = self.last, 2 if number in V2_HALVED else 1
            if number:
                taps.append(self.unit(f"{block}/expand"))
            self.unit(f"{block}/depthwise", stride=stride)
            out = self.unit(f"{block}/project", act=False)
            if stride == 1 and self.channels_of(out) == self.channels_of(taken):
                self.plain("add", f"{block}/add", out, taken)
        return [taps[12], self.unit(f"{V2}/Conv_1")]

    def extras(self, trunk: str) -> list[str]:
        """Two convolutions for each further level, of which the second halves the map."""
        found = [
            _Layer(name, int(match[1]), int(match[2]))
            for name in self._names
            if (match := EXTRA.fullmatch(name.removeprefix(f"{trunk}/")))
        ]
        taps = []
        for layer in sorted(found, key=lambda one: (one.level, one.half)):
            self.unit(layer.name, stride=layer.half)
            if layer.half == 2:
                taps.append(self.last)
        return taps
