"""The face detector of face-api.js: its own code in node is the oracle, where its package is at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from multibox.core.codec import decode
from multibox.errors import ContractError, ModelFileError
from multibox.inference import Detector
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.face_api import MANIFEST, read
from multibox.weights.foreign.table import recognised
from multibox.weights.opening import open_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def package() -> Path:
    folder = os.environ.get("MULTIBOX_FACE_API", "")
    if not folder:
        pytest.skip("MULTIBOX_FACE_API does not name the folder with the package of face-api.js")
    return Path(folder)


def theirs(package: Path, rgb: Any, folder: Path) -> dict[str, Any]:
    """Boxes (ymin, xmin, ymax, xmax) in the squared picture, scores, and the faces in pixels of the picture."""
    (folder / "picture.rgb").write_bytes(rgb.tobytes())
    words = ["node", str(Path(__file__).parent / "face_api.mjs"), str(package), str(folder / "picture.rgb")]
    subprocess.run([*words, *map(str, rgb.shape[:2]), str(folder / "found.json")], check=True, capture_output=True)
    return json.loads((folder / "found.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("width", [512, 407])
def test_it_finds_what_face_api_finds(package: Path, tmp_path: Path, width: int) -> None:
    rgb = np.asarray(Image.open(EXAMPLES / "astronaut.png").convert("RGB"))[:, :width].copy()
    expected = theirs(package, rgb, tmp_path)
    network, _ = open_model(package / "model")
    image, _ = network.spec.preprocess(rgb)
    with torch.inference_mode():
        (stage,) = network(torch.from_numpy(image)[None])
        boxes = decode(stage.offsets, network.anchors_cxcywh(), network.spec.variances)[0].numpy()
        scores = stage.logits.sigmoid()[0, :, 0].numpy()
    half = boxes[:, 2:] / 2
    yxyx = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)[:, [1, 0, 3, 2]]
    assert scores == pytest.approx(np.array(expected["scores"]), abs=5e-5)
    assert np.abs(yxyx - np.array(expected["boxes"])).max() < 1e-4
    found = Detector(package / "model", engine="torch")(Image.fromarray(rgb), conf=0.05)
    rows = np.array(expected["found"])
    assert len(rows) > 1
    assert found.scores == pytest.approx(rows[:, 0], abs=5e-5)
    assert found.boxes_xyxy == pytest.approx(rows[:, 1:], abs=0.02)


def test_the_manifest_and_its_folder_are_recognised(package: Path) -> None:
    for path in (package / "model", package / "model" / MANIFEST):
        found = recognised(path)
        assert found is not None
        assert found[0].name == "face-api"
    imported = read(package / "model", ClassMap(("visage",)))
    assert imported.class_map.names == ("visage",)
    with pytest.raises(ContractError, match="2 class names for weights with one class"):
        read(package / "model", ClassMap(("a", "b")))


def altered(package: Path, folder: Path, change: Any) -> Path:
    content = json.loads((package / "model" / MANIFEST).read_text())
    change(content[0]["weights"])
    (folder / MANIFEST).write_text(json.dumps(content))
    shutil.copy(package / "model" / content[0]["paths"][0], folder)
    return folder


def rename(weights: list[dict[str, Any]], name: str, to: str) -> None:
    next(one for one in weights if one["name"] == name)["name"] = to


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("MobilenetV1/Conv2d_5_pointwise/weights", "gone", "Conv2d_5_pointwise"),
        ("Preprocessor/mul/x", "MobilenetV1/Conv2d_20/weights", "Conv2d_20"),
    ],
)
def test_a_missing_or_unknown_tensor_is_refused(package: Path, tmp_path: Path, name: str, to: str, said: str) -> None:
    folder = altered(package, tmp_path, lambda weights: rename(weights, name, to))
    with pytest.raises(ContractError, match=said):
        read(folder)


def test_a_misshapen_tensor_and_a_short_file_are_refused(package: Path, tmp_path: Path) -> None:
    def widen(weights: list[dict[str, Any]]) -> None:
        one = next(one for one in weights if one["name"] == "Prediction/Conv2d_2_pointwise/weights")
        one["shape"] = [1, 1, 256, 256]

    with pytest.raises(ContractError, match="Conv2d_3"):
        read(altered(package, tmp_path, widen))
    folder = altered(package, tmp_path, lambda weights: None)
    shard = next(folder.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="not a usable graph model"):
        read(folder)
