"""A model of a Triton repository, run as the server's ONNX Runtime backend runs it: by its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.export.triton import (
    CONFIG,
    DATA_TYPES,
    LABELS,
    MODEL,
    PREFIX,
    read_config,
    triton_parameters,
)
from multibox.spec.card import ModelCard

__all__ = ["Repository"]

ELEMENTS = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64", "tensor(uint8)": "TYPE_UINT8"}
NUMPY = {declared: name for name, declared in DATA_TYPES.items()}


class Repository:
    """Feeds a session by names, dims and types of `config.pbtxt`, and gives its outputs the shapes declared there.

    Args:
        folder: of the model, with the configuration as it was written.
        session: the ONNX Runtime session of its `MODEL`.
        further: outputs that were added to look inside, which the configuration knows nothing of.

    Raises:
        OSError, ValueError: the configuration cannot be read.
    """

    def __init__(self, folder: Path, session: Any, *, further: Sequence[str] = ()) -> None:
        self._folder = folder
        self._session = session
        self._config = read_config(folder)
        self._further = set(further)
        self._inputs = {tensor.name: tensor for tensor in self._config.input}
        self._outputs = {tensor.name: tensor for tensor in self._config.output}

    def faults(self, card: ModelCard) -> list[str]:
        """What Triton would refuse to load, and what the files say of the classes that is not so; a line each."""
        config = self._config
        found = []
        if config.name != self._folder.name:
            found.append(f"the name is {config.name!r}, the folder's {self._folder.name!r}")
        if config.backend != "onnxruntime":
            found.append(f"the backend is {config.backend!r} instead of 'onnxruntime'")
        if config.default_model_filename != Path(MODEL).name:
            found.append(f"there is no model file {config.default_model_filename!r}")
        if config.HasField("dynamic_batching") and config.max_batch_size < 1:
            found.append("dynamic batching needs a max_batch_size from 1")
        for what, declared, present in (
            ("input", self._inputs, self._session.get_inputs()),
            ("output", self._outputs, self._session.get_outputs()),
        ):
            found += self._unlike(what, declared, {tensor.name: tensor for tensor in present})
        parameters = triton_parameters(config)
        said = parameters.get(f"{PREFIX}class_names")
        if said is None or json.loads(said) != list(card.class_map.names):
            found.append("the parameter class_names does not hold the model's classes")
        if json.loads(parameters.get(f"{PREFIX}preprocess", "null")) != card.preprocess.to_dict():
            found.append("the parameter preprocess is not the model's preprocessing")
        lines = [f"{CONFIG}: {line}" for line in found]
        if (self._folder / LABELS).read_text(encoding="utf-8") != "".join(f"{name}\n" for name in card.class_map.names):
            lines.append(f"{LABELS}: other classes than the model's")
        return lines

    def _unlike(self, what: str, declared: dict[str, Any], present: dict[str, Any]) -> list[str]:
        missing = sorted(set(present) - set(declared) - self._further)
        lines = [f"{what} {name!r} of the model is not declared" for name in missing]
        for name, tensor in declared.items():
            if name not in present:
                lines.append(f"the model has no {what} {name!r}")
                continue
            shape = [size if isinstance(size, int) else -1 for size in present[name].shape]
            given = (ELEMENTS.get(present[name].type, present[name].type), shape)
            said = (_type(tensor), [*self._batch, *_inside(tensor)])
            if given != said:
                lines.append(f"{what} {name!r} is {given[0]} {given[1]} in the model, declared is {said[0]} {said[1]}")
        return lines

    @property
    def _batch(self) -> list[int]:
        return [-1] if self._config.max_batch_size else []

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every output by name, in its declared shape.

        Raises:
            ValueError: the configuration would not let these pictures in, or these outputs out.
        """
        ((name, tensor),) = self._inputs.items()
        if self._config.max_batch_size and len(images) > self._config.max_batch_size:
            raise ValueError(f"{len(images)} pictures, but max_batch_size is {self._config.max_batch_size}")
        self._require(name, tensor, images)
        within = (*images.shape[: len(self._batch)], *_inside(tensor)) if tensor.HasField("reshape") else images.shape
        names = [output.name for output in self._session.get_outputs()]
        out: dict[str, NDArray[Any]] = dict(
            zip(names, self._session.run(names, {name: images.reshape(within)}), strict=True)
        )
        for name, tensor in self._outputs.items():
            if tensor.HasField("reshape"):
                out[name] = out[name].reshape(*out[name].shape[: len(self._batch)], *tensor.dims)
            self._require(name, tensor, out[name])
        return out

    def _require(self, name: str, tensor: Any, value: NDArray[Any]) -> None:
        declared = [*self._batch, *tensor.dims]
        fits = len(declared) == value.ndim and all(d in (-1, s) for d, s in zip(declared, value.shape, strict=True))
        if not fits or value.dtype != np.dtype(NUMPY[_type(tensor)]):
            raise ValueError(
                f"{CONFIG} declares {name!r} as {_type(tensor)} {declared}, it is {value.dtype} {list(value.shape)}"
            )


def _type(tensor: Any) -> str:
    kinds = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type
    return str(kinds.values_by_number[tensor.data_type].name)


def _inside(tensor: Any) -> list[int]:
    """Dims as the model has them."""
    return list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
