"""Export to ONNX through torch's dynamo exporter."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnxscript import GraphBuilder, ir

from multibox.errors import ContractError
from multibox.export.heads import RAW_OUTPUTS
from multibox.export.layout import INPUT, Layout, metadata_of
from multibox.export.onnx_heads import attach_head
from multibox.export.onnx_input import attach_pictures
from multibox.files import atomic_write
from multibox.models.folded import FoldedNetwork
from multibox.models.network import DetectionNetwork
from multibox.spec.card import ModelCard

__all__ = ["OPSET", "compose", "convert_network", "export_onnx", "write", "write_onnx"]

OPSET = 18  # what the exporter writes without conversion
IR_VERSION = 10  # readable by ONNX Runtime from 1.18
PRODUCER = "multibox"


def export_onnx(detector: DetectionNetwork, card: ModelCard, path: Path) -> None:
    """Write a detector as an `.onnx` file with raw outputs and a free batch size.

    Input `images` [batch, 3, H, W] float32, preprocessed as the card says; outputs `offsets` [batch, A, 4] and `logits`
    [batch, A, K]. The card goes into the metadata, beside the keys other tools look for. Node and tensor names are made
    canonical, so that equal weights give equal bytes with the same versions of torch and onnxscript.

    Raises:
        ContractError: the path does not end in `.onnx`.
    """
    if path.suffix != ".onnx":
        raise ContractError(f"an ONNX file ends in .onnx, got {path.name!r}")
    write_onnx(convert_network(detector, card), path, metadata_of(card))


def convert_network(detector: DetectionNetwork, card: ModelCard, *, batch: int | None = None) -> onnx.ModelProto:
    """The network alone without metadata: inputs and outputs as in `export_onnx`.

    Args:
        detector: a network; several stages are folded into one.
        card: says the input size.
        batch: has no effect here: the batch is free until `compose` fixes it.
    """
    program = torch.onnx.export(
        FoldedNetwork(copy.deepcopy(detector).cpu().float()).eval(),
        (torch.zeros(2, 3, *card.preprocess.size_hw),),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(RAW_OUTPUTS),
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        verbose=False,
    )
    assert program is not None
    model = program.model
    RemoveUnusedNodesPass()(model)
    _name_by_position(model.graph)
    return _to_proto(model)


def _name_by_position(graph: Any) -> None:
    """Names that say nothing of the exporting machine or of the versions of its tools."""
    constants = 0
    for value in list(graph.initializers.values()):
        parameter = str(value.name).removeprefix("network.")
        value.name = parameter if "." in parameter else f"constant_{constants}"
        constants += "." not in parameter
    for number, node in enumerate(graph):
        node.name = f"{node.op_type}_{number}"
        for slot, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}_{slot}"


def _to_proto(model: Any) -> onnx.ModelProto:
    """Without descriptions, which hold paths of the exporting machine, and without shapes that can be inferred."""
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.functions.clear()
    model.producer_name, model.producer_version, model.doc_string, model.graph.name = PRODUCER, None, None, PRODUCER
    model.ir_version = IR_VERSION
    proto: onnx.ModelProto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto


def compose(network: onnx.ModelProto, card: ModelCard, layout: Layout) -> onnx.ModelProto:
    """A network, or a quantised form of it, with what comes after it and before it: a new model."""
    model = ir.from_proto(network)
    builder = GraphBuilder(model.graph)
    batch = layout.batch or "batch"
    model.graph.inputs[0].shape = ir.Shape([batch, 3, *card.preprocess.size_hw])
    if layout.preprocess:
        attach_pictures(builder, card.preprocess, batch=batch, picture_hw=layout.picture_hw)
    attach_head(builder, card, layout.head, batch=batch)
    return _to_proto(model)


def write(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str], card: ModelCard) -> None:
    """See `multibox.export.formats.Writer`."""
    write_onnx(model, path, metadata)


def write_onnx(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Check a model and write it with its metadata; the file appears whole or not at all."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, model.SerializeToString(deterministic=True))
