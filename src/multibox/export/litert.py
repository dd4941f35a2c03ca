"""Export to LiteRT (TensorFlow Lite): a `.tflite` file, by the converter litert-torch.

The file's one input `images` is [batch, height, width, 3], the layout that programs around TensorFlow Lite deliver,
and its batch is fixed, as all shapes of the format are.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from multibox.errors import ContractError
from multibox.export.heads import RAW_OUTPUTS
from multibox.export.layout import INPUT, NETWORK_INPUT, Layout
from multibox.export.litert_graph import EXTRA, LitertGraph
from multibox.export.litert_heads import WRITERS
from multibox.files import atomic_write
from multibox.models.folded import FoldedNetwork
from multibox.models.network import DetectionNetwork
from multibox.quiet import import_quietly, silenced
from multibox.spec.card import METADATA_KEY, ModelCard
from multibox.spec.preprocess import Preprocess

__all__ = ["compose", "convert_network", "write"]


class _ChannelsLast(nn.Module):
    """The folded stage by name, from pictures [B, H, W, 3]."""

    def __init__(self, detector: DetectionNetwork) -> None:
        super().__init__()
        self.folded = FoldedNetwork(detector)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stage = self.folded(images.permute(0, 3, 1, 2))
        return {"offsets": stage.offsets, "logits": stage.logits}


def convert_network(detector: DetectionNetwork, card: ModelCard, *, batch: int | None = 1) -> bytes:
    """The network alone as the bytes of a `.tflite` file without metadata.

    Input `images` [batch, H, W, 3] float32, preprocessed as the card says; outputs `offsets` [batch, A, 4] and
    `logits` [batch, A, K]. Operators are named after the module of the network that they came from.

    Args:
        detector: a network; several stages are folded into one.
        card: says the input size.
        batch: pictures at once.

    Raises:
        MissingDependencyError: litert-torch is not installed.
    """
    wrapper = _ChannelsLast(copy.deepcopy(detector).cpu().float()).eval()
    images = torch.zeros(batch or 1, *card.preprocess.size_hw, 3)
    with silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages about one another
        litert_torch = import_quietly("litert_torch", purpose="exporting to LiteRT", extra=EXTRA)
        content = litert_torch.convert(wrapper, sample_kwargs={INPUT: images}).model_content()
    graph = LitertGraph(content)
    _rename(graph, detector)
    return graph.content()


def _rename(graph: LitertGraph, detector: DetectionNetwork) -> None:
    """Give tensors the names of the network's modules, and inputs and outputs their own."""
    signature = graph.model.signatureDefs[0]
    fixed = {int(entry.tensorIndex): entry.name.decode() for entry in (*signature.inputs, *signature.outputs)}
    behind = {name: graph.behind(number) for number, name in fixed.items() if name in RAW_OUTPUTS}
    modules = {name: type(module).__name__ for name, module in detector.named_modules()}
    taken = set(fixed.values())
    for number, tensor in enumerate(graph.graph.tensors):
        name = fixed.get(number)
        if name is None:
            found = _modules(tensor.name.decode(), modules)
            leads = [output for output, tensors in behind.items() if number in tensors]
            if len(found) > 1 and len(leads) == 1:  # a branch of a head
                found = [path for path in found if leads[0] in path.split(".")]
            name = base = found[0] if found and found[0] else "constant"
            repeat = 1
            while name in taken:
                repeat += 1
                name = f"{base}/{repeat}"
            taken.add(name)
        tensor.name = name.encode()
    graph.set_input(graph.find(INPUT))
    graph.set_outputs([graph.find(name) for name in RAW_OUTPUTS])
    graph.model.description = b"multibox"


def _modules(location: str, modules: Mapping[str, str]) -> list[str]:
    """Names of the modules that may be meant by a converter's "package.Class_attribute/package.Class_attribute;2".

    Modules that only hold others are left out there, so that the branches of a head look alike.

    Args:
        location: the converter's name of a tensor.
        modules: class of every module by name.
    """
    found = [""]
    for step in location.partition(";")[0].split("/")[3:]:  # after the two modules around the network and the network
        ending = step.rpartition(".")[2]
        found = [
            name
            for name, kind in modules.items()
            if f"{kind}_{name.rpartition('.')[2]}" == ending
            and any(not parent or name.startswith(f"{parent}.") for parent in found)
        ]
    return found


def compose(network: bytes, card: ModelCard, layout: Layout) -> bytes:
    """A network, or a quantised form of it, with what comes after it and before it, in float32.

    Args:
        network: from `convert_network`, with the batch of the layout.
        card: of the detector; its `postprocess` is what the head does.
        layout: with a head that `multibox.export.litert_heads.WRITERS` has. Pictures have the network's own size.
    """
    graph = LitertGraph(network)
    if layout.preprocess:
        _attach_pictures(graph, card.preprocess, layout.batch or 1)
    WRITERS[layout.head](graph, card, layout.batch or 1)
    return graph.content()


def _attach_pictures(graph: LitertGraph, spec: Preprocess, batch: int) -> None:
    """`multibox.spec.preprocess` without its resizing, before the network."""
    shape = (batch, *spec.size_hw, 3)
    network_input = graph.find(INPUT)
    graph.graph.tensors[network_input].name = NETWORK_INPUT.encode()
    before = len(graph.graph.operators)
    pictures = graph.tensor(INPUT, "uint8", shape)
    scale, mean = np.array(spec.scale, np.float32), np.array(spec.mean, np.float32)
    value = graph.op("CAST", pictures)
    if spec.colour_order == "BGR":  # mean and scale are in the order of the network's channels
        value = graph.op("GATHER", value, graph.ints(2, 1, 0), shape=shape, axis=3)
    value = graph.op("MUL", value, graph.constant(scale))
    graph.op("ADD", value, graph.constant(-mean * scale))
    last = graph.graph.operators[-1]
    last.outputs = [network_input]
    graph.move_to_front(before)
    graph.set_input(pictures)


def write(content: bytes, path: Path, metadata: Mapping[str, str], card: ModelCard) -> None:
    """Write a `.tflite` file with its metadata, as JSON in the file's own metadata under "multibox".

    What they say of the input is that of the ONNX export, and is replaced by what it is here. The file appears whole or
    not at all.

    Raises:
        ContractError: the path does not end in `.tflite`.
    """
    if path.suffix != ".tflite":
        raise ContractError(f"a LiteRT file ends in .tflite, got {path.name!r}")
    graph = LitertGraph(content)
    shape = list(graph.shape(graph.find(INPUT)))
    pictures = metadata.get("preprocessing_inside") == "true"
    taken = f"uint8 {shape}: upright RGB pictures" if pictures else f"float32 {shape}: prepared as `preprocess` says"
    own = {**metadata, "input": taken, "input_layout": "NHWC"}
    graph.set_metadata(METADATA_KEY, json.dumps(own, sort_keys=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, graph.content())
