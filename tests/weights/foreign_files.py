"""What the tests of importers write: protocol buffers, and the tensors of a TensorFlow graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from multibox.models import create_model
from multibox.spec.classes import ClassMap

TWO = ClassMap.from_ids({2: "b", 5: "e"})
OUTPUTS = 7  # background and ids 1 … 6


def graph_tensors(seed: int, *, trunk_norm: bool = False) -> tuple[Any, dict[str, np.ndarray]]:
    """A random network with two classes, and the graph model it would have come from, normalisation folded or not.

    The names and layouts are written out here a second time, by hand, as the original graph has them.
    """
    torch.manual_seed(seed)
    network = create_model("ssdlite300_mobilenetv2", num_classes=2, trunk_norm=trunk_norm).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    random = np.random.default_rng(seed)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    out: dict[str, np.ndarray] = {}

    def normed(source: str, prefix: str) -> None:
        names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        for name, key in names.items():
            out[f"{prefix}/BatchNorm/{name}"] = state[f"{source}.norm.{key}"]

    def folded(ours: str, theirs: str) -> None:
        if trunk_norm:
            kernel, prefix = state[f"features.{ours}.conv.weight"], f"FeatureExtractor/MobilenetV2/{theirs}"
            if kernel.shape[1] == 1:
                out[f"{prefix}/depthwise_weights"] = kernel.transpose(2, 3, 0, 1)
            else:
                out[f"{prefix}/weights"] = kernel.transpose(2, 3, 1, 0)
            normed(f"features.{ours}", prefix)
            return
        kernel, bias = state[f"features.{ours}.conv.weight"], state[f"features.{ours}.conv.bias"]
        prefix = f"FeatureExtractor/MobilenetV2/{theirs}"
        if kernel.shape[1] == 1:
            factor = random.choice([0.5, 2.0, 4.0], size=len(kernel)).astype(np.float32)  # exact in floating point
            out[f"{prefix}/depthwise_weights"] = (kernel / factor[:, None, None, None]).transpose(2, 3, 0, 1)
            out[f"{prefix}/BatchNorm/batchnorm/mul"] = factor
        else:
            out[f"{prefix}/Conv2D/merged_input"] = kernel.transpose(2, 3, 1, 0)
        out[f"{prefix}/BatchNorm/batchnorm/sub"] = bias

    folded("stem", "Conv")
    folded("blocks.0.depthwise", "expanded_conv/depthwise")
    folded("blocks.0.project", "expanded_conv/project")
    for number in range(1, 17):
        for part in ("expand", "depthwise", "project"):
            folded(f"blocks.{number}.{part}", f"expanded_conv_{number}/{part}")
    folded("last", "Conv_1")
    for number, (first, second) in enumerate([(256, 512), (128, 256), (128, 256), (64, 128)]):
        folded(f"extras.{number}.0", f"layer_19_1_Conv2d_{number + 2}_1x1_{first}")
        folded(f"extras.{number}.1", f"layer_19_2_Conv2d_{number + 2}_3x3_s2_{second}_depthwise")
        folded(f"extras.{number}.2", f"layer_19_2_Conv2d_{number + 2}_3x3_s2_{second}")
    for level, boxes in enumerate([3, 6, 6, 6, 6, 6]):
        for ours, theirs in (("offsets", "BoxEncodingPredictor"), ("logits", "ClassPredictor")):
            source, prefix = f"heads.0.{ours}.{level}", f"BoxPredictor_{level}/{theirs}"
            out[f"{prefix}_depthwise/depthwise_weights"] = state[f"{source}.0.conv.weight"].transpose(2, 3, 0, 1)
            normed(f"{source}.0", f"{prefix}_depthwise")
            kernel, bias = state[f"{source}.1.weight"], state[f"{source}.1.bias"]
            width = 4 if ours == "offsets" else OUTPUTS
            all_kernels = random.normal(size=(boxes * width, *kernel.shape[1:])).astype(np.float32)
            all_biases = random.normal(size=boxes * width).astype(np.float32)
            for box in range(boxes):
                slots = [1, 0, 3, 2] if ours == "offsets" else list(TWO.ids)
                for k, slot in enumerate(slots):
                    all_kernels[box * width + slot] = kernel[box * len(slots) + k]
                    all_biases[box * width + slot] = bias[box * len(slots) + k]
            out[f"{prefix}/weights"] = all_kernels.transpose(2, 3, 1, 0)
            out[f"{prefix}/biases"] = all_biases
    cx, cy, w, h = network.anchors_cxcywh().numpy().T
    out["Postprocessor/ExpandDims"] = np.stack([cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2], axis=1)[None]
    return network, out


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content
