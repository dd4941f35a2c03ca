"""In-graph heads and preprocessing alone, on numbers made up for them, against the NumPy implementation."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the train extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")

import onnxruntime
from onnxscript import GraphBuilder, ir

from multibox.errors import MissingDependencyError, OptionError
from multibox.export.layout import NETWORK_INPUT, Layout, metadata_of
from multibox.export.onnx_heads import attach_head
from multibox.export.onnx_input import attach_pictures
from multibox.quiet import import_quietly
from multibox.spec.anchors import AnchorSpec
from multibox.spec.card import ModelCard
from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec, decode_np, postprocess_np, suppress_np
from multibox.spec.preprocess import Preprocess

ANCHORS = AnchorSpec((((0.2, 0.2), (0.3, 0.15)), ((0.6, 0.5),)))
SIZES = ((5, 4), (2, 2))
CLASSES = ("cat", "dog", "bird")
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def a_card(**post: Any) -> ModelCard:
    spec = PostprocessSpec(**{"activation": "softmax", "score_threshold": 0.2, "max_detections": 20, **post})
    card = ModelCard(
        "test", "none", {}, ClassMap(CLASSES), Preprocess((40, 32)), spec, ANCHORS, (0.1, 0.1, 0.2, 0.2), SIZES, ""
    )
    from multibox.spec.anchors import anchors_digest

    return replace(card, anchors_sha256=anchors_digest(ANCHORS.generate(SIZES, (40, 32))))


def run_onnx(model: Any) -> Run:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


def run_openvino(model: Any) -> Run:
    try:
        openvino = import_quietly("openvino", purpose="a test", extra="openvino")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    names = [output.name for output in model.graph.output]

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled(feeds)
        return {name: np.array(found[name]) for name in names}

    return run


RUNTIMES = {"onnxruntime": run_onnx, "openvino": run_openvino}


def a_graph(inputs: list[ir.Value], attach: Callable[[GraphBuilder], None]) -> Any:
    """A graph that begins as nothing but its inputs, and what is attached to it."""
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 18}, name="test")
    builder = GraphBuilder(graph)
    graph.outputs.extend([builder.op.Identity(value) for value in inputs])
    for output, name in zip(graph.outputs, ("offsets", "logits"), strict=False):
        output.name = f"inner_{name}"
    attach(builder)
    return ir.to_proto(ir.Model(graph, ir_version=10))


def head_graph(card: ModelCard, head: str, batch: int | str = "batch") -> Any:
    """A graph that is nothing but a head: raw predictions are its inputs."""
    columns = {"offsets": 4, "logits": card.outputs_per_box}
    inputs = [ir.val(name, ir.DataType.FLOAT, [batch, card.box_count, count]) for name, count in columns.items()]
    return a_graph(inputs, lambda builder: attach_head(builder, card, head, batch=batch))


def input_graph(preprocess: Preprocess, batch: int | str, picture_hw: tuple[int, int] | None) -> Any:
    """A graph that is nothing but preprocessing."""
    inputs = [ir.val("images", ir.DataType.FLOAT, [batch, 3, *preprocess.size_hw])]
    return a_graph(inputs, lambda builder: attach_pictures(builder, preprocess, batch=batch, picture_hw=picture_hw))


def raw(card: ModelCard, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "offsets": random.normal(0, 3, (batch, card.box_count, 4)).astype(np.float32),
        "logits": random.normal(0, 2, (batch, card.box_count, card.outputs_per_box)).astype(np.float32),
    }


def expected(card: ModelCard, feeds: dict[str, np.ndarray], place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return postprocess_np(
        feeds["offsets"][place],
        feeds["logits"][place],
        card.anchors_cxcywh(),
        variances=card.variances,
        spec=card.postprocess,
    )


SPECS = {
    "softmax": {},
    "sigmoid": {"activation": "sigmoid", "score_threshold": 0.4},
    "clip after": {"clip": "after_nms"},
    "top_k": {"top_k": 3},
    "agnostic": {"class_agnostic": True},
    "agnostic top_k": {"class_agnostic": True, "top_k": 2, "activation": "sigmoid"},
    "few": {"max_detections": 2},
    "more than there are": {"max_detections": 500, "score_threshold": 0.0},
    "nothing is above": {"score_threshold": 0.999},
    "no overlap allowed": {"nms_iou": 0.0},
    "any overlap allowed": {"nms_iou": 1.0},
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", SPECS)
def test_nms_is_the_numpy_postprocessing_for_every_picture_of_a_batch(runtime: str, name: str) -> None:
    card = a_card(**SPECS[name])
    run = RUNTIMES[runtime](head_graph(card, "nms"))
    for batch, seed in ((1, 0), (4, 1)):
        feeds = raw(card, batch, seed)
        found = run(feeds)
        assert found["detections"].shape == (batch, card.postprocess.max_detections, 6)
        for place in range(batch):
            boxes, scores, labels = expected(card, feeds, place)
            count = int(found["count"][place])
            rows = found["detections"][place]
            assert count == len(boxes)
            np.testing.assert_allclose(rows[:count, :4], boxes, rtol=0, atol=1e-6)
            np.testing.assert_allclose(rows[:count, 4], scores, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(rows[:count, 5], labels)
            assert not rows[count:].any()


@pytest.mark.parametrize("agnostic", [False, True])
def test_equal_scores_rank_by_anchor_and_then_by_class(agnostic: bool) -> None:
    card = a_card(activation="sigmoid", class_agnostic=agnostic, nms_iou=0.3, max_detections=10)
    feeds = raw(card, 2)
    feeds["logits"][:] = 1.0
    found = run_onnx(head_graph(card, "nms"))(feeds)
    for place in range(2):
        boxes, _, labels = expected(card, feeds, place)
        np.testing.assert_allclose(found["detections"][place][:, :4], boxes, atol=1e-6)
        np.testing.assert_array_equal(found["detections"][place][:, 5], labels)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_decoded_boxes_and_scores(runtime: str, activation: str) -> None:
    card = a_card(activation=activation, clip="after_nms")
    feeds = raw(card, 3)
    found = RUNTIMES[runtime](head_graph(card, "decoded"))(feeds)
    cxcywh = decode_np(feeds["offsets"], card.anchors_cxcywh(), card.variances)
    corners = np.concatenate([cxcywh[..., :2] - cxcywh[..., 2:] / 2, cxcywh[..., :2] + cxcywh[..., 2:] / 2], axis=-1)
    np.testing.assert_allclose(found["boxes_unit_xyxy"], corners, rtol=1e-5, atol=1e-6)
    assert corners.min() < 0  # not cut off: the model's suppression wants whole boxes
    logits = feeds["logits"].astype(np.float64)
    if activation == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = (np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))[..., 1:]
    np.testing.assert_allclose(found["scores"], scores, rtol=0, atol=1e-6)
    for place in range(3):
        again = suppress_np(found["boxes_unit_xyxy"][place], found["scores"][place], spec=card.postprocess)
        for given, wanted in zip(again, expected(card, feeds, place), strict=True):
            np.testing.assert_allclose(given, wanted, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_frigate_layout(runtime: str) -> None:
    """[1, 1, N, 7]: image, label (0 is background), score, x1, y1, x2, y2; −1 in place of the image ends the list."""
    card = a_card(score_threshold=0.7)
    feeds = raw(card, 1)
    found = RUNTIMES[runtime](head_graph(card, "frigate", 1))(feeds)["detection_out"]
    assert found.shape == (1, 1, 20, 7)
    boxes, scores, labels = expected(card, feeds, 0)
    count = len(boxes)
    assert 0 < count < 20
    rows = found[0, 0]
    assert (rows[:count, 0] == 0).all()
    assert (rows[count:, 0] == -1).all()
    np.testing.assert_array_equal(rows[:count, 1], labels + 1)
    np.testing.assert_allclose(rows[:count, 2], scores, atol=1e-6)
    np.testing.assert_allclose(rows[:count, 3:], boxes, atol=1e-6)
    assert not rows[count:, 1:].any()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tflite_layout(runtime: str) -> None:
    """Four float32 outputs in the order of the kernel: boxes (top, left, bottom, right), classes, scores, count."""
    card = a_card()
    feeds = raw(card, 2)
    found = RUNTIMES[runtime](head_graph(card, "tflite4"))(feeds)
    assert list(found) == ["detection_boxes", "detection_classes", "detection_scores", "num_detections"]
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    for place in range(2):
        boxes, scores, labels = expected(card, feeds, place)
        count = len(boxes)
        assert found["num_detections"][place] == count
        np.testing.assert_allclose(found["detection_boxes"][place][:count], boxes[:, [1, 0, 3, 2]], atol=1e-6)
        np.testing.assert_array_equal(found["detection_classes"][place][:count], labels)
        np.testing.assert_allclose(found["detection_scores"][place][:count], scores, atol=1e-6)
        assert not found["detection_boxes"][place][count:].any()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess((30, 40), "asymmetric", mean=(127.5,) * 3, scale=(2 / 255,) * 3),
        Preprocess((30, 40), "half_pixel", mean=(123.0, 117.0, 104.0)),
        Preprocess((30, 40), "half_pixel", "BGR", mean=(1.0, 2.0, 3.0), scale=(0.5, 0.25, 0.125)),
        Preprocess((30, 40), scale=(1 / 255,) * 3),
    ],
)
def test_preprocessing_inside_is_preprocessing_outside(runtime: str, preprocess: Preprocess) -> None:
    model = input_graph(preprocess, "batch", None)
    (output,) = (o.name for o in model.graph.output)
    assert NETWORK_INPUT in model.graph.node[-1].input
    run = RUNTIMES[runtime](model)
    random = np.random.default_rng(0)
    largest = 255 * max(preprocess.scale)
    for shape in ((30, 40), (61, 79), (7, 200), (1, 1), (333, 17), (30, 80)):
        pictures = random.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
        given = run({"images": pictures})[output]
        for place in range(2):
            np.testing.assert_allclose(given[place], preprocess(pictures[place])[0], rtol=0, atol=3e-5 * largest)


def test_pictures_of_the_networks_size_need_no_resize() -> None:
    preprocess = Preprocess((30, 40), "half_pixel", mean=(1.0, 2.0, 3.0))
    model = input_graph(preprocess, 1, (30, 40))
    assert "Gather" not in {node.op_type for node in model.graph.node}
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (given,) = run_onnx(model)({"images": picture[None]}).values()
    np.testing.assert_array_equal(given[0], preprocess(picture)[0])


def test_metadata_speak_the_dialects_of_other_tools() -> None:
    card = replace(a_card(), summary={"levels": [{"stride": 8}, {"stride": 16}]}, licence="Apache-2.0")
    written = metadata_of(card, Layout("nms", 4, preprocess=True))
    assert written["task"] == "detect"
    assert written["names"] == "{0: 'cat', 1: 'dog', 2: 'bird'}"
    assert (written["stride"], written["imgsz"], written["batch"]) == ("16", "[40, 32]", "4")
    assert (ast.literal_eval(written["args"]), written["channels"]) == ({"batch": 4, "dynamic": False}, "3")
    free = metadata_of(card, Layout("nms", preprocess=True))
    assert (free["batch"], ast.literal_eval(free["args"])["dynamic"]) == ("1", True)  # those tools read a number there
    assert written["license"] == "Apache-2.0"
    assert {"description", "version", "anchors_sha256", "box_format", "preprocess"} <= set(written)
    assert written["head"] == "nms"
    assert json.loads(written["outputs"]) == {"detections": ["float32", [4, 20, 6]], "count": ["int64", [4]]}
    assert ModelCard.from_json(written["multibox"], source="test") == card


@pytest.mark.parametrize("rule", [{"resize": "letterbox"}, {"interpolation": "nearest"}, {"rounding": True}])
def test_preprocessing_that_no_file_can_do_inside_is_refused(rule: dict) -> None:
    from multibox.export.request import ExportRequest

    card = replace(a_card(), preprocess=replace(a_card().preprocess, **rule))
    with pytest.raises(OptionError, match=r"wants pictures .*: export with preprocess=false"):
        ExportRequest("model", preprocess=True).asked(card)
    assert ExportRequest("model").asked(card) == card
    assert ExportRequest("model", head="frigate").asked(card) == card  # takes pictures that need no resizing
