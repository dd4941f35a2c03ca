"""Preprocessing inside an ONNX graph: 8-bit pictures in, resized and scaled as the model wants them.

Every step of `multibox.spec.preprocess` is done by gathers and float32 arithmetic in its own order, not by ONNX's
Resize, whose rounding differs between runtimes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import GraphBuilder, ir

from multibox.export.layout import INPUT, NETWORK_INPUT
from multibox.spec.preprocess import Preprocess

__all__ = ["attach_pictures"]

Value = Any  # an `ir.Value`, of which mypy cannot know what operators return


def attach_pictures(
    builder: GraphBuilder, preprocess: Preprocess, *, batch: int | str, picture_hw: tuple[int, int] | None
) -> None:
    """Let a graph take upright RGB pictures [batch, h, w, 3] uint8 in place of prepared input; the graph is changed.

    Args:
        builder: of a graph with one input, [batch, 3, H, W] float32.
        preprocess: what is done.
        batch: a number, or a name where it is free.
        picture_hw: (height, width) of the pictures where they all have one; any size when left out.
    """
    graph = builder.graph
    pictures = ir.val(INPUT, ir.DataType.UINT8, [batch, *(picture_hw or ("height", "width")), 3])
    builder.push_module("input")
    resize = picture_hw != preprocess.size_hw
    prepared = _prepared(builder.op, pictures, preprocess, resize=resize)
    builder.pop_module()
    prepared.name = NETWORK_INPUT
    ir.convenience.replace_all_uses_with(graph.inputs[0], prepared)
    graph.inputs[0] = pictures
    graph.sort()


def _prepared(op: Any, pictures: Value, preprocess: Preprocess, *, resize: bool) -> Value:
    """[B, 3, H, W] float32; without a resize, the pictures have the network's size."""
    scale, mean = np.array(preprocess.scale, np.float32), np.array(preprocess.mean, np.float32)
    if preprocess.colour_order == "BGR":  # the pictures are still RGB here
        scale, mean = scale[::-1], mean[::-1]
    planes = _resized(op, pictures, preprocess) if resize else op.Cast(pictures, to=ir.DataType.FLOAT)
    scaled = op.Mul(planes, scale.tolist())
    if mean.any():
        scaled = op.Add(scaled, (-mean * scale).tolist())
    if preprocess.colour_order == "BGR":
        scaled = op.Gather(scaled, [2, 1, 0], axis=3)
    return op.Transpose(scaled, perm=[0, 3, 1, 2])


def _resized(op: Any, pictures: Value, preprocess: Preprocess) -> Value:
    """[B, H, W, 3] float32 in 0 … 255: two taps along each axis, rows gathered before columns while still 8-bit."""
    shape = op.Shape(pictures)
    height, width = preprocess.size_hw
    top, bottom, downward = _taps(op, op.Gather(shape, [1], axis=0), height, preprocess.coordinates)
    left, right, rightward = _taps(op, op.Gather(shape, [2], axis=0), width, preprocess.coordinates)
    rows = op.Gather(pictures, op.Concat(top, bottom, axis=0), axis=1)  # [B, 2H, w, 3]
    columns = [op.Cast(op.Gather(rows, taps, axis=2), to=ir.DataType.FLOAT) for taps in (left, right)]
    weight = op.Unsqueeze(rightward, [1])  # [W, 1]
    along_x = op.Add(op.Mul(columns[0], op.Sub(1.0, weight)), op.Mul(columns[1], weight))
    low, high = op.Split(along_x, [height, height], axis=1, _outputs=2)
    return op.Add(low, op.Mul(op.Sub(high, low), op.Unsqueeze(downward, [1, 2])))  # weights [H, 1, 1]


def _taps(op: Any, size_in: Value, size_out: int, coordinates: str) -> tuple[Value, Value, Value]:
    """Low and high input position and the weight of the high one, [size_out] each; as in `multibox.spec.preprocess`."""
    step = op.Div(op.Cast(size_in, to=ir.DataType.FLOAT), [float(size_out)])
    position = np.arange(size_out, dtype=np.float32)
    if coordinates == "half_pixel":
        place = op.Max(op.Sub(op.Mul((position + np.float32(0.5)).tolist(), step), 0.5), 0.0)
    else:
        place = op.Mul(position.tolist(), step)
    last = op.Sub(size_in, [1])
    low = op.Min(op.Cast(op.Floor(place), to=ir.DataType.INT64), last)
    high = op.Min(op.Add(low, [1]), last)
    return low, high, op.Sub(place, op.Cast(low, to=ir.DataType.FLOAT))
