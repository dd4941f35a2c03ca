"""Export to ONNX through torch's dynamo exporter."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multibox.errors import ContractError, MissingDependencyError
from multibox.export.heads import HEADS, RAW_OUTPUTS, Head, attach_head
from multibox.export.picture_input import attach_intake
from multibox.models.network import DetectionNetwork
from multibox.spec.card import METADATA_KEY, ModelCard

__all__ = ["OPSET", "compose", "export_metadata", "export_onnx", "network_graph", "write_onnx"]

OPSET = 18  # what the exporter writes without conversion
IR_VERSION = 10  # readable by ONNX Runtime from 1.18
PRODUCER = "multibox"


class _RawHead(nn.Module):
    """The last stage as two named tensors."""

    def __init__(self, detector: DetectionNetwork) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stage = self.detector(images)[-1]
        return stage.offsets, stage.logits


def export_onnx(detector: DetectionNetwork, card: ModelCard, path: Path) -> None:
    """Write a detector as an `.onnx` file with raw outputs and a free batch size.

    Input `images` [batch, 3, H, W] float32, preprocessed as the card says; outputs `offsets` [batch, A, 4] and `logits`
    [batch, A, K]. The card goes into the metadata, beside the keys other tools look for. Node and tensor names are made
    canonical, so that equal weights give equal bytes with the same versions of torch and onnxscript.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        ContractError: the path does not end in `.onnx`, or the network has several stages.
    """
    if path.suffix != ".onnx":
        raise ContractError(f"an ONNX file ends in .onnx, got {path.name!r}")
    write_onnx(network_graph(detector, card), path, _metadata(card))


def network_graph(detector: DetectionNetwork, card: ModelCard, *, batch: int | None = None) -> Any:
    """The network alone as an `onnx.ModelProto` without metadata: inputs and outputs as in `export_onnx`.

    Args:
        detector: a network of one stage.
        card: says the input size.
        batch: pictures at once; free when left out.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        ContractError: the network has several stages.
    """
    if len(detector.heads) != 1:
        raise ContractError("raw export is for one stage; a cascade's later anchors depend on its earlier stages")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(error.name or "onnx", "exporting to ONNX", "export") from None
    images = torch.zeros(batch or 2, 3, *card.preprocess.size_hw)
    wrapper = _RawHead(copy.deepcopy(detector).cpu().float()).eval()
    program = torch.onnx.export(
        wrapper,
        (images,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=list(RAW_OUTPUTS),
        dynamic_shapes=None if batch else {"images": {0: torch.export.Dim("batch", min=1)}},
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _fold_pads(model.graph)
    _make_canonical(model)
    return model


def compose(
    network: Any,
    card: ModelCard,
    *,
    head: Head,
    batch: int | None = None,
    preprocess: bool = False,
    picture_hw: tuple[int, int] | None = None,
) -> Any:
    """A network with what comes after it, and before it: a new `onnx.ModelProto`.

    Args:
        network: from `network_graph`, with the same batch; or a quantised form of it. It is not changed.
        card: of the detector; its `postprocess` is what the head does.
        head: from `HEADS`.
        batch: pictures at once; free when left out.
        preprocess: take 8-bit RGB pictures [batch, height, width, 3] in place of prepared input.
        picture_hw: their (height, width), if they all have one.
    """
    model = type(network)()
    model.CopyFrom(network)
    size: int | str = batch or "batch"
    if preprocess:
        attach_intake(model, card.preprocess, batch=size, picture_hw=picture_hw)
    attach_head(model, card, head, batch=size)
    return model


def write_onnx(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Check a model and write it with its metadata; the file appears whole or not at all."""
    import onnx

    del model.metadata_props[:]
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    partial.replace(path)


def export_metadata(
    card: ModelCard,
    *,
    head: Head,
    batch: int | None,
    preprocess: bool,
    picture_hw: tuple[int, int] | None = None,
    precision: str = "float32",
) -> dict[str, str]:
    """The card, and the keys that other runtimes' tools read (those of the ultralytics exporters among them)."""
    from multibox import __version__

    outputs = {o.name: [o.dtype, list(o.shape)] for o in head.outputs(card, batch or "batch")}
    taken = "uint8 [batch, height, width, 3]: upright RGB pictures" if preprocess else "float32 [batch, 3, H, W]"
    pictures = {} if picture_hw is None else {"picture_hw": json.dumps(list(picture_hw))}
    return (
        _metadata(card)
        | pictures
        | {
            "description": f"{card.name}: single-shot detector, head {head.name}",
            "version": __version__,
            "batch": str(batch or 1),
            "args": repr({"batch": batch or 1, "dynamic": batch is None}),
            "channels": "3",
            "head": head.name,
            "box_format": head.box_format,
            "input": taken,
            "preprocessing_inside": json.dumps(preprocess),
            "outputs": json.dumps(outputs),
            "precision": precision,
            "nms": json.dumps(card.postprocess.to_dict(), sort_keys=True),
            "nms_inside": json.dumps(head.name not in ("raw", "decoded")),
            "scores": "after softmax, background removed"
            if card.postprocess.activation == "softmax"
            else "after sigmoid",
        }
    )


def _metadata(card: ModelCard) -> dict[str, str]:
    """The card, and the keys that other runtimes' tools read."""
    return {
        METADATA_KEY: card.to_json(),
        "description": f"{card.name}: single-shot detector, raw outputs",
        "license": card.licence,
        "task": "detect",
        "stride": str(max(level["stride"] or 0 for level in card.summary["levels"])),
        "imgsz": json.dumps(list(card.preprocess.size_hw)),
        "names": repr(dict(enumerate(card.class_map.names))),
        "preprocess": json.dumps(card.preprocess.to_dict(), sort_keys=True),
        "box_format": HEADS["raw"].box_format,
        "anchors_sha256": card.anchors_sha256,
    }


def _fold_pads(graph: Any) -> None:
    """Merge a constant zero Pad into the convolution that alone reads it; SAME padding then costs no copy."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        users = readers.get(pad.output[0], [])
        value = constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
        if len(users) != 1 or users[0].op_type != "Conv" or pad.input[1] not in constants:
            continue
        if value is not None and numpy_helper.to_array(value).any():
            continue
        amounts = numpy_helper.to_array(constants[pad.input[1]]).tolist()  # begins of N, C, H, W, then ends
        if any(amounts[:2]) or any(amounts[4:6]):
            continue
        conv = users[0]
        own = next((list(a.ints) for a in conv.attribute if a.name == "pads"), [0, 0, 0, 0])
        kept = [a for a in conv.attribute if a.name not in ("pads", "auto_pad")]
        total = [a + b for a, b in zip(own, amounts[2:4] + amounts[6:8], strict=True)]
        del conv.attribute[:]
        conv.attribute.extend(sorted([*kept, helper.make_attribute("pads", total)], key=lambda a: a.name))
        conv.input[0] = pad.input[0]
        graph.node.remove(pad)


def _make_canonical(model: Any) -> None:
    """Names by position, nothing about the machine or the tool versions, no unused constants."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    fixed = {value.name for value in (*graph.input, *graph.output)}
    parameters = {tensor.name: tensor.name.removeprefix("detector.") for tensor in kept}
    renamed: dict[str, str] = {name: name for name in fixed}
    for number, node in enumerate(graph.node):
        for name in node.input:
            if name in parameters and name not in renamed:
                renamed[name] = parameters[name] if "." in parameters[name] else f"constant_{len(renamed)}"
        node.name = f"{node.op_type}_{number}"
        for slot, name in enumerate(node.output):
            renamed.setdefault(name, f"{node.op_type}_{number}_{slot}" if name else "")
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed[name] for name in node.output]
        node.doc_string = ""
        del node.metadata_props[:]
        ordered = sorted(node.attribute, key=lambda a: a.name)
        del node.attribute[:]
        node.attribute.extend(ordered)
    for tensor in kept:
        tensor.name = renamed[tensor.name]
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    del graph.initializer[:]
    graph.initializer.extend(sorted(kept, key=lambda t: t.name))
    del graph.value_info[:]
    graph.name, graph.doc_string = PRODUCER, ""
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.metadata_props[:]
    del model.functions[:]
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = PRODUCER, "", ""
    model.ir_version = IR_VERSION
