"""Import of an SSD of the TensorFlow Object Detection API from a `.tflite` file: floats, halves or integers.

The graph is walked from its outputs back to the image, whatever its tensors are called. Integers are read as the
numbers that they stand for, so the network computes in floats what the file computes in steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.errors import ContractError
from multibox.models.ssdlite import mobilenet_preprocess
from multibox.spec.card import METADATA_KEY
from multibox.spec.classes import COCO_CLASSES, ClassMap
from multibox.spec.postprocess import DEFAULT_VARIANCES, PostprocessSpec, Variances
from multibox.spec.preprocess import Preprocess
from multibox.weights.foreign.mobilenet import XYWH_OF_YXHW, rows_of_boxes, settle_anchors, shapes_of_counts, tf_rules
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.tflite_file import IDENTIFIER, Operator, TfliteFile, read_tflite
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["read", "recognise"]

POSTPROCESS = "TFLite_Detection_PostProcess"
MARKS = (POSTPROCESS.encode(), b"raw_outputs/")
PASSED = ("RESHAPE", "SQUEEZE", "CONCATENATION", "LOGISTIC", "SOFTMAX")
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
ACTIVATIONS = {0: "", 1: "relu", 3: "relu6"}
SAME = 0
NO_NAME = ("???", "")


def recognise(path: Path) -> str | None:
    """A file with the API's post-processing, or with its raw outputs."""
    if path.suffix.lower() != ".tflite" or not path.is_file():
        return None
    content = path.read_bytes()
    if (
        content[4:8] != IDENTIFIER or METADATA_KEY.encode() in content
    ):  # of this package, which keeps no weights to train
        return None
    mark = next((mark for mark in MARKS if mark in content), None)
    return None if mark is None else f"{mark.decode()} in a TensorFlow Lite file"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a file."""
    file = read_tflite(path)
    walk = _Walk(file)
    boxes_out, scores_out, anchors, options = _ends(file)
    boxes, scores = (list(walk.sources(place)) for place in (boxes_out, scores_out))
    if len(boxes) != len(scores):
        raise ContractError(f"{path.name} has {len(boxes)} heads of boxes and {len(scores)} of scores")
    heads = list(zip(boxes, scores, strict=True))
    columns = _columns(file, heads)
    softmax = walk.passes(scores_out, "SOFTMAX")
    classes = _classes(file, class_map, columns - 1)
    keep = [0, *classes.ids] if softmax else list(classes.ids)
    walk.describe(heads, columns, keep)
    counts = [file.shapes[boxes][-1] // 4 for boxes, _ in heads]
    preprocess, notes = _preprocess(file)
    network = walk.writer.network(
        anchors=shapes_of_counts(counts),
        preprocess=preprocess,
        postprocess=_postprocess(options, "softmax" if softmax else "sigmoid"),
        variances=_variances(options),
    )
    if anchors is None:
        settle_anchors(network, tf_rules().values())
        notes.append("the file has no default boxes: the API's own were taken")
    else:
        scale = file.quantised[anchors]
        y, x, h, w = file.constants[anchors].reshape(-1, 4).astype(np.float64).T
        stored = np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=1)
        within = 1e-6 if scale is None else float(scale.scale[0])
        settle_anchors(network, tf_rules().values(), stored, tolerance=within)
    rows = int(np.prod(file.shapes[boxes_out])) // 4
    if len(network.anchors_cxcywh()) != rows:
        raise ContractError(f"{path.name} gives {rows} boxes, not the {len(network.anchors_cxcywh())} of its maps")
    if any(file.quantised[place] for place in file.inputs):
        notes.append("its integers were read as numbers: scores differ from the file's own by its steps")
    return Imported(network, classes, path.stem, f"TensorFlow Lite file {path.name}", notes=tuple(notes))


def _ends(file: TfliteFile) -> tuple[int, int, int | None, dict[str, Any]]:
    """Places of boxes, scores and default boxes, and the options of the post-processing.

    Raises:
        ContractError: neither the API's post-processing nor its two raw outputs.
    """
    last = next((one for one in file.operators if one.kind == POSTPROCESS), None)
    if last is not None:
        from flatbuffers import flexbuffers

        boxes, scores, anchors = last.inputs[:3]
        options = {str(key): value for key, value in flexbuffers.Loads(last.custom).items()}
        return boxes, scores, anchors, options
    if len(file.outputs) == 2:
        for boxes, scores in (file.outputs, file.outputs[::-1]):
            if file.shapes[boxes][-1:] == (4,) and file.shapes[boxes][1] == file.shapes[scores][1]:
                return boxes, scores, None, {}
    shapes = [file.shapes[place] for place in file.outputs]
    raise ContractError(f"it has neither the operator {POSTPROCESS} nor outputs of boxes and scores, but {shapes}")


def _columns(file: TfliteFile, heads: Sequence[tuple[int, int]]) -> int:
    """Class scores of a box, background's among them, the same on every level."""
    each = {4 * file.shapes[scores][-1] / file.shapes[boxes][-1] for boxes, scores in heads}
    if len(each) != 1 or (count := min(each)) != int(count) or count < 2:
        raise ContractError(f"the heads disagree about the number of classes: {sorted(each)}")
    return int(count)


def _classes(file: TfliteFile, given: ClassMap | None, count: int) -> ClassMap:
    """Names by column: the user's, those that are packed into the file, COCO's for 90, or made-up ones.

    Raises:
        ContractError: another number of names than of classes.
    """
    if given is not None:
        if len(given) != count:
            raise ContractError(f"{len(given)} class names for weights with {count} classes (background not counted)")
        return ClassMap.from_ids(dict(enumerate(given.names, 1)))
    labels = file.labels[1:] if len(file.labels) == count + 1 else file.labels
    if len(labels) == count:
        return ClassMap.from_ids({i: name for i, name in enumerate(labels, 1) if name not in NO_NAME})
    if count == max(COCO_CLASSES.ids):
        return COCO_CLASSES
    return ClassMap.from_ids({i: f"class {i}" for i in range(1, count + 1)})


def _preprocess(file: TfliteFile) -> tuple[Preprocess, list[str]]:
    """How pictures are prepared: by the scale and zero point of an integer input, else as MobileNet's."""
    (place,) = file.inputs
    _, height, width, channels = file.shapes[place]
    if channels != 3:
        raise ContractError(f"its input is {file.shapes[place]}, not pictures of three colours")
    usual, rule = mobilenet_preprocess((height, width)), file.quantised[place]
    if rule is None or file.dtypes[place] not in ("u1", "i1"):
        return usual, ["the file does not say how pictures are prepared: as for MobileNets, to -1 … 1"]
    shift = 128.0 if file.dtypes[place] == "i1" else 0.0
    mean, scale = (float(rule.zero_point[0]) + shift,) * 3, (float(rule.scale[0]),) * 3
    return Preprocess((height, width), coordinates=usual.coordinates, mean=mean, scale=scale, rounding=True), []


def _postprocess(options: dict[str, Any], activation: Any) -> PostprocessSpec:
    """The thresholds of the operator; without it, those of the API."""
    return PostprocessSpec(
        activation,
        score_threshold=max(0.0, min(float(options.get("nms_score_threshold", 0.01)), 0.99)),
        nms_iou=float(options.get("nms_iou_threshold", 0.6)),
        top_k=None,
        max_detections=int(options.get("max_detections", 100)),
        class_agnostic=bool(options) and not options.get("use_regular_nms", False),
        clip="after_nms",
    )


def _variances(options: dict[str, Any]) -> Variances:
    x, y, w, h = (
        float(options.get(f"{axis}_scale", 1 / usual)) for axis, usual in zip("xywh", DEFAULT_VARIANCES, strict=True)
    )
    return 1 / x, 1 / y, 1 / w, 1 / h


class _Walk:
    """Follows a graph, and describes it."""

    def __init__(self, file: TfliteFile) -> None:
        self._file = file
        self._makers = {place: one for one in file.operators for place in one.outputs}
        self._tensors: dict[str, torch.Tensor] = {}
        self.writer = GraphWriter(self._tensors, "the SSD that its graph describes")

    def sources(self, place: int) -> Iterator[int]:
        """The tensors that are put one after another into one, in their order."""
        maker = self._makers.get(place)
        if maker is None or maker.kind not in PASSED:
            yield place
            return
        for source in maker.inputs if maker.kind == "CONCATENATION" else maker.inputs[:1]:
            yield from self.sources(source)

    def passes(self, place: int, kind: str) -> bool:
        """Whether an operator of this kind lies between the heads and a tensor."""
        maker = self._makers.get(place)
        if maker is None or maker.kind not in PASSED:
            return False
        return maker.kind == kind or self.passes(maker.inputs[0], kind)

    def describe(self, heads: Sequence[tuple[int, int]], columns: int, keep: Sequence[int]) -> None:
        """Describes the features and the heads.

        Args:
            heads: for each level the tensors of boxes and of scores.
            columns: class scores of a box in the file.
            keep: those that are kept.

        Raises:
            ContractError: operators that are not known here, or heads that read different maps.
        """
        branches: list[tuple[int, list[int], list[int]]] = []
        for boxes, scores in heads:
            chains = self._chain(boxes), self._chain(scores)
            tap = next((place for place in chains[0] if place in chains[1]), None)
            if tap is None or not chains[0].index(tap) or not chains[1].index(tap):
                raise ContractError("its heads are not convolutions of the same maps")
            boxes_chain, scores_chain = (chain[: chain.index(tap)][::-1] for chain in chains)
            branches.append((tap, boxes_chain, scores_chain))
        outputs = self._features([tap for tap, _, _ in branches])
        for tap, boxes_chain, scores_chain in branches:
            offsets = self._branch(boxes_chain, 4, XYWH_OF_YXHW)
            self.writer.head(outputs[tap], offsets=offsets, logits=self._branch(scores_chain, columns, keep))

    def _chain(self, place: int) -> list[int]:
        """A tensor, the one that it is a convolution of, and so on."""
        chain = [place]
        while (maker := self._makers.get(chain[-1])) is not None and maker.kind in CONVOLUTIONS:
            chain.append(maker.inputs[0])
        return chain

    def _features(self, taps: Sequence[int]) -> dict[int, str]:
        """Describes all that the taps need; the names of outputs by tensor."""
        needed, waiting = set(), [*taps]
        while waiting:
            place = waiting.pop()
            if place not in needed and place in self._makers:
                needed.add(place)
                waiting += self._makers[place].inputs
        names = dict.fromkeys(self._file.inputs, self.writer.last)
        for number, one in enumerate(self._file.operators):
            if not needed & set(one.outputs):
                continue
            taken = [names[place] for place in one.inputs if place in names]
            self.writer.last = taken[0]
            if one.kind in CONVOLUTIONS:
                name = f"{one.kind.lower()}_{number}"
                self._load(name, one)
                self.writer.conv(name, **self._window(one))
            elif one.kind == "ADD" and len(taken) == 2:
                self.writer.plain("add", f"add_{number}", *taken)
            elif one.kind in ("RELU", "RELU6"):
                self.writer.plain(one.kind.lower(), f"{one.kind.lower()}_{number}")
            else:
                raise ContractError(f"operator {number} is {one.kind}, which is not known here")
            act = self._activation(one)
            if act:
                self.writer.plain(act, f"{act}_{number}")
            names[one.outputs[0]] = self.writer.last
        return names

    def _branch(self, chain: Sequence[int], width: int, keep: Sequence[int]) -> list[Any]:
        steps: list[Any] = []
        for place in chain:
            one, name = self._makers[place], f"{self._makers[place].kind.lower()}_of_{place}"
            last = place == chain[-1]
            self._load(name, one, width if last else 0, keep)
            window = self._window(one)
            if window["stride"] != 1 or (not window["same"] and self._kernel(one) != 1):
                raise ContractError(f"{name}: a head's convolution of stride {window['stride']} is not known here")
            steps.append((name, self._kernel(one) // 2))
            if act := self._activation(one):
                steps.append(act)
        return steps

    def _kernel(self, one: Operator) -> int:
        return int(self._file.shapes[one.inputs[1]][1])

    def _window(self, one: Operator) -> dict[str, Any]:
        o = one.options
        sides = {(o.strideH, o.dilationHFactor), (o.strideW, o.dilationWFactor)}
        stride, dilation = next(iter(sides))
        if len(sides) > 1 or (dilation > 1 and o.padding == SAME):
            raise ContractError(f"a convolution of strides and dilations {sorted(sides)} is not known here")
        return {"stride": int(stride), "same": o.padding == SAME, **({} if dilation == 1 else {"dilation": dilation})}

    def _activation(self, one: Operator) -> str:
        fused = getattr(one.options, "fusedActivationFunction", 0)
        if fused not in ACTIVATIONS:
            raise ContractError(f"{one.kind}: fused activation {fused} is not known here")
        return ACTIVATIONS[fused]

    def _load(self, name: str, one: Operator, width: int = 0, keep: Sequence[int] = ()) -> None:
        """Takes a convolution's weights over; of a head's last one the wanted outputs of each box."""
        places = [place for place in one.inputs[1:3] if place in self._file.constants]
        if len(places) != 2:
            raise ContractError(f"{name}: its kernel or bias is no constant of the file")
        kernel, bias = (self._file.constants[place] for place in places)
        kernel = kernel.transpose((3, 0, 1, 2) if one.kind == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2))
        for kind, array in (("weight", kernel), ("bias", bias)):
            wanted: NDArray[Any] = rows_of_boxes(array, width, keep, name) if width else array
            self._tensors[f"{name}.{kind}"] = torch.from_numpy(np.array(wanted, np.float32, order="C"))
