"""int8 for LiteRT, by ai-edge-quantizer: static, with scales measured on pictures.

Weights are int8 with a scale for each output channel, activations int8 with a zero point. The last convolutions of the
heads stay in float32, and what is between them and the outputs with them. The ranges are those that
`multibox.export.quantize` would choose.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.cpus import usable_cpus
from multibox.export.heads import RAW_OUTPUTS
from multibox.export.litert_graph import EXTRA, LitertGraph
from multibox.export.quantize import SAMPLED, Sensitivity, least_loss, snr_db
from multibox.quiet import import_quietly, silenced

__all__ = ["LitertQuantizer"]

FloatArray = NDArray[np.float32]
QUANTISED = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MAX_POOL_2D")
COUNTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD")  # what has arithmetic of its own


class LitertQuantizer:
    """Quantises one network; calibrates once. An operator is known by the name of its output.

    Args:
        network: from `multibox.export.litert.litert_network`.
        inputs: calibration pictures as network inputs [3, H, W] float32.

    Raises:
        MissingDependencyError: ai-edge-litert or ai-edge-quantizer is not installed.
    """

    def __init__(self, network: bytes, inputs: Sequence[FloatArray]) -> None:
        self.network = network
        graph = LitertGraph(network)
        self._operators = {
            graph.graph.tensors[operator.outputs[0]].name.decode(): graph.kind(operator)
            for operator in graph.graph.operators
        }
        self.always_float = _last_convolutions(graph)
        self.ranges = _measured_ranges(network, _activations(graph), inputs)

    @property
    def layers(self) -> list[str]:
        """Names of the operators that can be quantised, in the order of the graph."""
        return [name for name, kind in self._operators.items() if kind in COUNTED and name not in self.always_float]

    def layer_of(self, node: str) -> str:
        """What the network calls an operator: its name."""
        return node

    def quantised(self, *, keep_float: Iterable[str] = ()) -> bytes:
        """A new file with int8 layers, but for `always_float` and the operators that are named."""
        excluded = {*self.always_float, *keep_float}
        chosen = [name for name, kind in self._operators.items() if kind in QUANTISED and name not in excluded]
        return self._with_int8(chosen)

    def _with_int8(self, chosen: Sequence[str]) -> bytes:
        if not chosen:  # which the quantizer refuses
            return self.network
        with silenced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = import_quietly("ai_edge_quantizer.quantizer", purpose="quantising for LiteRT", extra=EXTRA)
            quantizer = package.Quantizer(bytearray(self.network))
            for name in chosen:
                quantizer.add_static_config(f"^{re.escape(name)};?$", self._operators[name], 8, 8)
            ranges = {name: {"min": low, "max": high} for name, (low, high) in self.ranges.items()}
            return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)

    def sensitivity(self, inputs: Sequence[FloatArray]) -> list[Sensitivity]:
        """Each layer alone in int8 (its weights, what it takes and what it gives), most harmful first.

        Args:
            inputs: a few network inputs [3, H, W].
        """
        expected = _outputs(self.network, inputs)
        found = []
        for name in self.layers:
            given = _outputs(self._with_int8([name]), inputs)
            ratios = [snr_db(ours, theirs) for ours, theirs in zip(expected, given, strict=True)]
            found.append(Sensitivity(name, name, min(ratios)))
        return sorted(found, key=lambda row: row.snr_db)


def _activations(graph: LitertGraph) -> list[str]:
    """Names of what quantised operators give and take, weights excepted."""
    quantised = [operator for operator in graph.graph.operators if graph.kind(operator) in QUANTISED]
    given = [*graph.graph.inputs, *(number for operator in quantised for number in operator.outputs)]
    made = {int(number) for operator in graph.graph.operators for number in operator.outputs}
    taken = [number for operator in quantised for number in operator.inputs if int(number) in made]
    return [graph.graph.tensors[number].name.decode() for number in dict.fromkeys(map(int, (*given, *taken)))]


def _measured_ranges(
    network: bytes, names: Sequence[str], inputs: Sequence[FloatArray]
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """(low, high) of each of these activations; zero lies inside, because padding is zero."""
    interpreter = _interpreter(network, keep_all=True)
    numbers = {found["name"]: found["index"] for found in interpreter.get_tensor_details()}
    random = np.random.default_rng(0)
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    samples: dict[str, list[FloatArray]] = {name: [] for name in names}
    for image in inputs:
        _feed(interpreter, image)
        for name in names:
            values = interpreter.get_tensor(numbers[name]).ravel()
            low[name] = min(low[name], float(values.min()))
            high[name] = max(high[name], float(values.max()))
            samples[name].append(values[random.integers(0, values.size, SAMPLED)])
    found = {}
    for name in names:
        shape = (1,) * interpreter.get_tensor(numbers[name]).ndim
        limits = least_loss(np.concatenate(samples[name]), low[name], high[name])
        found[name] = (limits[0].reshape(shape), limits[1].reshape(shape))
    return found


def _last_convolutions(graph: LitertGraph) -> list[str]:
    """Names of the convolutions after which nothing but reshaping leads to the outputs."""
    makers = {int(operator.outputs[0]): operator for operator in graph.graph.operators}
    found, waiting = [], [graph.find(name) for name in RAW_OUTPUTS]
    while waiting:
        tensor = waiting.pop()
        operator = makers.get(tensor)
        if operator is None:
            continue
        kind = graph.kind(operator)
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            found.append(graph.graph.tensors[tensor].name.decode())
        else:
            waiting += [int(number) for number in (operator.inputs if kind == "CONCATENATION" else operator.inputs[:1])]
    return sorted(set(found))


def _interpreter(content: bytes, *, keep_all: bool = False) -> Any:
    with silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = import_quietly("ai_edge_litert.interpreter", purpose="quantising for LiteRT", extra=EXTRA)
        made = package.Interpreter(
            model_content=content, num_threads=usable_cpus(), experimental_preserve_all_tensors=keep_all
        )
        made.allocate_tensors()
    return made


def _feed(interpreter: Any, image: FloatArray) -> None:
    taken = interpreter.get_input_details()[0]
    filled = np.repeat(image.transpose(1, 2, 0)[None], taken["shape"][0], axis=0)
    interpreter.set_tensor(taken["index"], np.ascontiguousarray(filled))
    interpreter.invoke()


def _outputs(content: bytes, inputs: Sequence[FloatArray]) -> list[FloatArray]:
    interpreter = _interpreter(content)
    numbers = {found["name"]: found["index"] for found in interpreter.get_output_details()}
    runs = []
    for image in inputs:
        _feed(interpreter, image)
        runs.append([interpreter.get_tensor(numbers[name]) for name in RAW_OUTPUTS])
    return [np.concatenate(part) for part in zip(*runs, strict=True)]
