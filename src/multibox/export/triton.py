"""Export to a model of NVIDIA Triton's repository, which KServe's Triton runtime serves too.

A model is a folder NAME: `config.pbtxt`, `1/model.onnx` and `labels.txt`. The configuration is a `ModelConfig` of
Triton's `model_config.proto` in protobuf's text format.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multibox.errors import ContractError, OptionError
from multibox.export.onnx import compose, convert_network, write_onnx
from multibox.spec.card import ModelCard

__all__ = ["CONFIG", "LABELS", "MAX_BATCH", "MODEL", "compose", "convert_network", "faults", "require_free", "write"]

CONFIG, LABELS, MODEL = "config.pbtxt", "labels.txt", "1/model.onnx"
MAX_BATCH = 8  # pictures that Triton puts together at most where the batch is free; a number to edit
PREFIX = "multibox."  # of our parameters' names; the backend has options among the others
DATA_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}
RUNTIME_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64", "tensor(uint8)": "TYPE_UINT8"}
COPIED = ("head", "box_format", "input", "preprocess", "preprocessing_inside", "scores", "nms", "nms_inside", "version")

_TEMPLATE = """\
name: {name}
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {max_batch}
version_policy {{
  latest {{
    num_versions: 1
  }}
}}
{batching}{tensors}{parameters}"""
_TENSOR = """\
{kind} {{
  name: {name}
  data_type: {data_type}
  dims: [{dims}]
{more}}}
"""
_PARAMETER = """\
parameters {{
  key: {key}
  value {{
    string_value: {value}
  }}
}}
"""
_DECLARED = re.compile(
    r"^(input|output) \{\n  name: \"(.*)\"\n  data_type: (\w+)\n  dims: \[(.*)\]\n(  reshape \{)?", re.M
)


def write(model: Any, folder: Path, metadata: Mapping[str, str], card: ModelCard) -> None:
    """Write an `onnx.ModelProto` as a model of a Triton repository; the folder appears whole or not at all.

    A free batch becomes `max_batch_size` `MAX_BATCH` with dynamic batching, and the batch is not among the dims. A
    fixed batch becomes `max_batch_size` 0, and the dims are the whole shapes.

    Args:
        model: with tensors of the types in `DATA_TYPES`.
        folder: its name is the model's name. One that an export made is replaced.
        metadata: they go into the ONNX file, and those that a client needs into the parameters.
        card: names the classes.

    Raises:
        OptionError: something else lies where the folder should be.
        ContractError: the batch is free, but not the first dimension of every input and output.
    """
    require_free(folder)
    config = _config(model, folder.name, metadata, card)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        made = Path(work) / "new"
        write_onnx(model, made / MODEL, metadata)
        (made / CONFIG).write_text(config, encoding="utf-8")
        (made / LABELS).write_text(_labels(card), encoding="utf-8")
        if folder.exists():
            folder.rename(Path(work) / "old")
        made.rename(folder)


def require_free(folder: Path) -> None:
    """Make sure that a folder may be written: there is nothing, or what an earlier export wrote and nothing besides.

    Raises:
        OptionError: there is something else.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_symlink() and folder.is_dir():
        inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        if inside == {CONFIG, LABELS, MODEL, str(Path(MODEL).parent)}:
            text = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
            if f'key: "{PREFIX}head"' in text:
                return
    raise OptionError(f"{folder} exists and is not an unchanged export of ours; move it away, or give output=NAME")


def faults(folder: Path, session: Any, card: ModelCard) -> list[str]:
    """Where the written configuration and labels contradict the model beside them; a line each.

    Args:
        folder: of the model.
        session: of ONNX Runtime, which says what the model's inputs and outputs are.
        card: of the model.
    """
    text = (folder / CONFIG).read_text(encoding="utf-8")
    batch = [-1] if "\ndynamic_batching" in text else []
    declared = {}
    for kind, name, data_type, dims, reshape in _DECLARED.findall(text):
        shape = [] if reshape else [int(side) for side in dims.split(", ")]
        declared[kind, name] = data_type, [*batch, *shape]
    there = {
        (kind, tensor.name): (
            RUNTIME_TYPES.get(tensor.type, tensor.type),
            [side if isinstance(side, int) else -1 for side in tensor.shape],
        )
        for kind, tensors in (("input", session.get_inputs()), ("output", session.get_outputs()))
        for tensor in tensors
    }
    lines = [f"{CONFIG}: the model has no {kind} {name!r}" for kind, name in declared if (kind, name) not in there]
    for (kind, name), (data_type, shape) in there.items():
        if (kind, name) not in declared:
            lines.append(f"{CONFIG}: {kind} {name!r} of the model is not declared")
        elif declared[kind, name] != (data_type, shape):
            said, dims = declared[kind, name]
            lines.append(f"{CONFIG}: {kind} {name!r} is {data_type} {shape} in the model, declared is {said} {dims}")
    if _PARAMETER.format(key=_quoted(f"{PREFIX}class_names"), value=_class_names(card)) not in text:
        lines.append(f"{CONFIG}: the parameter class_names does not hold the model's classes")
    if (folder / LABELS).read_text(encoding="utf-8") != _labels(card):
        lines.append(f"{LABELS}: other classes than the model's")
    return lines


def _config(model: Any, name: str, metadata: Mapping[str, str], card: ModelCard) -> str:
    free = not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    tensors = [
        _tensor(kind, value, free=free)
        for kind, values in (("input", model.graph.input), ("output", model.graph.output))
        for value in values
    ]
    values = {key: _quoted(metadata[key]) for key in COPIED} | {
        "class_names": _class_names(card),
        "labels": _quoted(LABELS),
    }
    return _TEMPLATE.format(
        name=_quoted(name),  # so that Triton loads it from no folder of another name, such as that of a refused export
        max_batch=MAX_BATCH if free else 0,
        batching="dynamic_batching {\n}\n" if free else "",
        tensors="".join(tensors),
        parameters="".join(
            _PARAMETER.format(key=_quoted(PREFIX + key), value=value) for key, value in sorted(values.items())
        ),
    )


def _tensor(kind: str, value: Any, *, free: bool) -> str:
    """The declaration of an input or output of an ONNX graph; `free`: whether the batch is left out of its dims."""
    from onnx import helper

    found = value.type.tensor_type
    dims = [side.dim_value if side.HasField("dim_value") else -1 for side in found.shape.dim]
    if free and dims[:1] != [-1]:
        raise ContractError(
            f"{value.name!r} has no free batch as its first dimension, but the input has, and Triton wants it in all; "
            "fix it with batch=N"
        )
    inside: Sequence[int] = dims[1:] if free else dims
    more = "" if inside else "  reshape {\n  }\n"  # a number for each picture; Triton allows no empty dims
    if value.name == "scores":  # Triton's classification takes a place in the output for the class
        more += f"  label_filename: {_quoted(LABELS)}\n"
    data_type = DATA_TYPES[np.dtype(helper.tensor_dtype_to_np_dtype(found.elem_type)).name]
    listed = ", ".join(map(str, inside or [1]))
    return _TENSOR.format(kind=kind, name=_quoted(value.name), data_type=data_type, dims=listed, more=more)


def _class_names(card: ModelCard) -> str:
    return _quoted(json.dumps(list(card.class_map.names), ensure_ascii=False))


def _labels(card: ModelCard) -> str:
    return "".join(f"{name}\n" for name in card.class_map.names)


def _quoted(text: str) -> str:
    """A string of protobuf's text format, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
