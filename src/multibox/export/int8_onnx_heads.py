"""int8 for the last convolutions of the heads in ONNX, whose outputs stay float32.

A pointwise convolution is a matrix product, and a product of 8-bit factors can be added up in 32 bits and handed on as
float32: its weights and its input are int8, only its output is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import GraphBuilder, ir

__all__ = ["is_pointwise", "multiply_in_int8", "rounded_weights"]

LARGEST_WEIGHT = 64
"""x86 processors without VNNI add two products of a weight and an 8-bit activation in 16 bits, which hold 2 · 64 · 255
but not 2 · 127 · 255: with larger weights, a session that was not told of it would give other numbers there."""
LARGEST_BIAS = 1 << 30  # half of what 32 bits hold; the other half is for the sum of products


def is_pointwise(node: Any) -> bool:
    """Whether an ONNX Conv looks at one place at a time, at every place, with all its inputs."""
    given = node.attributes
    return (
        set(given.get_ints("kernel_shape", node.inputs[1].shape[2:])) == {1}
        and set(given.get_ints("strides", [1])) == {1}
        and set(given.get_ints("pads", [0])) == {0}
        and given.get_int("group", 1) == 1
    )


def rounded_weights(
    values: NDArray[np.float32], least_step: NDArray[np.float32] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights [outputs, …] as int8 and the step of each output channel [outputs]; symmetric, so zero stays zero."""
    largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    step = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(LARGEST_WEIGHT)
    step = np.maximum(step, np.asarray(least_step, np.float32))
    return np.rint(values / step.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8), step


def multiply_in_int8(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A quantised graph in which some last convolutions are products of int8 matrices.

    `Conv → Transpose (to N, H, W, C) → Reshape` becomes `Reshape → Gemm → Reshape` on rows of channels, one row a
    place. A convolution whose input is not quantised stays as it is.

    Args:
        model: with QuantizeLinear and DequantizeLinear nodes, and weights of these convolutions in float32.
        names: of pointwise convolutions, each followed by what the heads do.
    """
    changed = ir.from_proto(model)
    graph: Any = changed.graph
    wanted = set(names)
    builder = GraphBuilder(graph)
    for conv in [node for node in graph if node.name in wanted]:
        given = conv.inputs[0].producer()
        if given is None or given.op_type != "DequantizeLinear":
            continue
        (transpose,) = conv.outputs[0].consumers()
        (reshape,) = transpose.outputs[0].consumers()
        assert (transpose.op_type, reshape.op_type) == ("Transpose", "Reshape"), conv.name
        levels, scale, zero = given.inputs
        input_step = scale.const_value.numpy()
        kernel, *rest = (value.const_value.numpy() for value in conv.inputs[1:])
        exact_bias = rest[0] if rest else np.zeros(len(kernel), np.float32)
        # The bias counts in units of both steps. Where the input hardly ever is anything but zero they are so small
        # that it would not fit, and the weights do not matter.
        weights, step = rounded_weights(kernel[:, :, 0, 0], np.abs(exact_bias) / LARGEST_BIAS / input_step)
        unit = step * input_step
        bias = np.rint(exact_bias / unit).astype(np.int32)
        builder.push_module(conv.name)
        op = builder.op
        by_row = builder.initializer(ir.tensor(np.array([-1, weights.shape[1]])), "rows")
        rows = op.Reshape(op.Transpose(levels, perm=[0, 2, 3, 1]), by_row)
        product = op.Gemm(
            op.DequantizeLinear(rows, scale, zero),
            _dequantised(op, "weight", weights, step),
            _dequantised(op, "bias", bias, unit),
            transB=1,
        )
        made = op.Reshape(product, reshape.inputs[1])
        builder.pop_module()
        ir.convenience.replace_all_uses_with(reshape.outputs[0], made, replace_graph_outputs=True)
    graph.sort()
    RemoveUnusedNodesPass()(changed)
    return ir.to_proto(changed)


def _dequantised(op: Any, name: str, levels: NDArray[Any], step: NDArray[np.float32]) -> Any:
    """A constant as whole numbers [outputs, …] and the step of each output."""
    parts = {"levels": levels, "step": step, "zero": np.zeros(len(levels), levels.dtype)}
    values = [op.builder.initializer(ir.tensor(value), f"{name}.{part}") for part, value in parts.items()]
    return op.DequantizeLinear(*values, axis=0)
