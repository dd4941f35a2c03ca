"""int8 ONNX, by ONNX Runtime's static quantisation.

Activations are uint8, which x86 processors multiply fastest with int8 weights, and everything is written as pairs of
QuantizeLinear and DequantizeLinear, which every runtime that has int8 understands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxscript import GraphBuilder, ir

from multibox.export.heads import RAW_OUTPUTS
from multibox.export.int8 import LEVELS, FloatArray, Quantizer, measured_ranges
from multibox.export.int8_onnx_heads import is_pointwise, multiply_in_int8, rounded_weights
from multibox.export.layout import INPUT, Layout
from multibox.export.onnx import compose
from multibox.inference.engines.onnxruntime import open_session
from multibox.spec.card import ModelCard

__all__ = ["OnnxQuantizer", "last_convolutions"]

QUANTISED = ("Conv", "Add", "MaxPool", "Relu", "Clip", "GlobalMaxPool")
COUNTED = ("Conv", "Add")  # what has arithmetic of its own; the others follow what stands before them


class OnnxQuantizer(Quantizer):
    """See the base class. The last convolutions of the heads are int8 where they are pointwise, and give float32.

    Attributes:
        behind: names of the nodes between them and the outputs, which stay in float32.
    """

    engine = "onnxruntime.quantization"

    def __init__(self, network: onnx.ModelProto, card: ModelCard, pictures: Sequence[NDArray[np.uint8]]) -> None:
        super().__init__(network, card, pictures)
        graph = ir.from_proto(network).graph
        self._last, self.behind = last_convolutions(graph)
        self._nodes: dict[str, Any] = {str(node.name): node for node in graph if node.name not in self.behind}
        self.always_float = [name for name in self._last if not is_pointwise(self._nodes[name])]
        self.ranges = measured_ranges(self._activations())

    def _activations(self) -> Iterator[dict[str, NDArray[Any]]]:
        """All that quantised nodes may take and give, picture by picture."""
        quantised = [node for node in self._nodes.values() if node.op_type in QUANTISED]
        values = [value for node in quantised for value in (*node.inputs, *node.outputs) if value is not None]
        names = list(dict.fromkeys(value.name for value in values if value.producer() is not None))
        probe = ir.from_proto(self.network)
        shown = {output.name for output in probe.graph.outputs}
        made = {output.name: output for node in probe.graph for output in node.outputs}
        for value in (made[name] for name in names if name not in shown):
            value.type = ir.TensorType(ir.DataType.FLOAT)
            probe.graph.outputs.append(value)
        session = open_session(ir.to_proto(probe).SerializeToString())
        for image in self.inputs:
            yield {**dict(zip(names, session.run(names, {INPUT: image[None]}), strict=True)), INPUT: image}

    @property
    def layers(self) -> list[str]:
        """Names of the nodes that can be quantised, in the order of the graph."""
        return [n for n, node in self._nodes.items() if node.op_type in COUNTED and n not in self.always_float]

    def layer_of(self, node: str) -> str:
        """What the network calls the weights of a node, or the node's own name."""
        found = self._nodes[node]
        return str(found.inputs[1].name).removesuffix(".weight") if found.op_type == "Conv" else node

    def compose(self, layout: Layout, *, keep_float: Sequence[str] = ()) -> tuple[Any, list[str]]:
        """See the base class; last convolutions whose input is float32 are float32 too."""
        kept = [*self.always_float, *keep_float]
        quantised = self.quantised(keep_float=keep_float)
        there = {node.name for node in quantised.graph.node}
        kept += [name for name in self._last if name in there and name not in kept]
        return compose(quantised, self.card, layout), kept

    def quantised(self, *, keep_float: Iterable[str] = ()) -> onnx.ModelProto:
        """The network with int8 layers, but for `always_float` and the nodes that are named."""
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        kept = {*self.always_float, *keep_float}
        excluded = {*self._last, *self.behind, *kept}
        # The activation goes with its layer: what stands between them would else be rounded at a far wider range.
        followers = (_activation(self._nodes[name]) for name in (*self._last, *kept))
        excluded |= {str(follower.name) for follower in followers if follower is not None}
        model = onnx.ModelProto()
        model.CopyFrom(self.network)
        with _without_advice():
            quantizer = QDQQuantizer(
                model,
                True,  # per channel
                True,  # reduce_range: weights of 7 bits, see LARGEST_WEIGHT
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, dict(self.ranges)),
                [],
                sorted(excluded),
                list(QUANTISED),
                {"ActivationSymmetric": False, "WeightSymmetric": True},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        made = multiply_in_int8(quantizer.model.model, [name for name in self._last if name not in kept])
        del made.metadata_props[:]
        made.producer_name, made.producer_version = self.network.producer_name, ""
        return made

    def raw(self, network: onnx.ModelProto, inputs: Sequence[FloatArray]) -> list[FloatArray]:
        """See the base class."""
        session = open_session(network.SerializeToString())
        runs = [session.run(list(RAW_OUTPUTS), {INPUT: image[None]}) for image in inputs]
        return [np.concatenate(part) for part in zip(*runs, strict=True)]

    def rounded_alone(self, node: str) -> onnx.ModelProto:
        """The network in which one layer's weights and outputs have only the values that int8 has."""
        model = ir.from_proto(self.network)
        found = next(other for other in model.graph if other.name == node)
        if found.op_type == "Conv":
            weights = found.inputs[1]
            levels, step = rounded_weights(weights.const_value.numpy())
            weights.const_value = ir.tensor(levels * step.reshape(-1, 1, 1, 1), name=weights.name)
        if node not in self._last:
            value = (_activation(found) or found).outputs[0]
            low, high = (float(limit) for limit in self.ranges[value.name])
            scale = np.float32(max((high - low) / LEVELS, float(np.finfo(np.float32).tiny)))
            op = GraphBuilder(model.graph).op
            readers = list(value.uses())
            middle = np.uint8(np.clip(np.rint(-low / scale), 0, LEVELS))
            parts = [
                op.builder.initializer(ir.tensor(part), f"{node}.{name}")
                for name, part in (("step", scale), ("zero", middle))
            ]
            rounded = op.DequantizeLinear(op.QuantizeLinear(value, *parts), *parts)
            for reader, slot in readers:
                reader.replace_input_with(slot, rounded)
            model.graph.sort()
        return ir.to_proto(model)  # type: ignore[no-any-return]


def _activation(node: Any) -> Any | None:
    """The ReLU or ReLU6 that alone reads a node."""
    readers = list(node.outputs[0].consumers())
    return readers[0] if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip") else None


def last_convolutions(graph: Any) -> tuple[list[str], set[str]]:
    """Names of the convolutions of an `ir.Graph` that no other follows, and of the nodes between them and the outputs.

    Those nodes reshape, and in a cascade fold its stages.
    """
    found, behind, waiting = set(), set(), list(graph.outputs)
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is None or node.name in behind:
            continue
        if node.op_type == "Conv":
            found.add(str(node.name))
        elif node.op_type != "Shape":  # which looks at no value
            behind.add(str(node.name))
            waiting += node.inputs
    return sorted(found), behind


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without ONNX Runtime's advice to pre-process a model that already is."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
