"""Preprocessing inside an exported graph: 8-bit pictures of any size in, resized and scaled as the model wants them."""

from __future__ import annotations

from typing import Any

import numpy as np

from multibox.export.graph import GraphWriter
from multibox.spec.preprocess import Preprocess

__all__ = ["NETWORK_INPUT", "attach_intake"]

NETWORK_INPUT = "network_input"  # what the input of the network is called once pictures come before it


def attach_intake(model: Any, preprocess: Preprocess, *, batch: int | str, picture_hw: tuple[int, int] | None) -> None:
    """Put `multibox.spec.preprocess` before the network; the model is changed.

    The input `images` becomes [batch, height, width, 3] uint8, upright RGB. Every step of `Preprocess` is done by
    gathers and float32 arithmetic in its own order, not by ONNX's Resize, whose rounding differs between runtimes.

    Args:
        model: an ONNX model whose input `images` is [batch, 3, H, W] float32.
        preprocess: what is done.
        batch: a number, or "batch" when free.
        picture_hw: (height, width) of the pictures when they all have one; any size when left out.
    """
    from onnx import TensorProto, helper

    for node in model.graph.node:
        node.input[:] = [NETWORK_INPUT if name == "images" else name for name in node.input]
    w = GraphWriter(model, "intake")
    height, width = preprocess.size_hw
    planes = w.cast("images", "float32") if picture_hw == (height, width) else _resized(w, preprocess)
    scale, mean = np.array(preprocess.scale, np.float32), np.array(preprocess.mean, np.float32)
    if preprocess.colour_order == "BGR":  # the resized pictures are still RGB
        scale, mean = scale[::-1], mean[::-1]
    scaled = w.op("Mul", planes, w.constant(scale))
    if mean.any():
        scaled = w.op("Add", scaled, w.constant(-mean * scale))
    if preprocess.colour_order == "BGR":
        scaled = w.op("Gather", scaled, w.ints(2, 1, 0), axis=3)
    w.op("Transpose", scaled, perm=[0, 3, 1, 2], output=NETWORK_INPUT)
    w.prepend()
    shape = [batch, *(picture_hw or ("height", "width")), 3]
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))


def _resized(w: GraphWriter, preprocess: Preprocess) -> str:
    """[B, H, W, 3] float32 in 0 … 255: two taps along each axis, rows gathered before columns while still 8-bit."""
    shape = w.op("Shape", "images")
    rows = _taps(w, w.op("Gather", shape, w.ints(1), axis=0), preprocess.size_hw[0], preprocess.coordinates)
    columns = _taps(w, w.op("Gather", shape, w.ints(2), axis=0), preprocess.size_hw[1], preprocess.coordinates)
    both = w.op("Gather", "images", w.op("Concat", rows[0], rows[1], axis=0), axis=1)  # [B, 2H, w, 3]
    left, right = (w.cast(w.op("Gather", both, taps, axis=2), "float32") for taps in columns[:2])
    weight = w.op("Unsqueeze", columns[2], w.ints(1))  # [W, 1]
    rest = w.op("Sub", w.constant(np.float32(1)), weight)
    along_x = w.op("Add", w.op("Mul", left, rest), w.op("Mul", right, weight))
    height = preprocess.size_hw[0]
    low, high = w.ops("Split", along_x, w.ints(height, height), outputs=2, axis=1)
    downward = w.op("Unsqueeze", rows[2], w.ints(1, 2))  # [H, 1, 1]
    return w.op("Add", low, w.op("Mul", w.op("Sub", high, low), downward))


def _taps(w: GraphWriter, size_in: str, size_out: int, coordinates: str) -> tuple[str, str, str]:
    """Low and high input position and the weight of the high one, [size_out] each; as in `multibox.spec.preprocess`."""
    step = w.op("Div", w.cast(size_in, "float32"), w.floats(size_out))
    position = np.arange(size_out, dtype=np.float32)
    if coordinates == "half_pixel":
        half = w.constant(np.float32(0.5))
        shifted = w.op("Sub", w.op("Mul", w.constant(position + np.float32(0.5)), step), half)
        place = w.op("Max", shifted, w.constant(np.float32(0)))
    else:
        place = w.op("Mul", w.constant(position), step)
    last = w.op("Sub", size_in, w.ints(1))
    low = w.op("Min", w.cast(w.op("Floor", place), "int64"), last)
    high = w.op("Min", w.op("Add", low, w.ints(1)), last)
    return low, high, w.op("Sub", place, w.cast(low, "float32"))
