"""Graphs as a request wants them, written in its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multibox.card import ModelCard
from multibox.export.heads import FRIGATE_LABEL_BASE, HEADS
from multibox.export.onnx import compose, export_metadata, write_onnx
from multibox.export.openvino import convert, write_openvino
from multibox.export.triton import write_triton
from multibox.verification.request import ExportRequest

__all__ = ["composed", "metadata_for", "write", "write_frigate_labels"]


def composed(network: Any, card: ModelCard, request: ExportRequest) -> Any:
    """The network with the head and the preprocessing that were asked for: a new `onnx.ModelProto`."""
    return compose(
        network,
        card,
        head=HEADS[request.head],
        batch=request.fixed_batch,
        preprocess=request.takes_pictures,
        picture_hw=request.picture_hw(card),
    )


def metadata_for(card: ModelCard, request: ExportRequest) -> dict[str, str]:
    """What the file says of itself."""
    return export_metadata(
        card,
        head=HEADS[request.head],
        batch=request.fixed_batch,
        preprocess=request.takes_pictures,
        picture_hw=request.picture_hw(card),
        precision="int8" if request.is_int8 else "float32",
    )


def write(model: Any, path: Path, card: ModelCard, request: ExportRequest) -> None:
    """Write an `onnx.ModelProto`, in float32, in the format that was asked for."""
    metadata = metadata_for(card, request)
    if request.format == "triton":
        write_triton(model, path, metadata, card)
    elif request.format == "openvino":
        write_openvino(convert(model), path, metadata)
    else:
        write_onnx(model, path, metadata)


def write_frigate_labels(path: Path, card: ModelCard) -> None:
    """The label file that goes with the head "frigate": a number and a name a line, background first."""
    rows = ["background", *card.class_map.names]
    lines = [f"{number}  {' '.join(name.split())}\n" for number, name in enumerate(rows, FRIGATE_LABEL_BASE - 1)]
    path.write_text("".join(lines), encoding="utf-8")
