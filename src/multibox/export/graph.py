"""Writing ONNX nodes after (or before) a network that is already a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GraphWriter"]


class GraphWriter:
    """Adds nodes and constants to an ONNX graph, with names by position, so that equal input gives equal bytes.

    Args:
        model: an `onnx.ModelProto`; it is changed.
        scope: first part of every name.
    """

    def __init__(self, model: Any, scope: str) -> None:
        self.graph = model.graph
        self.scope = scope
        self.nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Name of an initializer with this value; equal ones are written once."""
        from onnx import numpy_helper

        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.scope}.constant_{len(self._constants)}"
            self.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            )
            self._constants[key] = name
        return self._constants[key]

    def floats(self, *values: float) -> str:
        """A float32 vector."""
        return self.constant(np.array(values, np.float32))

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; its name."""
        return self.ops(kind, *inputs, outputs=1 if output is None else [output], **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int | list[str], **attributes: Any) -> list[str]:
        """Add a node with several outputs, named or counted; their names."""
        from onnx import helper

        name = f"{self.scope}.{kind}_{len(self.nodes)}"
        names = outputs if isinstance(outputs, list) else [f"{name}_{slot}" for slot in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **dict(sorted(attributes.items()))))
        return names

    def cast(self, value: str, to: str) -> str:
        """A value as "float32", "int64" …"""
        from onnx import helper

        return self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))

    def append(self) -> None:
        """Put the nodes after those of the graph."""
        self.graph.node.extend(self.nodes)

    def prepend(self) -> None:
        """Put the nodes before those of the graph."""
        kept = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*self.nodes, *kept])
