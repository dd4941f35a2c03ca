"""Export to a model of NVIDIA Triton's repository, which KServe's Triton runtime serves too.

A model is a folder NAME: `config.pbtxt`, `1/model.onnx` and `labels.txt`. The configuration is a `ModelConfig` of
Triton's `model_config.proto` in protobuf's text format; `_MESSAGES` describes the part of it that is written here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from multibox.errors import ContractError, OptionError
from multibox.export.onnx import write_onnx
from multibox.spec.card import ModelCard

__all__ = [
    "CONFIG",
    "DATA_TYPES",
    "LABELS",
    "MAX_BATCH",
    "MODEL",
    "PREFIX",
    "read_config",
    "require_free",
    "triton_parameters",
    "write_triton",
]

CONFIG, LABELS, MODEL = "config.pbtxt", "labels.txt", "1/model.onnx"
MAX_BATCH = 8  # pictures that Triton puts together at most where the batch is free; a number to edit
PREFIX = "multibox."  # of our parameters' names; the backend has options among the others
DATA_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}
COPIED = ("head", "box_format", "input", "preprocess", "preprocessing_inside", "scores", "nms", "nms_inside", "version")

_ENUMS = {"DataType": {"TYPE_UINT8": 2, "TYPE_INT64": 9, "TYPE_FP32": 11}}
_MESSAGES = {  # fields in the order in which they are written; a star: repeated
    "Reshape": {"shape": "int64*"},
    "Input": {"name": "string", "data_type": "DataType", "dims": "int64*", "reshape": "Reshape"},
    "Output": {
        "name": "string",
        "data_type": "DataType",
        "dims": "int64*",
        "reshape": "Reshape",
        "label_filename": "string",
    },
    "Latest": {"num_versions": "uint32"},
    "VersionPolicy": {"latest": "Latest"},
    "DynamicBatching": {},
    "Parameter": {"string_value": "string"},
    "ParametersEntry": {"key": "string", "value": "Parameter"},
    "ModelConfig": {
        "name": "string",
        "backend": "string",
        "default_model_filename": "string",
        "max_batch_size": "int32",
        "version_policy": "VersionPolicy",
        "dynamic_batching": "DynamicBatching",
        "input": "Input*",
        "output": "Output*",
        "parameters": "ParametersEntry*",
    },
}


def write_triton(model: Any, folder: Path, metadata: Mapping[str, str], card: ModelCard) -> None:
    """Write an `onnx.ModelProto` as a model of a Triton repository; the folder appears whole or not at all.

    A free batch becomes `max_batch_size` `MAX_BATCH` with dynamic batching, and the batch is not among the dims. A
    fixed batch becomes `max_batch_size` 0, and the dims are the whole shapes.

    Args:
        model: with tensors of the types in `DATA_TYPES`.
        folder: its name is the model's name. One that an export made is replaced.
        metadata: of `export_metadata`; they go into the ONNX file, and those that a client needs into the parameters.
        card: names the classes.

    Raises:
        OptionError: something else lies where the folder should be.
        ContractError: the batch is free, but not the first dimension of every input and output.
    """
    from google.protobuf import text_format

    require_free(folder)
    config = _config(model, folder.name, metadata, card)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        made = Path(work) / "new"
        write_onnx(model, made / MODEL, metadata)
        text = text_format.MessageToString(config, as_utf8=True, use_short_repeated_primitives=True)
        (made / CONFIG).write_text(text, encoding="utf-8")
        (made / LABELS).write_text("".join(f"{name}\n" for name in card.class_map.names), encoding="utf-8")
        if folder.exists():
            folder.rename(Path(work) / "old")
        made.rename(folder)


def read_config(folder: Path, *, strict: bool = True) -> Any:
    """The `config.pbtxt` of a folder as a message with the fields of `ModelConfig` that are written here.

    Args:
        folder: of the model.
        strict: refuse fields that are never written here; else they are passed over.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such configuration.
    """
    from google.protobuf import text_format

    text = (folder / CONFIG).read_text(encoding="utf-8")
    try:
        return text_format.Parse(text, _message("ModelConfig")(), allow_unknown_field=not strict)
    except text_format.ParseError as error:
        raise ValueError(f"{CONFIG}: {error}") from None


def require_free(folder: Path) -> None:
    """Make sure that a folder may be written: there is nothing, or what an earlier export wrote and nothing besides.

    Raises:
        OptionError: there is something else.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_symlink() and folder.is_dir():
        inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        if inside == {CONFIG, LABELS, MODEL, str(Path(MODEL).parent)} and _is_ours(folder):
            return
    raise OptionError(f"{folder} exists and is not an unchanged export of ours; move it away, or give output=NAME")


def _is_ours(folder: Path) -> bool:
    try:
        config = read_config(folder, strict=False)
    except (OSError, ValueError):
        return False
    return f"{PREFIX}head" in triton_parameters(config)


def triton_parameters(config: Any) -> dict[str, str]:
    """The parameters of a configuration by name."""
    return {entry.key: entry.value.string_value for entry in config.parameters}


def _config(model: Any, name: str, metadata: Mapping[str, str], card: ModelCard) -> Any:
    inputs = [_tensor(value) for value in model.graph.input]
    outputs = [_tensor(value) for value in model.graph.output]
    free = inputs[0][2][0] == -1
    config = _message("ModelConfig")(
        name=name,  # so that Triton loads it from no folder of another name, such as that of a refused export
        backend="onnxruntime",
        default_model_filename=Path(MODEL).name,
        max_batch_size=MAX_BATCH if free else 0,
    )
    config.version_policy.latest.num_versions = 1
    if free:
        config.dynamic_batching.SetInParent()
    for kind, tensors in ((config.input, inputs), (config.output, outputs)):
        for tensor in tensors:
            _declare(kind.add(), *tensor, free=free)
    for output in config.output:
        if output.name == "scores":  # Triton's classification takes a place in the output for the class
            output.label_filename = LABELS
    values = {key: metadata[key] for key in COPIED} | {
        "class_names": json.dumps(list(card.class_map.names), ensure_ascii=False),
        "labels": LABELS,
    }
    for key, value in sorted(values.items()):
        config.parameters.add(key=PREFIX + key).value.string_value = value
    return config


def _tensor(value: Any) -> tuple[str, str, list[int]]:
    """Name, data type and whole shape (−1 where free) of an input or output of an ONNX graph."""
    from onnx import helper

    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return value.name, DATA_TYPES[dtype], [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]


def _declare(field: Any, name: str, data_type: str, shape: Sequence[int], *, free: bool) -> None:
    if free and (not shape or shape[0] != -1):
        raise ContractError(
            f"{name!r} has no free batch as its first dimension, but the input has, and Triton wants it in all; "
            "fix it with batch=N"
        )
    dims = list(shape[1:] if free else shape)
    field.name = name
    field.data_type = _ENUMS["DataType"][data_type]
    field.dims.extend(dims or [1])
    if not dims:  # a number for each picture; Triton allows no empty dims
        field.reshape.SetInParent()


@cache
def _message(name: str) -> Any:
    """The class of a message of `_MESSAGES`. Field numbers are ours: the text format does not show them."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="multibox_triton.proto", package="multibox_triton", syntax="proto2")
    for enum, values in _ENUMS.items():
        made = file.enum_type.add(name=enum)
        for value, number in values.items():
            made.value.add(name=value, number=number)
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, (field, kind) in enumerate(fields.items(), 1):
            plain = kind.removesuffix("*")
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            entry = described.field.add(name=field, number=number, label=label)
            if plain in _ENUMS or plain in _MESSAGES:
                entry.type = kinds.TYPE_ENUM if plain in _ENUMS else kinds.TYPE_MESSAGE
                entry.type_name = f".{file.package}.{plain}"
            else:
                entry.type = getattr(kinds, f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
