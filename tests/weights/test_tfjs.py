"""The TensorFlow.js importer, on graph models made here from random networks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from multibox.errors import ContractError, ModelFileError
from multibox.models import create_model
from multibox.spec.classes import COCO_CLASSES, ClassMap
from multibox.weights.foreign.tfjs import import_ssdlite_mobilenetv2, read_graph_weights, recognise

TWO = ClassMap.from_ids({2: "b", 5: "e"})
OUTPUTS = 7  # background and ids 1 … 6


def graph_tensors(seed: int) -> tuple[Any, dict[str, np.ndarray]]:
    """A random network with two classes, and the graph model it would have come from.

    The names and layouts are written out here a second time, by hand, as the original graph has them.
    """
    torch.manual_seed(seed)
    network = create_model("ssdlite300_mobilenetv2", num_classes=2, trunk_norm=False).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    random = np.random.default_rng(seed)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    out: dict[str, np.ndarray] = {}

    def folded(ours: str, theirs: str) -> None:
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
            names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
            for name, key in names.items():
                out[f"{prefix}_depthwise/BatchNorm/{name}"] = state[f"{source}.0.norm.{key}"]
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


def write_graph(folder: Path, tensors: dict[str, np.ndarray], shard_bytes: int = 1_000_000) -> dict[str, str]:
    """model.json and shards cut at a fixed length, in the middle of tensors; returns their sha256."""
    weights, content = [], b""
    for name, value in tensors.items():
        kind = {"float32": "<f4", "int32": "<i4"}[str(value.dtype)]
        weights.append({"name": name, "shape": list(value.shape), "dtype": str(value.dtype)})
        content += np.ascontiguousarray(value).astype(kind).tobytes()
    shards = {f"shard{i}": content[at : at + shard_bytes] for i, at in enumerate(range(0, len(content), shard_bytes))}
    manifest = {"modelTopology": {}, "weightsManifest": [{"paths": list(shards), "weights": weights}]}
    files = {"model.json": json.dumps(manifest).encode(), **shards}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


@pytest.mark.slow
def test_a_graph_model_comes_back_as_the_network_it_was(tmp_path: Path) -> None:
    network, tensors = graph_tensors(0)
    digests = write_graph(tmp_path, tensors)
    read = read_graph_weights(tmp_path, sha256=digests)
    assert read.keys() == tensors.keys()
    assert recognise(tmp_path) == "the weights of FeatureExtractor/MobilenetV2 in its model.json"
    assert recognise(tmp_path.parent) is None
    imported, classes = import_ssdlite_mobilenetv2(read, TWO)
    assert classes == TWO
    for key, value in network.state_dict().items():
        assert torch.equal(imported.state_dict()[key], value), key


def test_reading_scalars_integers_and_shard_borders(tmp_path: Path) -> None:
    tensors = {
        "scalar": np.float32(0.5).reshape(()),
        "shape": np.array([1, -1, 4], np.int32),
        "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    }
    write_graph(tmp_path, tensors, shard_bytes=7)
    read = read_graph_weights(tmp_path)
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].shape == value.shape


def test_damaged_folders(tmp_path: Path) -> None:
    tensors = {"kernel": np.arange(6, dtype=np.float32)}
    digests = write_graph(tmp_path, tensors)
    (tmp_path / "shard0").write_bytes(b"\0" * 24)
    with pytest.raises(ModelFileError, match="shard0: its sha256 is not the expected one"):
        read_graph_weights(tmp_path, sha256=digests)
    (tmp_path / "shard0").write_bytes(b"\0" * 28)
    with pytest.raises(ModelFileError, match="describes 24 bytes, the shards have 28"):
        read_graph_weights(tmp_path)
    (tmp_path / "shard0").write_bytes(b"\0" * 20)
    with pytest.raises(ModelFileError, match="not a usable graph model"):
        read_graph_weights(tmp_path)
    (tmp_path / "shard0").unlink()
    with pytest.raises(ModelFileError, match="shard0: cannot be read"):
        read_graph_weights(tmp_path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(ModelFileError, match="not a usable graph model"):
        read_graph_weights(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_graph_weights(tmp_path / "absent")


def test_other_graphs_are_refused() -> None:
    _, tensors = graph_tensors(1)
    with pytest.raises(ContractError, match="has no tensor 'FeatureExtractor/MobilenetV2/Conv/Conv2D/merged_input'"):
        import_ssdlite_mobilenetv2({k: v for k, v in tensors.items() if not k.startswith("FeatureExtractor")}, TWO)
    shifted = {**tensors, "Postprocessor/ExpandDims": tensors["Postprocessor/ExpandDims"] + np.float32(1e-4)}
    with pytest.raises(ContractError, match="anchors differ"):
        import_ssdlite_mobilenetv2(shifted, TWO)
    with pytest.raises(ContractError, match="has 7 outputs a box, so no row for id 90"):
        import_ssdlite_mobilenetv2(tensors, COCO_CLASSES)
