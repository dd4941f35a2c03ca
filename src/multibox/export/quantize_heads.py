"""int8 for the last convolutions of the heads, whose outputs stay float32.

Offsets and logits have a wide range in which small differences decide, so they are not rounded to 8 bits. But a
pointwise convolution is a matrix product, and a product of 8-bit factors can be added up in 32 bits and handed on as
float32: its weights and its input are int8, only its output is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_pointwise", "multiply_in_int8", "rounded_weights"]

LARGEST_WEIGHT = 127
LARGEST_BIAS = 1 << 30  # half of what 32 bits hold; the other half is for the sum of products


def is_pointwise(node: Any) -> bool:
    """Whether an ONNX Conv looks at one place at a time, at every place, with all its inputs."""
    values = {a.name: list(a.ints) or a.i for a in node.attribute if a.name != "auto_pad"}
    return (
        set(values.get("kernel_shape", [0])) == {1}
        and set(values.get("strides", [1])) == {1}
        and set(values.get("pads", [0])) == {0}
        and values.get("group", 1) == 1
    )


def rounded_weights(
    values: NDArray[np.float32], least_step: NDArray[np.float32] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights [outputs, …] as int8 and the step of each output channel [outputs]; symmetric, so zero stays zero."""
    largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    step = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(LARGEST_WEIGHT)
    step = np.maximum(step, np.asarray(least_step, np.float32))
    return np.rint(values / step.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8), step


def multiply_in_int8(model: Any, names: Iterable[str]) -> None:
    """Turn last convolutions of a quantised graph into products of int8 matrices; the graph is changed.

    `Conv → Transpose (to N, H, W, C) → Reshape` becomes `Reshape → Gemm → Reshape` on rows of channels, one row a
    place. One whose input is not quantised stays as it is.

    Args:
        model: with QuantizeLinear and DequantizeLinear nodes, and weights of these convolutions in float32.
        names: of pointwise convolutions, each followed by what the heads do.
    """
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    wanted = set(names)
    for conv in [node for node in graph.node if node.name in wanted]:
        given = makers.get(conv.input[0])
        if given is None or given.op_type != "DequantizeLinear":
            continue
        transpose = _only_reader(graph, conv, "Transpose")
        reshape = _only_reader(graph, transpose, "Reshape")
        levels, scale, zero = given.input
        kernel, *rest = (numpy_helper.to_array(tensors[name]) for name in conv.input[1:])
        input_step, exact_bias = numpy_helper.to_array(tensors[scale]), rest[0] if rest else np.zeros(len(kernel))
        # The bias counts in units of both steps. Where the input hardly ever is anything but zero they are so small
        # that it would not fit, and the weights do not matter.
        least_step = np.abs(exact_bias) / LARGEST_BIAS / input_step
        weights, step = rounded_weights(kernel[:, :, 0, 0], least_step)
        unit = step * input_step
        bias = np.rint(exact_bias / unit).astype(np.int32)

        def constant(part: str, value: NDArray[Any], owner: str = conv.name) -> str:
            graph.initializer.append(numpy_helper.from_array(value, f"{owner}.{part}"))
            return f"{owner}.{part}"

        def node(kind: str, inputs: list[str], output: str, owner: str = conv.name, **attributes: Any) -> Any:
            return helper.make_node(kind, inputs, [output], name=f"{owner}.{kind}.{output}", **attributes)

        name = conv.name
        weight_parts = [
            constant("levels", weights),
            constant("step", step),
            constant("zero", np.zeros_like(weights[:, 0])),
        ]
        bias_parts = [constant("bias", bias), constant("unit", unit), constant("bias_zero", np.zeros_like(bias))]
        rows = constant("rows", np.array([-1, weights.shape[1]], np.int64))
        shape = constant("shape", np.array([-1, *shapes[reshape.output[0]][1:]], np.int64))
        made = [
            node("Transpose", [levels], f"{name}.places", perm=[0, 2, 3, 1]),
            node("Reshape", [f"{name}.places", rows], f"{name}.row_levels"),
            node("DequantizeLinear", [f"{name}.row_levels", scale, zero], f"{name}.input"),
            node("DequantizeLinear", weight_parts, f"{name}.weight", axis=0),
            node("DequantizeLinear", bias_parts, f"{name}.offset", axis=0),
            node("Gemm", [f"{name}.input", f"{name}.weight", f"{name}.offset"], f"{name}.product", transB=1),
            node("Reshape", [f"{name}.product", shape], reshape.output[0]),
        ]
        place = next(i for i, other in enumerate(graph.node) if other.name == conv.name)
        for old in (conv, transpose, reshape):
            graph.node.remove(old)
        for offset, new in enumerate(made):
            graph.node.insert(place + offset, new)
    _without_leftovers(graph)


def _only_reader(graph: Any, node: Any, kind: str) -> Any:
    readers = [other for other in graph.node if node.output[0] in other.input]
    assert [reader.op_type for reader in readers] == [kind], (node.name, [reader.op_type for reader in readers])
    return readers[0]


def _without_leftovers(graph: Any) -> None:
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        idle = [node for node in graph.node if not used & set(node.output)]
        for node in idle:
            graph.node.remove(node)
        if not idle:
            break
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
