"""Graphs as a request wants them, written in its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multibox.export.heads import FRIGATE_LABEL_BASE, HEADS
from multibox.export.litert import compose_litert, litert_metadata, litert_network, write_litert
from multibox.export.onnx import compose, export_metadata, network_graph, write_onnx
from multibox.export.openvino import convert, write_openvino
from multibox.export.request import ExportRequest
from multibox.export.triton import write_triton
from multibox.spec.card import ModelCard

__all__ = ["composed", "metadata_for", "network_for", "write", "write_frigate_labels"]


def network_for(detector: Any, card: ModelCard, request: ExportRequest) -> Any:
    """The network alone, in the form that heads and quantisation of the format start from."""
    if request.is_litert:
        return litert_network(detector, card, batch=request.fixed_batch or 1)
    return network_graph(detector, card, batch=request.fixed_batch)


def composed(network: Any, card: ModelCard, request: ExportRequest) -> Any:
    """The network of `network_for`, or a quantised form, with the head and the preprocessing that were asked for."""
    if request.is_litert:
        return compose_litert(
            network,
            card,
            head=HEADS[request.head],
            batch=request.fixed_batch or 1,
            preprocess=request.takes_pictures,
        )
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
    precision = "int8" if request.is_int8 else "float32"
    head, preprocess = HEADS[request.head], request.takes_pictures
    if request.is_litert:
        batch = request.fixed_batch or 1
        return litert_metadata(card, head=head, batch=batch, preprocess=preprocess, precision=precision)
    return export_metadata(
        card,
        head=head,
        batch=request.fixed_batch,
        preprocess=preprocess,
        picture_hw=request.picture_hw(card),
        precision=precision,
    )


def write(model: Any, path: Path, card: ModelCard, request: ExportRequest) -> None:
    """Write what `composed` made, in float32, in the format that was asked for."""
    metadata = metadata_for(card, request)
    if request.is_litert:
        write_litert(model, path, metadata)
    elif request.format == "triton":
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
