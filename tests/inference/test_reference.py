"""The shipped COCO model against the outputs of the original TensorFlow.js runtime, on real pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from multibox.inference import Detector
from multibox.pictures.read import read_picture
from multibox.spec.postprocess import decode_np

# (scores, boxes in pixels at 300 scale)
TOLERANCE = {"float32": (1e-4, 5e-3), "float16": (2e-3, 0.1)}


@pytest.fixture(scope="module")
def half_precision_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="the train extra is not installed")
    from multibox.catalogue import CATALOGUE
    from multibox.weights import load_detector, save_detector

    detector, card = load_detector(CATALOGUE["ssdlite300-coco"].path(".safetensors"))
    path = tmp_path_factory.mktemp("half") / "half.safetensors"
    save_detector(path, detector, card, storage="float16")
    return path


@pytest.fixture(scope="module", params=["onnxruntime float32", "torch float32", "torch float16"])
def case(request: pytest.FixtureRequest) -> tuple[Detector, str]:
    engine, storage = request.param.split()
    if engine == "torch":
        pytest.importorskip("torch", reason="the train extra is not installed")
    if storage == "float16":
        return Detector(request.getfixturevalue("half_precision_file")), storage
    return Detector("ssdlite300-coco", engine=engine), storage


@pytest.mark.slow
def test_every_anchor_of_every_picture(case: tuple[Detector, str], reference_folder: Path) -> None:
    detector, storage = case
    score_limit, box_limit = TOLERANCE[storage]
    card = detector.card
    column_of_index = np.array(card.class_map.ids) - 1  # the reference counts label ids from 1
    index_of_column = np.full(90, -1)
    index_of_column[column_of_index] = np.arange(80)
    facts = {f["name"]: f for f in json.loads((reference_folder / "images.json").read_text())["images"]}
    checked = 0
    for path in sorted((reference_folder / "images").glob("*.jpg")):
        rgb = read_picture(path)
        if hashlib.sha256(rgb.tobytes()).hexdigest() != facts[path.name]["rgb_sha256"]:
            continue  # another JPEG decoder; counted below
        expected = np.load(reference_folder / "outputs" / f"{path.name}.npz")
        offsets, logits = detector.raw(path)
        scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
        top = index_of_column[expected["top_col"]]
        named = top >= 0
        found = scores[expected["top_anchor"][named], top[named]]
        np.testing.assert_allclose(found, expected["top_score"][named], rtol=0, atol=score_limit)
        best = index_of_column[expected["best_col"]]
        named = best >= 0
        np.testing.assert_allclose(scores.max(axis=1)[named], expected["best_score"][named], rtol=0, atol=score_limit)
        unit_cxcywh = decode_np(offsets, card.anchors_cxcywh(), card.variances)
        half = unit_cxcywh[:, 2:] / 2
        unit_xyxy = np.concatenate([unit_cxcywh[:, :2] - half, unit_cxcywh[:, :2] + half], axis=1)
        ymin, xmin, ymax, xmax = expected["boxes"].T
        np.testing.assert_allclose(
            unit_xyxy * 300, np.stack([xmin, ymin, xmax, ymax], axis=1) * 300, rtol=0, atol=box_limit
        )
        checked += 1
    if not checked:
        pytest.skip("this JPEG decoder gives other pixels than the reference's on every picture")
    assert checked == len(facts), f"only {checked} of {len(facts)} pictures decode to the reference's pixels"


@pytest.mark.slow
def test_the_reference_detections_and_no_other(case: tuple[Detector, str], reference_folder: Path) -> None:
    detector, storage = case
    score_limit, box_limit = TOLERANCE[storage]
    pictures = json.loads((reference_folder / "detections.json").read_text())["pictures"]
    total = 0
    for name, expected in pictures.items():
        found = detector(reference_folder / "images" / name, conf=0.5, iou=0.5, max_det=20, agnostic_nms=True)
        rows = expected["detections"]
        assert found.names == [row["class"] for row in rows], name
        assert found.picture_size_hw == (expected["height"], expected["width"])
        total += len(rows)
        if not rows:
            continue
        width, height = expected["width"], expected["height"]
        limit = np.array([width, height, width, height])
        bbox = np.array([row["bbox"] for row in rows])
        corners = np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)
        np.testing.assert_allclose(found.scores, [row["score"] for row in rows], rtol=0, atol=score_limit)
        np.testing.assert_allclose(
            found.boxes_xyxy * 300 / limit, np.clip(corners, 0, limit) * 300 / limit, rtol=0, atol=box_limit
        )
    assert total == 73
