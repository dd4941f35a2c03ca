"""Describes a torch module for `graph_ssd` by tracing it: convolutions, normalisation and what lies between."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from multibox.errors import ContractError
from multibox.models.graph import IMAGE
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["trace"]

MODULES = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid"}
SAME: tuple[type[nn.Module], ...] = (nn.Identity, nn.Dropout)
FUNCTIONS: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.mul: "multiply",
    torch.mul: "multiply",
    torch.cat: "concat",
}


def trace(writer: GraphWriter, module: nn.Module, prefix: str) -> list[str]:
    """Write a module's layers; the names of the outputs that it returns, in their order.

    Args:
        writer: has tensors of these names.
        module: takes the image and returns maps, in a list, a tuple or a dictionary.
        prefix: of its tensors in the file.

    Raises:
        ContractError: a layer that is not known here; it is named.
    """
    graph = fx.Tracer().trace(module)
    names: dict[fx.Node, str] = {}
    outputs: list[str] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = IMAGE
        elif node.op == "output":
            found: list[fx.Node] = []
            fx.node.map_arg(node.args, found.append)
            outputs = [names[one] for one in found]
        else:
            taken = [names[one] for one in node.all_input_nodes]
            names[node] = _written(writer, module, node, taken, prefix)
    return outputs


def _written(writer: GraphWriter, module: nn.Module, node: fx.Node, taken: list[str], prefix: str) -> str:
    where = [*node.args[1:], *node.kwargs.values()]
    if node.op == "call_function" and node.target in FUNCTIONS and (len(where) == 1 and len(taken) > 1):
        operation = FUNCTIONS[node.target]
        if operation == "concat" and where != [1]:
            raise ContractError(f"{prefix}.{node.name}: put together along axis {where[0]}, only 1 is known here")
        return writer.plain(operation, f"{prefix}.{node.name}", *taken)
    if node.op != "call_module":
        raise ContractError(f"{prefix}.{node.name}: {node.target} is not known here")
    layer, theirs = module.get_submodule(str(node.target)), f"{prefix}.{node.target}"
    writer.last = taken[0]
    if isinstance(layer, SAME):
        return taken[0]
    if isinstance(layer, nn.Conv2d):
        window = {"stride": layer.stride, "pad": layer.padding, "dilation": layer.dilation}
        if all(len(set(sides)) == 1 for sides in window.values()):
            whole = {name: int(sides[0]) for name, sides in window.items()}
            return writer.conv(theirs, bias=layer.bias is not None, **whole)
    if isinstance(layer, nn.BatchNorm2d):
        return writer.norm(theirs, eps=layer.eps)
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return writer.plain("mean", theirs)
    if type(layer) in MODULES:
        return writer.plain(MODULES[type(layer)], theirs)
    raise ContractError(f"{theirs}: {type(layer).__name__} is not known here")
