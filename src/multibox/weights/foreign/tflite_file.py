"""Reading `.tflite` files: operators and tensors in their order, with the numbers that stored integers stand for."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ModelFileError
from multibox.quiet import import_quietly

__all__ = ["Operator", "Quantised", "TfliteFile", "read_tflite"]

IDENTIFIER = b"TFL3"
DTYPES = {0: "<f4", 1: "<f2", 2: "<i4", 3: "u1", 4: "<i8", 9: "i1"}
IDENTITIES = ("DEQUANTIZE", "QUANTIZE")  # the same numbers in another type


class Quantised(NamedTuple):
    """A number is scale · (stored − zero point)."""

    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    axis: int


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        kind: its name in the format's table, or that of a custom operator.
        inputs, outputs: places of tensors; an input that is left out is -1.
        options: of the format's own operators.
        custom: bytes of a custom operator's options.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any
    custom: bytes


@dataclass(frozen=True)
class TfliteFile:
    """A graph.

    Attributes:
        operators: in the order in which they run, but for those that only change a type.
        inputs, outputs: places of tensors.
        shapes, dtypes, quantised: of every tensor, by its place.
        constants: the numbers of the tensors that have any, by place.
        labels: lines of the text file that may be packed behind the model.
    """

    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    quantised: tuple[Quantised | None, ...]
    constants: dict[int, NDArray[Any]]
    labels: tuple[str, ...]


def read_tflite(path: Path) -> TfliteFile:
    """The graph of a file.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
        ModelFileError: it cannot be read.
    """
    schema = import_quietly(
        "ai_edge_litert.schema_py_generated", purpose=f"reading {path.name}", extra="litert-runtime"
    )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    try:
        if content[4:8] != IDENTIFIER:
            raise ValueError("it does not begin as one")
        model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
        return _graph(model, schema, _labels(content))
    except Exception as error:  # reading outside the file raises what NumPy, struct and others raise
        reason = f"not a usable TensorFlow Lite file ({type(error).__name__}: {error})"
        raise ModelFileError(str(path), reason, "get the file again") from None


def _graph(model: Any, schema: Any, labels: tuple[str, ...]) -> TfliteFile:
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    graph = model.subgraphs[0]
    quantised = tuple(_quantised(tensor) for tensor in graph.tensors)
    constants = {
        place: _numbers(tensor, model.buffers[tensor.buffer].data, quantised[place])
        for place, tensor in enumerate(graph.tensors)
        if model.buffers[tensor.buffer].data is not None and tensor.type in DTYPES
    }
    same: dict[int, int] = {}
    operators = []
    for one in graph.operators:
        code = model.operatorCodes[one.opcodeIndex]
        kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs = tuple(same.get(int(place), int(place)) for place in (() if one.inputs is None else one.inputs))
        outputs = tuple(int(place) for place in one.outputs)
        if kind in IDENTITIES:
            same[outputs[0]] = inputs[0]
            continue
        kind = code.customCode.decode() if kind == "CUSTOM" else kind
        custom = b"" if one.customOptions is None else bytes(bytearray(one.customOptions))
        operators.append(Operator(kind, inputs, outputs, one.builtinOptions, custom))
    return TfliteFile(
        operators=tuple(operators),
        inputs=tuple(int(place) for place in graph.inputs),
        outputs=tuple(same.get(int(place), int(place)) for place in graph.outputs),
        shapes=tuple(tuple(int(n) for n in ([] if t.shape is None else t.shape)) for t in graph.tensors),
        dtypes=tuple(DTYPES.get(tensor.type, "") for tensor in graph.tensors),
        quantised=quantised,
        constants=constants,
        labels=labels,
    )


def _quantised(tensor: Any) -> Quantised | None:
    rule = tensor.quantization
    if rule is None or rule.scale is None or not len(rule.scale):
        return None
    scale = np.asarray(rule.scale, np.float64)
    points = np.zeros(len(scale)) if rule.zeroPoint is None else np.asarray(rule.zeroPoint, np.float64)
    return Quantised(scale, points, int(rule.quantizedDimension))


def _numbers(tensor: Any, data: Any, rule: Quantised | None) -> NDArray[Any]:
    shape = [] if tensor.shape is None else list(tensor.shape)
    stored = np.frombuffer(bytes(bytearray(data)), DTYPES[tensor.type]).reshape(shape)
    if rule is None:
        return stored.astype(np.float32) if stored.dtype.kind == "f" else stored
    along = [1] * stored.ndim
    if len(rule.scale) > 1:
        along[rule.axis] = -1
    real: NDArray[Any] = (stored - rule.zero_point.reshape(along)) * rule.scale.reshape(along)
    return real.astype(np.float32)


def _labels(content: bytes) -> tuple[str, ...]:
    """The lines of the first text file that is packed behind the model, as TensorFlow's metadata writer does."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return ()
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        for name in packed.namelist():
            if name.endswith(".txt"):
                return tuple(line.strip() for line in packed.read(name).decode("utf-8-sig").splitlines())
    return ()
