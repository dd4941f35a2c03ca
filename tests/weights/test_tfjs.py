"""The TensorFlow.js importer, on graph models made here from random networks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from foreign_files import TWO, graph_tensors

from multibox.errors import ContractError, ModelFileError
from multibox.spec.classes import COCO_CLASSES
from multibox.weights.foreign.ssdlite import import_ssdlite_mobilenetv2
from multibox.weights.foreign.tfjs import read_graph_weights, recognise


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
