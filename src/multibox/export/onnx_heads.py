"""The heads as ONNX graphs.

The arithmetic is that of `multibox.spec.postprocess`, step by step: float32 scores and boxes, the same threshold, the
same ranks of equal scores (lower anchor, then lower class). ONNX defines suppression in float32, where `multibox`
compares overlaps in float64; only an overlap that lies on the threshold to seven digits can fall on another side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnxscript import GraphBuilder, ir

from multibox.export.heads import FRIGATE_LABEL_BASE, HEADS
from multibox.spec.card import ModelCard
from multibox.spec.postprocess import MAX_LOG_SIZE

__all__ = ["WRITERS", "attach_head"]

Value = Any  # an `ir.Value`, of which mypy cannot know what operators return


def attach_head(builder: GraphBuilder, card: ModelCard, head: str, *, batch: int | str) -> None:
    """Replace the outputs `offsets` and `logits` of a graph by those of a head; the graph is changed.

    Args:
        builder: of the graph.
        card: its `postprocess` is what the head does.
        head: a key of `multibox.export.heads.HEADS`.
        batch: a number, or a name where it is free.
    """
    offsets, logits = builder.graph.outputs
    builder.push_module("head")
    outputs = WRITERS[head](builder.op, offsets, logits, card)
    builder.pop_module()
    builder.graph.outputs[:] = outputs
    for value, (name, (dtype, shape)) in zip(outputs, HEADS[head].shapes(card, batch).items(), strict=True):
        value.name, value.shape = name, ir.Shape(shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))


def _raw(op: Any, offsets: Value, logits: Value, card: ModelCard) -> list[Value]:
    return [offsets, logits]


def _decoded(op: Any, offsets: Value, logits: Value, card: ModelCard) -> list[Value]:
    return [_boxes(op, offsets, card), _scores(op, logits, card)]


def _boxes(op: Any, offsets: Value, card: ModelCard) -> Value:
    """Unit xyxy [B, A, 4] as suppression reads them: cut off at the border if the model does that before it."""
    anchors = card.anchors_cxcywh()
    shift, log_size = op.Split(op.Mul(offsets, list(card.variances)), [2, 2], axis=-1, _outputs=2)
    sides = _constant(op, "sides", anchors[:, 2:])
    centre = op.Add(op.Mul(shift, sides), _constant(op, "centres", anchors[:, :2]))
    half = op.Mul(op.Mul(op.Exp(op.Min(log_size, MAX_LOG_SIZE)), sides), 0.5)
    corners = op.Concat(op.Sub(centre, half), op.Add(centre, half), axis=-1)
    return op.Clip(corners, 0.0, 1.0) if card.postprocess.clip == "before_nms" else corners


def _constant(op: Any, name: str, value: NDArray[np.float32]) -> Value:
    return op.builder.initializer(ir.tensor(np.ascontiguousarray(value)), name)


def _scores(op: Any, logits: Value, card: ModelCard) -> Value:
    """[B, A, C] probabilities, background removed."""
    if card.postprocess.activation == "sigmoid":
        return op.Sigmoid(logits)
    return op.Slice(op.Softmax(logits, axis=-1), [1], [card.outputs_per_box], [2])


class _Found(NamedTuple):
    """The best detections of every picture, best first, rows without one all zero."""

    unit_xyxy: Value  # [B, N, 4]
    scores: Value  # [B, N]
    labels: Value  # [B, N] float32
    valid: Value  # [B, N] float32, 1 or 0


def _suppressed(op: Any, offsets: Value, logits: Value, card: ModelCard) -> _Found:
    """Suppression for any batch: what it keeps is marked in a score matrix, whose best entries are then taken."""
    spec, classes = card.postprocess, len(card.class_map)
    boxes, scores = _boxes(op, offsets, card), _scores(op, logits, card)
    by_class = _limited(op, op.Transpose(scores, perm=[0, 2, 1]), card)  # [B, C, A]
    limits = ([spec.max_detections], [_overlap_limit(spec.nms_iou)], [spec.score_threshold])
    pairs = card.box_count * classes
    if spec.class_agnostic:  # every (anchor, class) pair is a box of its own, and all are of one class
        entries = op.Reshape(op.Transpose(by_class, perm=[0, 2, 1]), [0, 1, pairs])
        repeated = op.Reshape(op.Tile(op.Unsqueeze(boxes, [2]), [1, 1, classes, 1]), [0, pairs, 4])
        kept = op.NonMaxSuppression(repeated, entries, *limits)
        marked = _marked(op, op.Reshape(entries, [0, pairs]), op.Gather(kept, [0, 2], axis=1))
    else:
        kept = op.NonMaxSuppression(boxes, by_class, *limits)
        marked = op.Reshape(_marked(op, scores, op.Gather(kept, [0, 2, 1], axis=1)), [0, pairs])
    rows = min(spec.max_detections, pairs)
    best, where = op.TopK(marked, [rows], axis=-1, largest=1, sorted=1, _outputs=2)
    anchor, label = op.Div(where, classes), op.Mod(where, classes)
    chosen = op.GatherND(boxes, op.Unsqueeze(anchor, [2]), batch_dims=1)
    valid = op.Cast(op.Greater(best, 0.0), to=ir.DataType.FLOAT)
    unit_xyxy = op.Mul(op.Clip(chosen, 0.0, 1.0), op.Unsqueeze(valid, [2]))
    labels = op.Mul(op.Cast(label, to=ir.DataType.FLOAT), valid)
    missing = spec.max_detections - rows
    if not missing:
        return _Found(unit_xyxy, best, labels, valid)
    filled = (op.Pad(value, [0, 0, 0, missing]) for value in (best, labels, valid))
    return _Found(op.Pad(unit_xyxy, [0, 0, 0, 0, missing, 0]), *filled)


def _overlap_limit(nms_iou: float) -> float:
    """The next float32, so that an overlap of exactly `nms_iou` suppresses nothing in any runtime.

    ONNX Runtime drops a box above the limit, OpenVINO from the limit on; at 0 the latter would drop all but one.
    """
    above = max(np.nextafter(np.float32(nms_iou), np.float32(2)), np.finfo(np.float32).tiny)
    return float(min(above, np.float32(1)))


def _limited(op: Any, by_class: Value, card: ModelCard) -> Value:
    """Scores [B, C, A] with zeros but for the `top_k` best of every class; no zero is above any threshold."""
    top_k = card.postprocess.top_k
    if top_k is None or top_k >= card.box_count:
        return by_class
    best, where = op.TopK(by_class, [top_k], axis=-1, largest=1, sorted=1, _outputs=2)
    return op.ScatterElements(op.Mul(by_class, 0.0), where, best, axis=-1)


def _marked(op: Any, values: Value, places: Value) -> Value:
    """Zeros, but for the values at some places."""
    return op.ScatterND(op.Mul(values, 0.0), places, op.GatherND(values, places))


def _nms(op: Any, offsets: Value, logits: Value, card: ModelCard) -> list[Value]:
    found = _suppressed(op, offsets, logits, card)
    columns = [op.Unsqueeze(value, [2]) for value in (found.scores, found.labels)]
    count = op.Cast(op.ReduceSum(found.valid, [1], keepdims=0), to=ir.DataType.INT64)
    return [op.Concat(found.unit_xyxy, *columns, axis=-1), count]


def _frigate(op: Any, offsets: Value, logits: Value, card: ModelCard) -> list[Value]:
    """`image_id` is 0, and −1 in rows without a detection: OpenVINO's sign that no more follow."""
    found = _suppressed(op, offsets, logits, card)
    shifted = op.Mul(op.Add(found.labels, float(FRIGATE_LABEL_BASE)), found.valid)
    columns = [op.Unsqueeze(value, [2]) for value in (op.Sub(found.valid, 1.0), shifted, found.scores)]
    rows = op.Concat(*columns, found.unit_xyxy, axis=-1)
    return [op.Reshape(rows, [1, 1, card.postprocess.max_detections, 7])]


def _tflite4(op: Any, offsets: Value, logits: Value, card: ModelCard) -> list[Value]:
    """Corner order and types as the kernel `detection_postprocess` of TensorFlow Lite writes them."""
    found = _suppressed(op, offsets, logits, card)
    boxes = op.Gather(found.unit_xyxy, [1, 0, 3, 2], axis=2)
    return [boxes, found.labels, found.scores, op.ReduceSum(found.valid, [1], keepdims=0)]


WRITERS: dict[str, Callable[[Any, Value, Value, ModelCard], list[Value]]] = {
    "raw": _raw,
    "decoded": _decoded,
    "nms": _nms,
    "frigate": _frigate,
    "tflite4": _tflite4,
}
"""For each head, from `offsets` and `logits` to its outputs in their order."""
