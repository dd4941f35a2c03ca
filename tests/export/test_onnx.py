"""ONNX files against the network they came from, at default and other sizes and batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")

from multibox.errors import ContractError, ModelFileError
from multibox.export.onnx import export_onnx
from multibox.inference import Detector
from multibox.models import create_model
from multibox.spec.card import METADATA_KEY
from multibox.spec.classes import ClassMap
from multibox.weights import make_card

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))


def written(tmp_path: Path, name: str, **arguments: object):
    torch.manual_seed(0)
    network = create_model(name, num_classes=3, **arguments).eval()
    card = make_card(network, ClassMap(("a", "b", "c")), name="test")
    path = tmp_path / "test.onnx"
    export_onnx(network, card, path)
    return network, card, path


@pytest.mark.slow
def test_export_is_deterministic_and_clean(tmp_path: Path) -> None:
    _, card, path = written(tmp_path, "tinyssd256", size_hw=[64, 64])
    first = path.read_bytes()
    _, _, path = written(tmp_path, "tinyssd256", size_hw=[64, 64])
    assert path.read_bytes() == first
    model = onnx.load(path)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata[METADATA_KEY] == card.to_json()
    assert metadata["names"] == "{0: 'a', 1: 'b', 2: 'c'}"
    assert json.loads(metadata["imgsz"]) == [64, 64]
    assert metadata["task"] == "detect"
    assert {i.name for i in model.graph.input} == {"images"}
    assert [o.name for o in model.graph.output] == ["offsets", "logits"]
    for node in model.graph.node:
        assert not node.doc_string
        assert not node.metadata_props  # would hold stack traces with paths of the exporting machine
    assert str(Path(torch.__file__).parent).encode() not in first


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_engines_agree_on_the_examples(engine: str) -> None:
    reference, other = Detector(), Detector(engine=engine)
    for example in EXAMPLES:
        ours, theirs = reference(example, conf=0.05), other(example, conf=0.05)
        assert len(ours) > 0
        assert ours.names == theirs.names
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-4)
        np.testing.assert_allclose(ours.boxes_xyxy, theirs.boxes_xyxy, rtol=0, atol=0.01)


@pytest.mark.slow
def test_refusals(tmp_path: Path) -> None:
    network, card, path = written(tmp_path, "tinyssd256", size_hw=[64, 64])
    with pytest.raises(ContractError, match=r"ends in \.onnx"):
        export_onnx(network, card, tmp_path / "test.pt")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="without multibox metadata"):
        Detector(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="cannot open it"):
        Detector(path)
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"test\.onnx"):
        Detector(path)
