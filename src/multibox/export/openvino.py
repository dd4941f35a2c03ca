"""Export to OpenVINO's own format, an `.xml` with a `.bin` of weights beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multibox.errors import ContractError
from multibox.export import onnx
from multibox.export.layout import Layout
from multibox.export.onnx import convert_network
from multibox.quiet import import_quietly
from multibox.spec.card import METADATA_KEY, ModelCard

__all__ = ["compose", "convert_network", "write"]


def compose(network: Any, card: ModelCard, layout: Layout) -> Any:
    """An `openvino.Model` of what `multibox.export.onnx.compose` makes.

    Raises:
        MissingDependencyError: openvino is not installed.
    """
    openvino = import_quietly("openvino", purpose="exporting to OpenVINO", extra="openvino")
    model = onnx.compose(network, card, layout)
    return openvino.Core().read_model(model.SerializeToString(deterministic=True))


def write(model: Any, path: Path, metadata: Mapping[str, str], card: ModelCard) -> None:
    """Write an `openvino.Model` in its own precision with its metadata, in `rt_info` under "multibox".

    Raises:
        ContractError: the path does not end in `.xml`.
    """
    if path.suffix != ".xml":
        raise ContractError(f"an OpenVINO file ends in .xml, got {path.name!r}")
    openvino = import_quietly("openvino", purpose="exporting to OpenVINO", extra="openvino")
    for key, value in sorted(metadata.items()):
        model.set_rt_info(value, [METADATA_KEY, key])
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, os.fspath(path), compress_to_fp16=False)
