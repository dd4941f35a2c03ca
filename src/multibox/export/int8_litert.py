"""int8 for LiteRT, by ai-edge-quantizer: static, with an int8 zero point for each activation.

The last convolutions of the heads stay in float32, and what is between them and the outputs with them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.cpus import usable_cpus
from multibox.export.heads import RAW_OUTPUTS
from multibox.export.int8 import FloatArray, Quantizer, measured_ranges
from multibox.export.layout import INPUT, Layout
from multibox.export.litert import compose
from multibox.export.litert_graph import EXTRA, LitertGraph
from multibox.inference.engines.litert import Interpreters
from multibox.quiet import import_quietly, silenced
from multibox.spec.card import ModelCard

__all__ = ["LitertQuantizer"]

QUANTISED = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MAX_POOL_2D")
COUNTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD")  # what has arithmetic of its own


class LitertQuantizer(Quantizer):
    """See the base class. An operator is known by the name of its output, which is that of a module of the network."""

    engine = "ai-edge-quantizer"

    def __init__(self, network: bytes, card: ModelCard, pictures: Sequence[NDArray[np.uint8]]) -> None:
        super().__init__(network, card, pictures)
        graph = LitertGraph(network)
        tensors = graph.graph.tensors
        self.always_float, behind = _last_convolutions(graph)
        made = {tensors[op.outputs[0]].name.decode(): graph.kind(op) for op in graph.graph.operators}
        self._operators = {name: kind for name, kind in made.items() if name not in behind}
        self._ranks = {tensor.name.decode(): len(graph.shape(number)) for number, tensor in enumerate(tensors)}
        activations = _activations(graph, self._operators)
        graph.show(activations)
        self.ranges = measured_ranges(
            {name: run[name] for name in activations} for run in _runs(graph.content(), self.inputs)
        )

    @property
    def layers(self) -> list[str]:
        """Names of the operators that can be quantised, in the order of the graph."""
        return [name for name, kind in self._operators.items() if kind in COUNTED and name not in self.always_float]

    def layer_of(self, node: str) -> str:
        """What the network calls an operator: its name."""
        return node

    def compose(self, layout: Layout, *, keep_float: Sequence[str] = ()) -> tuple[bytes, list[str]]:
        """See the base class."""
        return compose(self.quantised(keep_float=keep_float), self.card, layout), [*self.always_float, *keep_float]

    def quantised(self, *, keep_float: Iterable[str] = ()) -> bytes:
        """The network with int8 layers, but for `always_float` and the operators that are named."""
        excluded = {*self.always_float, *keep_float}
        return self._with_int8([n for n, kind in self._operators.items() if kind in QUANTISED and n not in excluded])

    def _with_int8(self, chosen: Sequence[str]) -> bytes:
        if not chosen:  # which the quantizer refuses
            return bytes(self.network)
        with silenced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = import_quietly("ai_edge_quantizer.quantizer", purpose="quantising for LiteRT", extra=EXTRA)
            quantizer = package.Quantizer(bytearray(self.network))
            for name in chosen:
                quantizer.add_static_config(f"^{re.escape(name)};?$", self._operators[name], 8, 8)
            ranges = {}
            for name, found in self.ranges.items():
                low, high = (limit.reshape((1,) * self._ranks[name]) for limit in found)
                ranges[name] = {"min": low, "max": high}
            return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)

    def raw(self, network: bytes, inputs: Sequence[FloatArray]) -> list[FloatArray]:
        """See the base class."""
        runs = list(_runs(network, inputs))
        return [np.concatenate([run[name] for run in runs]) for name in RAW_OUTPUTS]

    def rounded_alone(self, node: str) -> bytes:
        """The network with one operator in int8: its weights, what it takes and what it gives."""
        return self._with_int8([node])


def _runs(network: bytes, inputs: Sequence[FloatArray]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Every output by name for each input [3, H, W], which fills the whole batch."""
    interpreters = Interpreters(network, usable_cpus(), source="the network")
    batch = interpreters.shapes[INPUT][0]
    for image in inputs:
        yield interpreters.run(np.repeat(image.transpose(1, 2, 0)[None], batch, axis=0))


def _activations(graph: LitertGraph, operators: Mapping[str, str]) -> list[str]:
    """Names of what those of the operators give and take that are quantised, weights excepted."""
    names = [tensor.name.decode() for tensor in graph.graph.tensors]
    quantised = [op for op in graph.graph.operators if operators.get(names[op.outputs[0]]) in QUANTISED]
    given = [*graph.graph.inputs, *(number for operator in quantised for number in operator.outputs)]
    made = {int(number) for operator in graph.graph.operators for number in operator.outputs}
    taken = [number for operator in quantised for number in operator.inputs if int(number) in made]
    return [names[number] for number in dict.fromkeys(map(int, (*given, *taken)))]


def _last_convolutions(graph: LitertGraph) -> tuple[list[str], set[str]]:
    """Names of the convolutions that no other follows, and of the operators between them and the outputs."""
    makers = {int(output): operator for operator in graph.graph.operators for output in operator.outputs}
    found, behind, waiting = set(), set(), [graph.find(name) for name in RAW_OUTPUTS]
    while waiting:
        operator = makers.get(waiting.pop())
        if operator is None:
            continue
        name = graph.graph.tensors[operator.outputs[0]].name.decode()
        if graph.kind(operator) in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            found.add(name)
        elif name not in behind:
            behind.add(name)
            waiting += map(int, operator.inputs)
    return sorted(found), behind
