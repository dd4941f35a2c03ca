"""Writing TensorFlow Lite operators before and after a network that is already a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.quiet import import_quietly

__all__ = ["EXTRA", "LitertGraph", "schema"]

EXTRA = "litert"
ALIGNMENT = 16  # bytes, of a buffer
PLACEHOLDER = 127  # in the old field of an operator's number, where the number does not fit
OPTIONS: Mapping[str, str] = {
    "ADD": "AddOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "EXP": "ExpOptions",
    "GATHER": "GatherOptions",
    "GREATER_EQUAL": "GreaterEqualOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MUL": "MulOptions",
    "PADV2": "PadV2Options",
    "SLICE": "SliceOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SUB": "SubOptions",
    "TOPK_V2": "TopKV2Options",
    "TRANSPOSE": "TransposeOptions",
}
Output = tuple[str | None, str, Sequence[int]]  # name, type and shape
TYPES = {"float32": "FLOAT32", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}


def schema() -> Any:
    """The Python classes of TensorFlow Lite's file format.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
    """
    return import_quietly("ai_edge_litert.schema_py_generated", purpose="exporting to LiteRT", extra=EXTRA)


class LitertGraph:
    """A `.tflite` model of one subgraph that can be added to; tensors are known by their number.

    Args:
        content: the file's bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._schema = schema()
        self.model = self._schema.ModelT.InitFromPackedBuf(content, 0)
        for buffer in self.model.buffers:  # some writers put the values behind the flatbuffer
            if buffer.offset:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
                buffer.offset = buffer.size = 0
        self.graph = self.model.subgraphs[0]
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def content(self) -> bytes:
        """The file's bytes."""
        import flatbuffers

        class Aligned(flatbuffers.Builder):  # type: ignore[misc]
            """The format's schema wants the values of tensors aligned, which Python's classes leave out."""

            def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
                return super().StartVector(elemSize, numElems, ALIGNMENT if elemSize == 1 else alignment)

        builder = Aligned(1 << 20)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def find(self, name: str) -> int:
        """Number of the tensor with a name; LookupError without one."""
        return next(i for i, tensor in enumerate(self.graph.tensors) if tensor.name == name.encode())

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Of a tensor."""
        found = self.graph.tensors[tensor].shape
        return () if found is None else tuple(int(side) for side in found)

    def kind(self, operator: Any) -> str:
        """An operator's name in capitals, such as CONV_2D."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        names = vars(self._schema.BuiltinOperator)
        return next(str(name) for name, value in names.items() if value == number)

    def behind(self, tensor: int) -> set[int]:
        """Every tensor that a tensor is computed from, and itself."""
        makers = {int(output): operator for operator in self.graph.operators for output in operator.outputs}
        found, waiting = set(), [tensor]
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += [int(read) for read in makers[number].inputs] if number in makers else []
        return found

    def constant(self, value: NDArray[Any] | np.generic) -> int:
        """A tensor with this value; equal ones are written once."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            made = self.tensor(f"constant_{len(self._constants)}", str(array.dtype), array.shape)
            self.graph.tensors[made].buffer = self._buffer(array.tobytes())
            self._constants[key] = made
        return self._constants[key]

    def ints(self, *values: int) -> int:
        """An int32 vector."""
        return self.constant(np.array(values, np.int32))

    def tensor(self, name: str, dtype: str, shape: Sequence[int]) -> int:
        """A new tensor without a value."""
        made = self._schema.TensorT()
        made.name = name.encode()
        made.type = getattr(self._schema.TensorType, TYPES[dtype])
        made.shape = [int(side) for side in shape]
        made.buffer = self._buffer(None)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def op(
        self,
        kind: str,
        *inputs: int,
        shape: Sequence[int] | None = None,
        name: str | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> int:
        """Add a built-in operator with one output; the output.

        Args:
            kind: such as MUL.
            inputs: tensors.
            shape: of the output; that of the inputs, broadcast, when left out.
            name: of the output.
            dtype: of the output.
            options: fields of the operator's options.
        """
        made = np.broadcast_shapes(*map(self.shape, inputs)) if shape is None else shape
        return self.ops(kind, *inputs, outputs=[(name, dtype, made)], **options)[0]

    def part(self, value: int, start: Sequence[int], shape: Sequence[int], name: str | None = None) -> int:
        """The part of a tensor that begins at `start`."""
        return self.op("SLICE", value, self.ints(*start), self.ints(*shape), shape=shape, name=name)

    def ops(self, kind: str, *inputs: int, outputs: Sequence[Output], **options: Any) -> list[int]:
        """Add a built-in operator; its outputs, each given by name, type and shape."""
        operator = self._operator(getattr(self._schema.BuiltinOperator, kind), None)
        if kind in OPTIONS:
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, OPTIONS[kind])
            operator.builtinOptions = getattr(self._schema, OPTIONS[kind] + "T")()
            for key, value in options.items():
                setattr(operator.builtinOptions, key, value)
        return self._added(operator, kind, inputs, outputs)

    def custom(self, code: str, options: bytes, *inputs: int, outputs: Sequence[Output]) -> list[int]:
        """Add an operator by its custom code, with options as it reads them; its outputs."""
        operator = self._operator(self._schema.BuiltinOperator.CUSTOM, code.encode())
        operator.customOptions = np.frombuffer(options, np.uint8)
        return self._added(operator, code, inputs, outputs)

    def _operator(self, number: int, custom_code: bytes | None) -> Any:
        codes = self.model.operatorCodes
        known = [(max(code.builtinCode, code.deprecatedBuiltinCode), code.customCode) for code in codes]
        if (number, custom_code) not in known:
            code = self._schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode = number, min(number, PLACEHOLDER)
            code.customCode, code.version = custom_code, 1
            codes.append(code)
            known.append((number, custom_code))
        operator = self._schema.OperatorT()
        operator.opcodeIndex = known.index((number, custom_code))
        return operator

    def _added(self, operator: Any, kind: str, inputs: Sequence[int], outputs: Sequence[Output]) -> list[int]:
        number = len(self.graph.operators)
        made = [
            self.tensor(name or f"{kind}_{number}_{slot}", dtype, shape)
            for slot, (name, dtype, shape) in enumerate(outputs)
        ]
        operator.inputs, operator.outputs = list(inputs), list(made)
        self.graph.operators.append(operator)
        return made

    def set_outputs(self, outputs: Sequence[int]) -> None:
        """Make these tensors what the model returns, under their own names."""
        self.graph.outputs = list(outputs)
        self.model.signatureDefs[0].outputs = [self._named(tensor) for tensor in outputs]

    def show(self, names: Sequence[str]) -> None:
        """Return these tensors, those of them that there are, besides the outputs."""
        numbers = {tensor.name.decode(): number for number, tensor in enumerate(self.graph.tensors)}
        shown = [int(number) for number in self.graph.outputs]
        inside = [numbers[name] for name in names if name in numbers and numbers[name] not in shown]
        self.graph.outputs = [*shown, *inside]

    def set_input(self, tensor: int) -> None:
        """Make this tensor what the model takes, under its own name."""
        self.graph.inputs = [tensor]
        self.model.signatureDefs[0].inputs = [self._named(tensor)]

    def _named(self, tensor: int) -> Any:
        entry = self._schema.TensorMapT()
        entry.name, entry.tensorIndex = self.graph.tensors[tensor].name, tensor
        return entry

    def move_to_front(self, first: int) -> None:
        """Put the operators from number `first` on before all others."""
        operators = self.graph.operators
        self.graph.operators = operators[first:] + operators[:first]

    def set_metadata(self, name: str, text: str) -> None:
        """Keep a text under a name; what others wrote there is dropped."""
        entry = self._schema.MetadataT()
        entry.name, entry.buffer = name.encode(), self._buffer(text.encode())
        self.model.metadata = [other for other in self.model.metadata or [] if other.name != entry.name] + [entry]

    def _buffer(self, content: bytes | None) -> int:
        buffer = self._schema.BufferT()
        buffer.data = None if content is None else np.frombuffer(content, np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1
