"""Export to OpenVINO's own format, an `.xml` with a `.bin` of weights beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multibox.errors import ContractError
from multibox.quiet import import_quietly
from multibox.spec.card import METADATA_KEY

__all__ = ["convert", "write_openvino"]


def convert(model: Any) -> Any:
    """An `openvino.Model` from an `onnx.ModelProto`.

    Raises:
        MissingDependencyError: openvino is not installed.
    """
    openvino = import_quietly("openvino", purpose="exporting to OpenVINO", extra="openvino")
    return openvino.Core().read_model(model.SerializeToString(deterministic=True))


def write_openvino(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an `openvino.Model` in full precision with its metadata, in `rt_info` under "multibox".

    Both files appear whole or not at all, the weights first.

    Raises:
        ContractError: the path does not end in `.xml`.
    """
    if path.suffix != ".xml":
        raise ContractError(f"an OpenVINO file ends in .xml, got {path.name!r}")
    openvino = import_quietly("openvino", purpose="exporting to OpenVINO", extra="openvino")
    for key, value in sorted(metadata.items()):
        model.set_rt_info(value, [METADATA_KEY, key])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial.xml")
    openvino.save_model(model, os.fspath(partial), compress_to_fp16=False)
    partial.with_suffix(".bin").replace(path.with_suffix(".bin"))
    partial.replace(path)
