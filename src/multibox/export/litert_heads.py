"""What an exported `.tflite` file returns; the arithmetic of `multibox.export.heads` in TensorFlow Lite's operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from multibox.errors import OptionError
from multibox.export.litert_graph import LitertGraph
from multibox.spec.card import ModelCard
from multibox.spec.postprocess import MAX_LOG_SIZE

__all__ = ["WRITERS"]

LEAST_SIDE = 1e-6
"""Of a box, as a fraction of the picture: the operator that suppresses refuses a whole picture for one empty box."""

SPARE_CLASSES = 64
"""Columns without scores: on N threads that operator never looks at column N (tensorflow/tensorflow#56058)."""


def _raw(graph: LitertGraph, card: ModelCard, batch: int) -> None:
    pass


def _decoded(graph: LitertGraph, card: ModelCard, batch: int) -> None:
    corners = _corners(graph, card, batch, order=(0, 1))
    boxes = graph.op("CONCATENATION", *corners, shape=(batch, card.box_count, 4), axis=2, name="boxes_unit_xyxy")
    graph.set_outputs([boxes, _scores(graph, card, batch, "scores")])


def _corners(graph: LitertGraph, card: ModelCard, batch: int, *, order: tuple[int, int]) -> list[int]:
    """Low and high corner [B, A, 2] of every box as suppression reads them; `order` is of the axes x and y."""
    pairs = (batch, card.box_count, 2)
    anchors, variances = card.anchors_cxcywh(), np.array(card.variances, np.float32)
    offsets = graph.find("offsets")
    if order != (0, 1):
        columns = [*order, *(2 + axis for axis in order)]
        offsets = graph.op("GATHER", offsets, graph.ints(*columns), shape=(batch, card.box_count, 4), axis=2)
        anchors, variances = anchors[:, columns], variances[columns]
    spread = graph.op("MUL", offsets, graph.constant(variances), shape=(batch, card.box_count, 4))
    shift, log_size = (
        graph.op("SLICE", spread, graph.ints(0, 0, start), graph.ints(*pairs), shape=pairs) for start in (0, 2)
    )
    sides = graph.constant(anchors[None, :, 2:])
    shifted = graph.op("MUL", shift, sides, shape=pairs)
    centre = graph.op("ADD", shifted, graph.constant(anchors[None, :, :2]), shape=pairs)
    limited = graph.op("MINIMUM", log_size, graph.constant(np.float32(MAX_LOG_SIZE)), shape=pairs)
    size = graph.op("MUL", graph.op("EXP", limited, shape=pairs), sides, shape=pairs)
    half = graph.op("MUL", size, graph.constant(np.float32(0.5)), shape=pairs)
    corners = [graph.op(kind, centre, half, shape=pairs) for kind in ("SUB", "ADD")]
    if card.postprocess.clip == "before_nms":
        return [_clipped(graph, corner, pairs) for corner in corners]
    return corners


def _clipped(graph: LitertGraph, value: int, shape: tuple[int, ...], name: str | None = None) -> int:
    above = graph.op("MAXIMUM", value, graph.constant(np.float32(0)), shape=shape)
    return graph.op("MINIMUM", above, graph.constant(np.float32(1)), shape=shape, name=name)


def _scores(graph: LitertGraph, card: ModelCard, batch: int, name: str | None = None) -> int:
    """[B, A, C] probabilities, background removed."""
    logits, shape = graph.find("logits"), (batch, card.box_count, len(card.class_map))
    if card.postprocess.activation == "sigmoid":
        return graph.op("LOGISTIC", logits, shape=shape, name=name)
    every = graph.op("SOFTMAX", logits, shape=graph.shape(logits), beta=1.0)
    return graph.op("SLICE", every, graph.ints(0, 0, 1), graph.ints(*shape), shape=shape, name=name)


def _tflite4(graph: LitertGraph, card: ModelCard, batch: int) -> None:
    """The custom operator TFLite_Detection_PostProcess, which every TensorFlow Lite runtime has.

    It decodes by itself but does not cut boxes off at the border, so it is given boxes that are decoded already, as
    offsets to a default box that is the picture; and it keeps scores from the threshold on, so that is the next
    float32. Columns 2 … 65 hold no class, so it gives the same on any number of threads up to 65.
    """
    spec, classes = card.postprocess, len(card.class_map)
    if spec.class_agnostic:
        raise OptionError("head=tflite4 suppresses within classes only, but the model across them; use head=decoded")
    pairs = (batch, card.box_count, 2)
    low, high = _corners(graph, card, batch, order=(1, 0))
    halves = graph.op("ADD", low, high, shape=pairs)
    centre = graph.op("MUL", halves, graph.constant(np.float32(0.5)), shape=pairs)
    sides = graph.op("SUB", high, low, shape=pairs)
    sides = graph.op("MAXIMUM", sides, graph.constant(np.float32(LEAST_SIDE)), shape=pairs)
    logarithms = graph.op("LOG", sides, shape=pairs)
    boxes = graph.op("CONCATENATION", centre, logarithms, shape=(batch, card.box_count, 4), axis=2)
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (card.box_count, 1))
    scores = _limited(graph, _scores(graph, card, batch), card, batch)
    spare = SPARE_CLASSES if classes > 2 else 0
    if spare:
        scores = _spread(graph, scores, (batch, card.box_count, classes), spare)
    rows = spec.max_detections
    options = {
        "max_detections": rows,
        "max_classes_per_detection": 1,
        "detections_per_class": rows,
        "use_regular_nms": True,
        "nms_score_threshold": float(np.nextafter(np.float32(spec.score_threshold), np.float32(2))),
        "nms_iou_threshold": float(max(np.float32(spec.nms_iou), np.finfo(np.float32).tiny)),
        "num_classes": classes + spare,
        "y_scale": 1.0,
        "x_scale": 1.0,
        "h_scale": 1.0,
        "w_scale": 1.0,
    }
    late = spec.clip == "after_nms"
    found = graph.custom(
        "TFLite_Detection_PostProcess",
        _flexible(options),
        boxes,
        scores,
        graph.constant(whole),
        outputs=[
            (None if late else "detection_boxes", "float32", (batch, rows, 4)),
            (None if spare else "detection_classes", "float32", (batch, rows)),
            ("detection_scores", "float32", (batch, rows)),
            ("num_detections", "float32", (batch,)),
        ],
    )
    if late:
        found[0] = _clipped(graph, found[0], (batch, rows, 4), "detection_boxes")
    if spare:
        labels = graph.constant(np.array([0, 1, *[0] * spare, *range(2, classes)], np.float32))
        columns = graph.op("CAST", found[1], shape=(batch, rows), dtype="int32")
        found[1] = graph.op("GATHER", labels, columns, shape=(batch, rows), name="detection_classes", axis=0)
    graph.set_outputs(found)


def _spread(graph: LitertGraph, scores: int, shape: tuple[int, int, int], spare: int) -> int:
    """Scores [B, A, C] -> [B, A, C + spare], with columns of -1 behind the first two."""
    batch, boxes, classes = shape
    parts = [
        graph.op("SLICE", scores, graph.ints(0, 0, start), graph.ints(batch, boxes, count), shape=(batch, boxes, count))
        for start, count in ((0, 2), (2, classes - 2))
    ]
    places = graph.constant(np.array([[0, 0], [0, 0], [0, spare]], np.int32))
    padding = graph.constant(np.float32(-1))
    first = graph.op("PADV2", parts[0], places, padding, shape=(batch, boxes, 2 + spare))
    return graph.op("CONCATENATION", first, parts[1], shape=(batch, boxes, classes + spare), axis=2)


def _limited(graph: LitertGraph, scores: int, card: ModelCard, batch: int) -> int:
    """Scores [B, A, C] with zeros but for the `top_k` best of every class; no zero is above any threshold."""
    top_k, classes = card.postprocess.top_k, len(card.class_map)
    if top_k is None or top_k >= card.box_count:
        return scores
    shape = (batch, classes, card.box_count)
    by_class = graph.op("TRANSPOSE", scores, graph.ints(0, 2, 1), shape=shape)
    best, _ = graph.ops(
        "TOPK_V2",
        by_class,
        graph.constant(np.int32(top_k)),
        outputs=[(None, "float32", (batch, classes, top_k)), (None, "int32", (batch, classes, top_k))],
    )
    least = (batch, classes, 1)
    last = graph.op("SLICE", best, graph.ints(0, 0, top_k - 1), graph.ints(*least), shape=least)
    enough = graph.op("GREATER_EQUAL", by_class, last, shape=shape, dtype="bool")
    kept = graph.op("MUL", by_class, graph.op("CAST", enough, shape=shape), shape=shape)
    return graph.op("TRANSPOSE", kept, graph.ints(0, 2, 1), shape=(batch, card.box_count, classes))


def _flexible(options: Mapping[str, bool | int | float]) -> bytes:
    """Options of a custom operator in FlatBuffers' schemaless form."""
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in options.items():
            if isinstance(value, bool):
                builder.Bool(key, value)
            elif isinstance(value, int):
                builder.Int(key, value)
            else:
                builder.Float(key, value)
    return bytes(builder.Finish())


WRITERS: dict[str, Callable[[LitertGraph, ModelCard, int], None]] = {
    "raw": _raw,
    "decoded": _decoded,
    "tflite4": _tflite4,
}
