"""int8 ONNX: static quantisation with scales measured on pictures, and what it costs layer by layer.

Weights are int8 with a scale for each output channel, activations uint8 (the pair that x86 processors multiply
fastest), written as QuantizeLinear/DequantizeLinear pairs, which every runtime that has int8 understands. The outputs
of the network stay float32: see `multibox.export.quantize_heads`. Last convolutions that are not pointwise stay float32
altogether.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.cpus import usable_cpus
from multibox.errors import MissingDependencyError
from multibox.export.heads import RAW_OUTPUTS
from multibox.export.quantize_heads import is_pointwise, multiply_in_int8, rounded_weights

__all__ = ["Quantizer", "Sensitivity", "last_convolutions", "least_loss", "noise_shares", "snr_db"]

FloatArray = NDArray[np.float32]
QUANTISED = ("Conv", "Add", "MaxPool", "Relu", "Clip", "GlobalMaxPool")
COUNTED = ("Conv", "Add")  # what has arithmetic of its own; the others follow what stands before them
LEVELS = 255  # steps of uint8
SAMPLED = 4096  # values of an activation that are kept of each picture
SHRINKAGES = np.linspace(0.4, 1.0, 25)  # of an activation's range


@dataclass(frozen=True)
class Sensitivity:
    """How much noise one layer alone adds to the raw outputs when it is quantised, in decibels below the signal."""

    node: str
    layer: str
    snr_db: float


class Quantizer:
    """Quantises one network; calibrates once.

    The range of an activation is the one that loses least: from the smallest to the largest value seen, drawn in as
    far as the mean squared error of rounding and clipping together falls.

    Args:
        network: raw graph from `multibox.export.onnx.network_graph`.
        inputs: calibration pictures as network inputs [3, H, W] float32.

    Raises:
        MissingDependencyError: onnx is not installed.
    """

    def __init__(self, network: Any, inputs: Sequence[FloatArray]) -> None:
        try:
            import onnx  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(error.name or "onnx", "quantising", "export") from None
        self.network = network
        self._last = last_convolutions(network)
        self.always_float = [name for name in self._last if not is_pointwise(_node(network, name))]
        self._readers: dict[str, list[Any]] = {}
        for node in network.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self.ranges = _measured_ranges(network, inputs)

    @property
    def layers(self) -> list[str]:
        """Names of the nodes that can be quantised, in the order of the graph."""
        return [n.name for n in self.network.graph.node if n.op_type in COUNTED and n.name not in self.always_float]

    def layer_of(self, node: str) -> str:
        """What the network calls the weights of a node, or the node's own name."""
        found = _node(self.network, node)
        return str(found.input[1]).removesuffix(".weight") if found.op_type == "Conv" else node

    def _activation(self, node: Any) -> Any | None:
        """The ReLU or ReLU6 that alone reads a node."""
        readers = self._readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip") else None

    def quantised(self, *, keep_float: Iterable[str] = ()) -> Any:
        """A new `onnx.ModelProto` with int8 layers, but for `always_float` and the nodes that are named."""
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        kept = {*self.always_float, *keep_float}
        excluded = {*self._last, *kept}
        # The activation goes with its layer: what stands between them would else be rounded at a far wider range.
        followers = (self._activation(_node(self.network, name)) for name in list(excluded))
        excluded |= {follower.name for follower in followers if follower is not None}
        model = type(self.network)()
        model.CopyFrom(self.network)
        with _silent():
            quantizer = QDQQuantizer(
                model,
                True,  # per channel
                False,  # reduce_range: for processors without VNNI, whose 16-bit sums saturate
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
        made = quantizer.model.model
        multiply_in_int8(made, [name for name in self._last if name not in kept])
        del made.metadata_props[:]
        made.producer_name, made.producer_version = self.network.producer_name, ""
        return made

    def also_float(self, made: Any, keep_float: Iterable[str]) -> list[str]:
        """Last convolutions that were to be int8 in what `quantised` made, but whose input is not."""
        kept = {*self.always_float, *keep_float}
        names = {node.name for node in made.graph.node}
        return [name for name in self._last if name in names and name not in kept]

    def sensitivity(self, inputs: Sequence[FloatArray]) -> list[Sensitivity]:
        """Each layer rounded alone (its weights, and what it gives to the next), most harmful first.

        Args:
            inputs: a few network inputs [3, H, W].
        """
        expected = _outputs(self.network, inputs)
        found = []
        for node in self.layers:
            given = _outputs(self._rounded_alone(node), inputs)
            ratios = [snr_db(ours, theirs) for ours, theirs in zip(expected, given, strict=True)]
            found.append(Sensitivity(node, self.layer_of(node), min(ratios)))
        return sorted(found, key=lambda row: row.snr_db)

    def _rounded_alone(self, name: str) -> Any:
        """The float network in which one layer's weights and outputs have only the values that int8 has."""
        from onnx import helper, numpy_helper

        model = type(self.network)()
        model.CopyFrom(self.network)
        graph = model.graph
        node = _node(model, name)
        if node.op_type == "Conv":
            weights = next(t for t in graph.initializer if t.name == node.input[1])
            levels, step = rounded_weights(numpy_helper.to_array(weights))
            rounded = levels * step.reshape(-1, 1, 1, 1)
            weights.CopyFrom(numpy_helper.from_array(rounded.astype(np.float32), weights.name))
        if name in self._last:
            return model
        activation = self._activation(node)
        tensor = (activation or node).output[0]
        low, high = (float(limit) for limit in self.ranges[tensor])
        scale = max((high - low) / LEVELS, float(np.finfo(np.float32).tiny))
        zero = np.uint8(np.clip(np.rint(-low / scale), 0, LEVELS))
        graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "alone.scale"))
        graph.initializer.append(numpy_helper.from_array(np.array(zero), "alone.zero"))
        for reader in graph.node:
            reader.input[:] = ["alone.rounded" if read == tensor else read for read in reader.input]
        place = next(i for i, n in enumerate(graph.node) if tensor in n.output) + 1
        parts = ["alone.scale", "alone.zero"]
        graph.node.insert(place, helper.make_node("QuantizeLinear", [tensor, *parts], ["alone.levels"]))
        graph.node.insert(place + 1, helper.make_node("DequantizeLinear", ["alone.levels", *parts], ["alone.rounded"]))
        return model


def _measured_ranges(network: Any, inputs: Sequence[FloatArray]) -> dict[str, tuple[FloatArray, FloatArray]]:
    """(low, high) of every activation that may be quantised; zero lies inside, because padding is zero."""
    from onnx import TensorProto, helper

    names = [name for node in network.graph.node if node.op_type in QUANTISED for name in node.output]
    probe = type(network)()
    probe.CopyFrom(network)
    shown = {output.name for output in probe.graph.output}
    for name in names:
        if name not in shown:
            probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = _session(probe)
    random = np.random.default_rng(0)
    low, high = dict.fromkeys([*names, "images"], 0.0), dict.fromkeys([*names, "images"], 0.0)
    samples: dict[str, list[FloatArray]] = {name: [] for name in low}
    for image in inputs:
        seen = dict(zip(names, session.run(names, {"images": image[None]}), strict=True))
        seen["images"] = image
        for name, tensor in seen.items():
            values = tensor.ravel()
            low[name] = min(low[name], float(values.min()))
            high[name] = max(high[name], float(values.max()))
            samples[name].append(values[random.integers(0, values.size, SAMPLED)])
    return {name: least_loss(np.concatenate(samples[name]), low[name], high[name]) for name in low}


def least_loss(values: FloatArray, low: float, high: float) -> tuple[FloatArray, FloatArray]:
    """The range within [low, high] that rounds and clips a sample of values with the least squared error."""
    best, chosen = np.inf, 1.0
    for part in SHRINKAGES if high > low else ():
        least, step = low * part, (high - low) * part / LEVELS
        error = float(((np.clip(np.rint((values - least) / step), 0, LEVELS) * step + least - values) ** 2).mean())
        if error < best:
            best, chosen = error, float(part)
    return np.array(low * chosen, np.float32), np.array(high * chosen, np.float32)


def noise_shares(ranking: Sequence[Sensitivity]) -> list[float]:
    """The part of each layer in the noise of all of them, which adds up as long as it is small."""
    noise = [10 ** (-row.snr_db / 10) for row in ranking]
    return [value / sum(noise) for value in noise]


def _node(network: Any, name: str) -> Any:
    return next(node for node in network.graph.node if node.name == name)


def last_convolutions(network: Any) -> list[str]:
    """Names of the convolutions after which nothing but reshaping leads to the outputs."""
    producers = {name: node for node in network.graph.node for name in node.output}
    found, waiting = [], list(RAW_OUTPUTS)
    while waiting:
        node = producers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type == "Conv":
            found.append(node.name)
        else:
            waiting += [node.input[0]] if node.op_type != "Concat" else list(node.input)
    return sorted(set(found))


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_cpus()
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _outputs(model: Any, inputs: Sequence[FloatArray]) -> list[FloatArray]:
    session = _session(model)
    runs = [session.run(list(RAW_OUTPUTS), {"images": image[None]}) for image in inputs]
    return [np.concatenate(part) for part in zip(*runs, strict=True)]


def snr_db(expected: FloatArray, given: FloatArray) -> float:
    """Signal over noise of some values, in decibels."""
    noise = float(((expected - given).astype(np.float64) ** 2).mean())
    signal = float((expected.astype(np.float64) ** 2).mean())
    return 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


@contextmanager
def _silent() -> Iterator[None]:
    """Without ONNX Runtime's advice to pre-process a model that already is."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
