"""The heads as TensorFlow Lite graphs; the arithmetic of `multibox.export.onnx_heads`."""

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
        offsets = graph.op("GATHER", offsets, graph.ints(*columns), shape=graph.shape(offsets), axis=2)
        anchors, variances = anchors[:, columns], variances[columns]
    spread = graph.op("MUL", offsets, graph.constant(variances))
    shift, log_size = (graph.part(spread, (0, 0, start), pairs) for start in (0, 2))
    sides = graph.constant(anchors[None, :, 2:])
    centre = graph.op("ADD", graph.op("MUL", shift, sides), graph.constant(anchors[None, :, :2]))
    limited = graph.op("MINIMUM", log_size, graph.constant(np.float32(MAX_LOG_SIZE)))
    size = graph.op("MUL", graph.op("EXP", limited), sides)
    half = graph.op("MUL", size, graph.constant(np.float32(0.5)))
    corners = [graph.op(kind, centre, half) for kind in ("SUB", "ADD")]
    return [_clipped(graph, corner) for corner in corners] if card.postprocess.clip == "before_nms" else corners


def _clipped(graph: LitertGraph, value: int, name: str | None = None) -> int:
    above = graph.op("MAXIMUM", value, graph.constant(np.float32(0)))
    return graph.op("MINIMUM", above, graph.constant(np.float32(1)), name=name)


def _scores(graph: LitertGraph, card: ModelCard, batch: int, name: str | None = None) -> int:
    """[B, A, C] probabilities, background removed."""
    logits = graph.find("logits")
    if card.postprocess.activation == "sigmoid":
        return graph.op("LOGISTIC", logits, name=name)
    every = graph.op("SOFTMAX", logits, beta=1.0)
    return graph.part(every, (0, 0, 1), (batch, card.box_count, len(card.class_map)), name)


def _tflite4(graph: LitertGraph, card: ModelCard, batch: int) -> None:
    """The custom operator TFLite_Detection_PostProcess, which every TensorFlow Lite runtime has.

    It decodes by itself but does not cut boxes off at the border, so it is given boxes that are decoded already, as
    offsets to a default box that is the picture; and it keeps scores from the threshold on, so that is the next
    float32. Columns 2 … 65 hold no class, so it gives the same on any number of threads up to 65.
    """
    spec, classes = card.postprocess, len(card.class_map)
    if spec.class_agnostic:
        raise OptionError("head=tflite4 suppresses within classes only, but the model across them; use head=decoded")
    low, high = _corners(graph, card, batch, order=(1, 0))
    centre = graph.op("MUL", graph.op("ADD", low, high), graph.constant(np.float32(0.5)))
    sides = graph.op("MAXIMUM", graph.op("SUB", high, low), graph.constant(np.float32(LEAST_SIDE)))
    boxes = graph.op("CONCATENATION", centre, graph.op("LOG", sides), shape=(batch, card.box_count, 4), axis=2)
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (card.box_count, 1))
    scores = _limited(graph, _scores(graph, card, batch), card, batch)
    spare = SPARE_CLASSES if classes > 2 else 0
    if spare:
        scores = _spread(graph, scores, spare)
    rows = spec.max_detections
    options = {
        "max_detections": rows,
        "max_classes_per_detection": 1,
        "detections_per_class": rows,
        "use_regular_nms": True,
        "nms_score_threshold": float(np.nextafter(np.float32(spec.score_threshold), np.float32(2))),
        "nms_iou_threshold": float(max(np.float32(spec.nms_iou), np.finfo(np.float32).tiny)),
        "num_classes": classes + spare,
        **dict.fromkeys(("y_scale", "x_scale", "h_scale", "w_scale"), 1.0),
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
        found[0] = _clipped(graph, found[0], "detection_boxes")
    if spare:
        labels = graph.constant(np.array([0, 1, *[0] * spare, *range(2, classes)], np.float32))
        columns = graph.op("CAST", found[1], dtype="int32")
        found[1] = graph.op("GATHER", labels, columns, shape=(batch, rows), name="detection_classes", axis=0)
    graph.set_outputs(found)


def _spread(graph: LitertGraph, scores: int, spare: int) -> int:
    """Scores [B, A, C] -> [B, A, C + spare], with columns of -1 behind the first two."""
    batch, boxes, classes = graph.shape(scores)
    first, others = (
        graph.part(scores, (0, 0, start), (batch, boxes, count)) for start, count in ((0, 2), (2, classes - 2))
    )
    places = graph.constant(np.array([[0, 0], [0, 0], [0, spare]], np.int32))
    padded = graph.op("PADV2", first, places, graph.constant(np.float32(-1)), shape=(batch, boxes, 2 + spare))
    return graph.op("CONCATENATION", padded, others, shape=(batch, boxes, classes + spare), axis=2)


def _limited(graph: LitertGraph, scores: int, card: ModelCard, batch: int) -> int:
    """Scores [B, A, C] with zeros but for the `top_k` best of every class; no zero is above any threshold."""
    top_k, classes = card.postprocess.top_k, len(card.class_map)
    if top_k is None or top_k >= card.box_count:
        return scores
    by_class = graph.op("TRANSPOSE", scores, graph.ints(0, 2, 1), shape=(batch, classes, card.box_count))
    best_shape = (batch, classes, top_k)
    best, _ = graph.ops(
        "TOPK_V2",
        by_class,
        graph.constant(np.int32(top_k)),
        outputs=[(None, "float32", best_shape), (None, "int32", best_shape)],
    )
    last = graph.part(best, (0, 0, top_k - 1), (batch, classes, 1))
    enough = graph.op("GREATER_EQUAL", by_class, last, dtype="bool")
    kept = graph.op("MUL", by_class, graph.op("CAST", enough))
    return graph.op("TRANSPOSE", kept, graph.ints(0, 2, 1), shape=(batch, card.box_count, classes))


def _flexible(options: Mapping[str, bool | int | float]) -> bytes:
    """Options of a custom operator in FlatBuffers' schemaless form."""
    from flatbuffers import flexbuffers

    return bytes(flexbuffers.Dumps(dict(options)))


WRITERS: dict[str, Callable[[LitertGraph, ModelCard, int], None]] = {
    "raw": _raw,
    "decoded": _decoded,
    "tflite4": _tflite4,
}
"""For each head, what adds it to a graph whose outputs are `offsets` and `logits`."""
