"""Cascades of several stages, through every consumer, against plain loops over the stages.

Whoever reads the last stage of a network against the default boxes, in place of the folded prediction, fails here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

import toy_cascades

from multibox.data import Dataset, ImageRecord
from multibox.evaluation import validate
from multibox.inference import Detector
from multibox.models.network import DetectionNetwork
from multibox.pictures.read import read_picture
from multibox.spec.card import ModelCard
from multibox.spec.detections import Detections
from multibox.training.distributed import processes
from multibox.training.evaluate import evaluate
from multibox.weights import save_detector
from multibox.weights.opening import open_model

PICTURES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))
CONF, MAX_DET = 0.2, 100
SCORE_TOLERANCE, BOX_TOLERANCE_PX = 1e-5, 1e-3
Row = tuple[float, int, tuple[float, ...]]  # score, label, corners

ENGINES = {
    "torch": (".safetensors", "torch"),
    "onnxruntime": (".onnx", "onnx"),
    "openvino": (".onnx", "openvino"),
    "litert": (".tflite", "litert_torch"),
}


@pytest.fixture(scope="module", params=toy_cascades.__all__)
def cascade(request: pytest.FixtureRequest) -> tuple[DetectionNetwork, ModelCard]:
    return open_model(request.param)


@pytest.fixture(scope="module")
def expected(cascade: tuple[DetectionNetwork, ModelCard]) -> dict[str, list[Row]]:
    """By picture, what plain loops find."""
    return {path.name: plainly(*cascade, read_picture(path)) for path in PICTURES}


def plainly(network: DetectionNetwork, card: ModelCard, rgb: Any) -> list[Row]:
    """Every stage in turn, box by box, in Python's own floating point."""
    height, width = rgb.shape[:2]
    with torch.no_grad():
        raw = network(torch.from_numpy(card.preprocess(rgb)[0][None]))
    stages = [(stage.offsets[0].double().tolist(), stage.logits[0].double().tolist()) for stage in raw]
    candidates: list[list[Row]] = [[] for _ in card.class_map.names]
    for place, anchor in enumerate(card.anchors_cxcywh().astype(float).tolist()):
        cx, cy, w, h = anchor
        passed = True
        for number, (offsets, logits) in enumerate(stages):
            dx, dy, dw, dh = (value * v for value, v in zip(offsets[place], card.variances, strict=True))
            cx, cy, w, h = cx + dx * w, cy + dy * h, w * math.exp(dw), h * math.exp(dh)
            gate = network.spec.stages[number].gate
            passed = passed and (gate is None or softmax(logits[place])[1] >= gate)
        if not passed:
            continue
        assert card.postprocess.clip == "before_nms"
        corners = tuple(min(max(v, 0), 1) for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
        for label, score in enumerate(softmax(stages[-1][1][place])[1:]):
            if score > CONF:
                candidates[label].append((score, label, corners))
    kept = [row for rows in candidates for row in suppressed(rows, card.postprocess.nms_iou)]
    best = sorted(kept, reverse=True)[:MAX_DET]
    return [(score, label, in_pixels(corners, width, height)) for score, label, corners in best]


def in_pixels(unit_xyxy: tuple[float, ...], width: int, height: int) -> tuple[float, ...]:
    return tuple(value * side for value, side in zip(unit_xyxy, (width, height) * 2, strict=True))


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def suppressed(rows: list[Row], limit: float) -> list[Row]:
    kept: list[Row] = []
    for row in sorted(rows, reverse=True):
        if all(overlap(row[2], other[2]) <= limit for other in kept):
            kept.append(row)
    return kept


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(w, 0) * max(h, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def require_equal(found: Detections, wanted: list[Row]) -> None:
    assert found.scores is not None
    assert len(found) == len(wanted)
    np.testing.assert_allclose(found.scores, [row[0] for row in wanted], rtol=0, atol=SCORE_TOLERANCE)
    assert found.labels.tolist() == [row[1] for row in wanted]
    np.testing.assert_allclose(found.boxes_xyxy, [row[2] for row in wanted], rtol=0, atol=BOX_TOLERANCE_PX)


def require_all_equal(found: Sequence[Detections], wanted: dict[str, list[Row]]) -> None:
    for predictions, path in zip(found, PICTURES, strict=True):
        require_equal(predictions, wanted[path.name])


def written(cascade: tuple[DetectionNetwork, ModelCard], suffix: str, folder: Path) -> Path:
    """The cascade in a file that engines open."""
    network, card = cascade
    path = folder / f"cascade{suffix}"
    if suffix == ".safetensors":
        save_detector(path, network, card)
    elif suffix == ".onnx":
        from multibox.export.onnx import export_onnx

        export_onnx(network, card, path)
    else:
        from multibox.export.request import ExportRequest
        from multibox.export.run import export_verified

        return export_verified(ExportRequest(card.name, format="litert", output=path)).path
    return path


def test_the_cascades_are_worth_a_test(
    cascade: tuple[DetectionNetwork, ModelCard], expected: dict[str, list[Row]]
) -> None:
    """The last stage read against the default boxes says something else, and there are boxes to compare."""
    network, card = cascade
    assert len(network.spec.stages) == 2
    assert all(len(rows) > 3 for rows in expected.values())
    detector = Detector(card.name)
    detector.engine._network.forward = lambda images: network(images)[-1]  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        require_equal(detector(PICTURES[0], conf=CONF, max_det=MAX_DET), expected[PICTURES[0].name])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_what_plain_loops_give(
    engine: str, cascade: tuple[DetectionNetwork, ModelCard], expected: dict[str, list[Row]], tmp_path: Path
) -> None:
    suffix, package = ENGINES[engine]
    if find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    detector = Detector(written(cascade, suffix, tmp_path), engine=engine)
    for path in PICTURES:
        require_equal(detector(path, conf=CONF, max_det=MAX_DET), expected[path.name])


@pytest.fixture(scope="module")
def data(cascade: tuple[DetectionNetwork, ModelCard]) -> Dataset:
    """The pictures as a data set with a box of each class in each."""
    names = cascade[1].class_map
    records = [
        ImageRecord(
            path=str(path),
            image_id=number,
            size_hw=read_picture(path).shape[:2],
            boxes_xyxy=np.tile(np.array([[10, 10, 90, 90]], np.float32), (len(names), 1)),
            labels=np.arange(len(names)),
        )
        for number, path in enumerate(PICTURES)
    ]
    return Dataset.from_records(records, names, root=str(PICTURES[0].parent))


def test_val_gives_what_plain_loops_give(
    cascade: tuple[DetectionNetwork, ModelCard], expected: dict[str, list[Row]], data: Dataset
) -> None:
    result = validate(Detector(cascade[1].name), data, conf=CONF, max_det=MAX_DET)
    require_all_equal(result.data.predictions, expected)


def test_the_validation_of_a_training_gives_what_plain_loops_give(
    cascade: tuple[DetectionNetwork, ModelCard], expected: dict[str, list[Row]], data: Dataset
) -> None:
    with processes("cpu") as alone:
        result = evaluate(cascade[0], data, processes=alone, batch=2)
    assert result is not None
    require_all_equal([found.above(CONF) for found in result.validation.data.predictions], expected)
