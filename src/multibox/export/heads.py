"""What an exported graph returns: the network's raw numbers, or what post-processing makes of them, in the graph.

The arithmetic is that of `multibox.spec.postprocess`, step by step: float32 scores and boxes, the same threshold, the
same ranks of equal scores (lower anchor, then lower class). ONNX defines suppression in float32, where `multibox`
compares overlaps in float64; only an overlap that lies on the threshold to seven digits can fall on another side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibox.export.graph import GraphWriter
from multibox.spec.card import ModelCard
from multibox.spec.postprocess import MAX_LOG_SIZE

__all__ = ["HEADS", "RAW_OUTPUTS", "Head", "attach_head"]

RAW_OUTPUTS = ("offsets", "logits")
FRIGATE_LABEL_BASE = 1
"""OpenVINO's DetectionOutput counts background as label 0, so the first class is 1; the label file says so too."""


@dataclass(frozen=True)
class Output:
    """Name, element type and shape of an output; a string in the shape is a size that is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Head:
    """A form of output.

    Attributes:
        name: as the user says it.
        box_format: for the metadata, how the boxes are to be read.
        outputs: for a card and the batch (a number, or "batch" when free), what the graph returns.
        write: adds the nodes; they end in the outputs' names.
        single: whether the layout has room for one picture only.
    """

    name: str
    box_format: str
    outputs: Callable[[ModelCard, int | str], list[Output]]
    write: Callable[[GraphWriter, ModelCard], None]
    single: bool = False


def attach_head(model: Any, card: ModelCard, head: Head, *, batch: int | str) -> None:
    """Replace the outputs `offsets` and `logits` of an ONNX model by those of a head; the model is changed."""
    from onnx import helper

    if head.name == "raw":
        return
    writer = GraphWriter(model, "head")
    head.write(writer, card)
    writer.append()
    del model.graph.output[:]
    for output in head.outputs(card, batch):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(output.dtype))
        model.graph.output.append(helper.make_tensor_value_info(output.name, kind, list(output.shape)))


def _raw_outputs(card: ModelCard, batch: int | str) -> list[Output]:
    return [
        Output("offsets", "float32", (batch, card.box_count, 4)),
        Output("logits", "float32", (batch, card.box_count, card.outputs_per_box)),
    ]


def _decoded_outputs(card: ModelCard, batch: int | str) -> list[Output]:
    return [
        Output("boxes_unit_xyxy", "float32", (batch, card.box_count, 4)),
        Output("scores", "float32", (batch, card.box_count, len(card.class_map))),
    ]


def _nms_outputs(card: ModelCard, batch: int | str) -> list[Output]:
    rows = card.postprocess.max_detections
    return [Output("detections", "float32", (batch, rows, 6)), Output("count", "int64", (batch,))]


def _frigate_outputs(card: ModelCard, batch: int | str) -> list[Output]:
    return [Output("detection_out", "float32", (1, 1, card.postprocess.max_detections, 7))]


def _tflite_outputs(card: ModelCard, batch: int | str) -> list[Output]:
    rows = card.postprocess.max_detections
    return [
        Output("detection_boxes", "float32", (batch, rows, 4)),
        Output("detection_classes", "float32", (batch, rows)),
        Output("detection_scores", "float32", (batch, rows)),
        Output("num_detections", "float32", (batch,)),
    ]


def _boxes(w: GraphWriter, card: ModelCard, output: str | None = None) -> str:
    """Unit xyxy [B, A, 4] as suppression reads them: cut off at the border if the model does that before it."""
    anchors = card.anchors_cxcywh()
    spread = w.op("Mul", "offsets", w.floats(*card.variances))
    shift, log_size = w.ops("Split", spread, w.ints(2, 2), outputs=2, axis=-1)
    sides = w.constant(anchors[:, 2:])
    centre = w.op("Add", w.op("Mul", shift, sides), w.constant(anchors[:, :2]))
    limited = w.op("Min", log_size, w.constant(np.float32(MAX_LOG_SIZE)))
    half = w.op("Mul", w.op("Mul", w.op("Exp", limited), sides), w.constant(np.float32(0.5)))
    corners = [w.op("Sub", centre, half), w.op("Add", centre, half)]
    if card.postprocess.clip == "before_nms":
        return _clipped(w, w.op("Concat", *corners, axis=-1), output)
    return w.op("Concat", *corners, axis=-1, output=output)


def _clipped(w: GraphWriter, value: str, output: str | None = None) -> str:
    return w.op("Clip", value, w.constant(np.float32(0)), w.constant(np.float32(1)), output=output)


def _scores(w: GraphWriter, card: ModelCard, output: str | None = None) -> str:
    """[B, A, C] probabilities, background removed."""
    if card.postprocess.activation == "sigmoid":
        return w.op("Sigmoid", "logits", output=output)
    every = w.op("Softmax", "logits", axis=-1)
    return w.op("Slice", every, w.ints(1), w.ints(card.outputs_per_box), w.ints(2), output=output)


def _write_decoded(w: GraphWriter, card: ModelCard) -> None:
    _boxes(w, card, "boxes_unit_xyxy")
    _scores(w, card, "scores")


@dataclass(frozen=True)
class _Found:
    """The best detections of every picture, best first, rows without one all zero: names in the graph."""

    unit_xyxy: str  # [B, N, 4]
    scores: str  # [B, N]
    labels: str  # [B, N] float32
    valid: str  # [B, N] float32, 1 or 0


def _suppressed(w: GraphWriter, card: ModelCard) -> _Found:
    """Suppression for any batch: what it keeps is marked in a score matrix, whose best entries are then taken."""
    spec, classes = card.postprocess, len(card.class_map)
    boxes, scores = _boxes(w, card), _scores(w, card)
    by_class = _limited(w, w.op("Transpose", scores, perm=[0, 2, 1]), card)  # [B, C, A]
    limits = (w.ints(spec.max_detections), w.floats(_overlap_limit(spec.nms_iou)), w.floats(spec.score_threshold))
    pairs = card.box_count * classes
    if spec.class_agnostic:  # every (anchor, class) pair is a box of its own, and all are of one class
        entries = w.op("Reshape", w.op("Transpose", by_class, perm=[0, 2, 1]), w.ints(0, 1, pairs))
        repeated = w.op("Tile", w.op("Unsqueeze", boxes, w.ints(2)), w.ints(1, 1, classes, 1))
        kept = w.op("NonMaxSuppression", w.op("Reshape", repeated, w.ints(0, pairs, 4)), entries, *limits)
        flat = w.op("Reshape", entries, w.ints(0, pairs))
        places = w.op("Gather", kept, w.ints(0, 2), axis=1)
        marked = _marked(w, flat, places)
    else:
        kept = w.op("NonMaxSuppression", boxes, by_class, *limits)
        places = w.op("Gather", kept, w.ints(0, 2, 1), axis=1)
        marked = w.op("Reshape", _marked(w, scores, places), w.ints(0, pairs))
    rows = min(spec.max_detections, pairs)
    best, where = w.ops("TopK", marked, w.ints(rows), outputs=2, axis=-1, largest=1, sorted=1)
    per_row = w.constant(np.int64(classes))
    anchor, label = w.op("Div", where, per_row), w.op("Mod", where, per_row)
    chosen = w.op("GatherND", boxes, w.op("Unsqueeze", anchor, w.ints(2)), batch_dims=1)
    valid = w.cast(w.op("Greater", best, w.constant(np.float32(0))), "float32")
    present = w.op("Unsqueeze", valid, w.ints(2))
    found = [
        w.op("Mul", _clipped(w, chosen), present),
        best,
        w.op("Mul", w.cast(label, "float32"), valid),
        valid,
    ]
    if rows < spec.max_detections:
        more = spec.max_detections - rows
        found = [w.op("Pad", found[0], w.ints(0, 0, 0, 0, more, 0))] + [
            w.op("Pad", value, w.ints(0, 0, 0, more)) for value in found[1:]
        ]
    return _Found(*found)


def _overlap_limit(nms_iou: float) -> float:
    """The next float32, so that an overlap of exactly `nms_iou` suppresses nothing in any runtime.

    ONNX Runtime drops a box above the limit, OpenVINO from the limit on; at 0 the latter would drop all but one.
    """
    above = max(np.nextafter(np.float32(nms_iou), np.float32(2)), np.finfo(np.float32).tiny)
    return float(min(above, np.float32(1)))


def _limited(w: GraphWriter, by_class: str, card: ModelCard) -> str:
    """Scores [B, C, A] with zeros but for the `top_k` best of every class; no zero is above any threshold."""
    top_k = card.postprocess.top_k
    if top_k is None or top_k >= card.box_count:
        return by_class
    best, where = w.ops("TopK", by_class, w.ints(top_k), outputs=2, axis=-1, largest=1, sorted=1)
    return w.op("ScatterElements", _zeros(w, by_class), where, best, axis=-1)


def _zeros(w: GraphWriter, like: str) -> str:
    return w.op("Mul", like, w.constant(np.float32(0)))


def _marked(w: GraphWriter, values: str, places: str) -> str:
    """Zeros, but for the values at some places."""
    return w.op("ScatterND", _zeros(w, values), places, w.op("GatherND", values, places))


def _write_nms(w: GraphWriter, card: ModelCard) -> None:
    found = _suppressed(w, card)
    columns = [w.op("Unsqueeze", value, w.ints(2)) for value in (found.scores, found.labels)]
    w.op("Concat", found.unit_xyxy, *columns, axis=-1, output="detections")
    w.cast(w.op("ReduceSum", found.valid, w.ints(1), keepdims=0), "int64")
    w.nodes[-1].output[0] = "count"


def _write_frigate(w: GraphWriter, card: ModelCard) -> None:
    """`image_id` is 0, and −1 in rows without a detection: OpenVINO's sign that no more follow."""
    found = _suppressed(w, card)
    image = w.op("Sub", found.valid, w.constant(np.float32(1)))
    shifted = w.op("Add", found.labels, w.constant(np.float32(FRIGATE_LABEL_BASE)))
    columns = [
        w.op("Unsqueeze", value, w.ints(2)) for value in (image, w.op("Mul", shifted, found.valid), found.scores)
    ]
    rows = w.op("Concat", *columns, found.unit_xyxy, axis=-1)
    w.op("Reshape", rows, w.ints(1, 1, card.postprocess.max_detections, 7), output="detection_out")


def _write_tflite(w: GraphWriter, card: ModelCard) -> None:
    """Corner order and types as the kernel `detection_postprocess` of TensorFlow Lite writes them."""
    found = _suppressed(w, card)
    w.op("Gather", found.unit_xyxy, w.ints(1, 0, 3, 2), axis=2, output="detection_boxes")
    w.op("Identity", found.labels, output="detection_classes")
    w.op("Identity", found.scores, output="detection_scores")
    w.op("ReduceSum", found.valid, w.ints(1), keepdims=0, output="num_detections")


def _write_raw(w: GraphWriter, card: ModelCard) -> None:
    pass


UNIT = "fractions of the picture's width and height (0 to 1), whatever its size"
HEADS = {
    head.name: head
    for head in (
        Head("raw", "offsets to unit cxcywh default boxes", _raw_outputs, _write_raw),
        Head("decoded", f"unit xyxy: {UNIT}", _decoded_outputs, _write_decoded),
        Head("nms", f"rows of unit xyxy ({UNIT}), score, class from 0; best first", _nms_outputs, _write_nms),
        Head(
            "frigate",
            f"rows of image, label from {FRIGATE_LABEL_BASE} (0 is background), score, unit xyxy ({UNIT}); best first",
            _frigate_outputs,
            _write_frigate,
            single=True,
        ),
        Head("tflite4", f"unit yxyx (top, left, bottom, right): {UNIT}; class from 0", _tflite_outputs, _write_tflite),
    )
}
