"""LiteRT (TensorFlow Lite) files and the engine that runs them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnx", reason="the export extra is not installed")
for package in ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the litert extra is not installed ({package})", allow_module_level=True)


from multibox.data import Dataset, ImageRecord
from multibox.errors import ContractError, ModelFileError, OptionError
from multibox.export.int8_litert import LitertQuantizer
from multibox.export.layout import Layout, metadata_of
from multibox.export.litert import compose, convert_network, write
from multibox.export.litert_graph import LitertGraph
from multibox.export.litert_heads import WRITERS
from multibox.export.request import ExportRequest
from multibox.export.verify.artefact import Artefact
from multibox.export.verify.check import Report, Tolerances, verify
from multibox.export.verify.samples import drawn_pictures
from multibox.inference import Detector
from multibox.inference.engines.litert import read_metadata
from multibox.pictures.read import read_picture
from multibox.spec.card import METADATA_KEY, ModelCard
from multibox.spec.classes import ClassMap
from multibox.weights.opening import open_model

pytestmark = pytest.mark.slow

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))


@cache
def network(name: str = "ssdlite300-coco", size_hw: tuple[int, int] | None = None, batch: int = 1) -> Any:
    detector, card = open_model(name, size_hw=size_hw)
    return detector, card, convert_network(detector, card, batch=batch)


@cache
def pictures() -> tuple[np.ndarray, ...]:
    """Sixteen: the examples as they are, in parts and mirrored, and drawn ones."""
    whole = [np.asarray(read_picture(path)) for path in EXAMPLES]
    parts = [part for p in whole for part in (p[: len(p) // 2], p[:, ::-1], p[:, p.shape[1] // 3 :])]
    return tuple((whole + parts + drawn_pictures())[:16])


def judged(
    path: Path,
    *,
    head: str = "raw",
    preprocess: bool = False,
    inside: ModelCard | None = None,
    said: ModelCard | None = None,
    content: bytes | None = None,
    source: Any = None,
    batch: int = 1,
    precision: str = "float32",
    dataset: Dataset | None = None,
    max_drop: float = 0.01,
    compared: int = 5,
) -> Report:
    """Verify an export whose graph was made for the card `inside`, and whose metadata are those of `said`."""
    detector, card, sound = source or network()
    layout = Layout(head, batch, preprocess, card.preprocess.size_hw if preprocess else None)
    made = compose(content or sound, inside or card, layout)
    write(made, path, metadata_of(said or card, layout, precision=precision), card)
    return verify(
        path, detector, card, pictures()[:compared], dataset=dataset, tolerances=Tolerances(max_drop=max_drop)
    )


def card_with(**preprocess: Any) -> ModelCard:
    card = network()[1]
    return replace(card, preprocess=replace(card.preprocess, **preprocess))


@pytest.mark.parametrize("preprocess", [False, True])
@pytest.mark.parametrize("head", WRITERS)
def test_every_head_agrees_with_eager_torch(head: str, preprocess: bool, tmp_path: Path) -> None:
    report = judged(tmp_path / "a.tflite", head=head, preprocess=preprocess, compared=16)
    assert report.failures == []
    assert report.pictures == {"compared": 16}
    assert {row.output for row in report.tensors} == {"network_input", "offsets", "logits"}
    assert report.detections is not None
    assert report.detections.expected > 100
    assert report.detections.largest_px < 0.01
    assert (report.head_alone is not None) == (head != "raw")


@pytest.mark.parametrize(
    ("name", "size_hw", "batch", "head"),
    [
        ("tinyssd256", (96, 64), 1, "raw"),
        ("tinyssd256", (96, 64), 1, "tflite4"),  # softmax, and the best 400 of every class only
        ("tinyssd256", (96, 64), 3, "decoded"),
    ],
)
def test_other_networks_sizes_and_batches(
    name: str, size_hw: tuple[int, int], batch: int, head: str, tmp_path: Path
) -> None:
    report = judged(tmp_path / "a.tflite", head=head, batch=batch, source=network(name, size_hw, batch), compared=16)
    assert report.failures == []


def test_no_class_is_lost_on_any_number_of_threads(tmp_path: Path) -> None:
    """The runtime's own suppression leaves out the class whose number is that of its threads."""
    from ai_edge_litert.interpreter import Interpreter

    detector, card, content = network()
    low = replace(card, postprocess=replace(card.postprocess, score_threshold=0.001, max_detections=400))
    judged(tmp_path / "a.tflite", head="tflite4", source=(detector, low, content))
    images = np.stack([low.preprocess(picture)[0] for picture in pictures()]).transpose(0, 2, 3, 1)
    expected: list[dict[str, np.ndarray]] = []
    for threads in (1, 2, 3, 4):
        runner = Interpreter(str(tmp_path / "a.tflite"), num_threads=threads)
        runner.allocate_tensors()
        for number, image in enumerate(images):
            runner.set_tensor(runner.get_input_details()[0]["index"], image[None])
            runner.invoke()
            found = {row["name"]: runner.get_tensor(row["index"]) for row in runner.get_output_details()}
            if threads == 1:
                expected.append(found)
                assert found["num_detections"][0] == 400
            assert {int(label) for label in found["detection_classes"][0]} <= set(range(80))
            for name, values in found.items():
                np.testing.assert_allclose(values, expected[number][name], rtol=0, atol=1e-4)
    labels = np.concatenate([found["detection_classes"].ravel() for found in expected])
    assert {2, 3} <= set(labels)


def test_boxes_cut_off_after_suppression(tmp_path: Path) -> None:
    detector, card, content = network()
    late = replace(card, postprocess=replace(card.postprocess, clip="after_nms", top_k=50, max_detections=30))
    for head in ("decoded", "tflite4"):
        report = judged(tmp_path / "a.tflite", head=head, source=(detector, late, content))
        assert report.failures == []


def test_wrong_mean(tmp_path: Path) -> None:
    report = judged(tmp_path / "a.tflite", head="decoded", preprocess=True, inside=card_with(mean=(120.0,) * 3))
    assert report.failures[0].startswith("network_input: differs by 0.0588")
    report = judged(tmp_path / "a.tflite", said=card_with(mean=(120.0,) * 3))
    assert "mean [120.0, 120.0, 120.0] instead of [127.5, 127.5, 127.5]" in report.failures[0]
    assert report.failures[1].startswith("network_input: ")


def test_swapped_channels(tmp_path: Path) -> None:
    report = judged(tmp_path / "a.tflite", head="tflite4", preprocess=True, inside=card_with(colour_order="BGR"))
    assert report.failures[0].startswith("network_input: differs")
    assert any(line.startswith("detections: ") for line in report.failures)


def test_blue_first_networks_get_blue_first(tmp_path: Path) -> None:
    detector, _, content = network()
    card = card_with(colour_order="BGR", mean=(100.0, 110.0, 120.0), scale=(0.01, 0.008, 0.009))
    assert judged(tmp_path / "a.tflite", preprocess=True, source=(detector, card, content)).failures == []


def test_shifted_classes(tmp_path: Path) -> None:
    graph = LitertGraph(network()[2])
    place = graph.find("logits")
    graph.graph.tensors[place].name = b"unshifted"
    order = graph.constant(np.roll(np.arange(80, dtype=np.int32), 1))
    shifted = graph.op("GATHER", place, order, shape=graph.shape(place), axis=2, name="logits")
    graph.set_outputs([graph.find("offsets"), shifted])
    report = judged(tmp_path / "a.tflite", head="decoded", content=graph.content())
    assert report.failures[0].startswith("logits, level expanded_conv_13: differs")
    assert any("is missing; nearest is" in line for line in report.failures)
    card = network()[1]
    names = (*card.class_map.names[1:], card.class_map.names[0])
    report = judged(tmp_path / "a.tflite", said=replace(card, class_map=ClassMap(names)))
    assert report.failures[0].startswith("metadata: other classes than the model's")


def test_suppression_that_is_not_the_models(tmp_path: Path) -> None:
    card = network()[1]
    never = replace(card, postprocess=replace(card.postprocess, nms_iou=1.0))
    report = judged(tmp_path / "a.tflite", head="tflite4", inside=never)
    assert report.failures[0].startswith("head tflite4: ")


def test_the_file_says_everything_about_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    card = network()[1]
    judged(path, head="tflite4", preprocess=True)
    metadata = read_metadata(path.read_bytes(), source="a")
    assert ModelCard.from_json(metadata[METADATA_KEY], source="a") == card
    assert metadata["input"] == "uint8 [1, 300, 300, 3]: upright RGB pictures"
    assert json.loads(metadata["picture_hw"]) == [300, 300]
    assert json.loads(metadata["outputs"])["detection_boxes"] == ["float32", [1, 100, 4]]
    artefact = Artefact(path)
    assert (artefact.head, artefact.batch, artefact.takes_pictures) == ("tflite4", 1, True)
    signature = LitertGraph(path.read_bytes()).model.signatureDefs[0]
    assert [entry.name for entry in signature.inputs] == [b"images"]
    assert [entry.name for entry in signature.outputs] == [
        b"detection_boxes",
        b"detection_classes",
        b"detection_scores",
        b"num_detections",
    ]


def test_operators_are_named_after_modules() -> None:
    detector, card, content = network()
    modules = dict(detector.named_modules())
    kinds = LitertQuantizer(content, card, [np.zeros((300, 300, 3), np.uint8)])
    assert len(kinds.always_float) == 12
    for name in (*kinds.layers, *kinds.always_float):
        assert name.partition("/")[0] in modules
    assert sum(name.startswith("heads.0.logits.") for name in kinds.always_float) == 6


def test_the_engine_agrees_with_eager_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    judged(path)
    mine, eager = Detector(path), Detector(engine="torch")
    assert mine.engine.name == "litert"
    assert mine.card == network()[1]
    for example in EXAMPLES:
        expected, found = eager(example, conf=0.05), mine(example, conf=0.05)
        assert len(expected) > 0
        assert found.names == expected.names
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=0.01)
    several = mine.predict([EXAMPLES[0], EXAMPLES[1], EXAMPLES[0]], batch=2)
    assert several[0] == several[2]
    twin = mine.engine.concurrent(2)
    assert twin is not None
    images = mine.card.preprocess(np.asarray(read_picture(EXAMPLES[0])))[0][None]
    for ours, theirs in zip(mine.engine.run(images), twin.run(images), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_a_batch_that_is_not_full(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    judged(path, batch=3, source=network("tinyssd256", (96, 64), 3))
    engine = Detector(path).engine
    images = np.stack([engine.card.preprocess(picture)[0] for picture in pictures()[:4]])
    together = engine.run(images)
    assert together[0].shape == (4, engine.card.box_count, 4)
    np.testing.assert_allclose(engine.run(images[3:])[1], together[1][3:], rtol=0, atol=1e-5)
    with pytest.raises(ModelFileError, match="failed on an input"):
        engine.run(np.zeros((1, 3, 5, 5), np.float32))


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    judged(path, head="decoded")
    with pytest.raises(ModelFileError, match="exported with head=decoded"):
        Detector(path)
    judged(path)
    with pytest.raises(OptionError, match="device=cpu"):
        Detector(path, device="gpu")
    content = path.read_bytes()
    path.write_bytes(network()[2])
    with pytest.raises(ModelFileError, match="without multibox metadata"):
        Detector(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="not a TensorFlow Lite file"):
        Detector(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match=r"damaged|cannot open it"):
        Detector(path)
    with pytest.raises(ContractError, match=r"ends in \.tflite"):
        write(content, tmp_path / "a.onnx", {}, network()[1])
    card = network()[1]
    agnostic = replace(card, postprocess=replace(card.postprocess, class_agnostic=True))
    with pytest.raises(OptionError, match="within classes only"):
        compose(network()[2], agnostic, Layout("tflite4", 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "nms"}, "no head=nms; use one of raw, decoded, tflite4"),
        ({"head": "frigate"}, "no head=frigate"),
        ({"dynamic": True}, "fixed shapes"),
        ({"head": "tflite4", "batch": 2}, "one picture at once"),
        ({"head": "tflite4", "agnostic_nms": True}, "within classes only"),
        ({"output": Path("a.onnx")}, r"a \.tflite file"),
        ({"format": "litert-int8"}, "give data=DATASET"),
    ],
)
def test_combinations_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportRequest("ssdlite300-coco", **{"format": "litert", **options})


def labelled_by_the_model(classes: ClassMap) -> Dataset:
    """The examples, with what the model itself finds for sure as the truth."""
    detector, records = Detector(), []
    for number, path in enumerate(EXAMPLES):
        found = detector(path, conf=0.5)
        records.append(ImageRecord(str(path), number, found.picture_size_hw, found.boxes_xyxy, found.labels))
    return Dataset.from_records(records, classes, root=Path("/"))


@pytest.fixture(scope="module")
def quantizer() -> LitertQuantizer:
    _, card, content = network()
    return LitertQuantizer(content, card, pictures())


@pytest.mark.parametrize("head", WRITERS)
def test_int8_is_judged_by_accuracy(head: str, quantizer: LitertQuantizer, tmp_path: Path) -> None:
    data = labelled_by_the_model(network()[1].class_map)
    report = judged(
        tmp_path / "a.tflite",
        head=head,
        content=quantizer.quantised(),
        precision="int8",
        dataset=data,
        max_drop=0.3,
    )
    assert report.failures == []
    assert report.found_again is not None
    assert report.found_again > 0.9
    assert (tmp_path / "a.tflite").stat().st_size < 0.6 * len(network()[2])


def test_int8_of_several_pictures_at_once(tmp_path: Path) -> None:
    source = network("tinyssd256", (96, 64), 3)
    quantised = LitertQuantizer(source[2], source[1], pictures()[:5]).quantised()
    report = judged(tmp_path / "a.tflite", head="decoded", batch=3, source=source, content=quantised, precision="int8")
    assert report.failures == []
    assert report.head_alone is not None


def test_int8_with_broken_scales_is_refused(quantizer: LitertQuantizer, tmp_path: Path) -> None:
    sound = dict(quantizer.ranges)
    try:
        quantizer.ranges = {name: (low / 20, high / 20) for name, (low, high) in sound.items()}
        data = labelled_by_the_model(network()[1].class_map)
        report = judged(tmp_path / "a.tflite", content=quantizer.quantised(), precision="int8", dataset=data)
    finally:
        quantizer.ranges = sound
    assert report.failures[0].startswith("accuracy: AP50 falls by")


def test_layers_given_back_are_float(quantizer: LitertQuantizer) -> None:
    def float_layers(content: bytes) -> set[str]:
        graph = LitertGraph(content)
        float32 = graph.graph.tensors[graph.find("offsets")].type
        made = {graph.graph.tensors[op.outputs[0]].name.decode(): op for op in graph.graph.operators}
        return {
            name
            for name in (*quantizer.layers, *quantizer.always_float)
            if graph.graph.tensors[made[name].inputs[0]].type == float32
        }

    assert float_layers(quantizer.quantised()) == set(quantizer.always_float)
    few = quantizer.layers[3:6]
    assert float_layers(quantizer.quantised(keep_float=few)) == {*quantizer.always_float, *few}
    assert float_layers(quantizer.quantised(keep_float=quantizer.layers)) == {
        *quantizer.always_float,
        *quantizer.layers,
    }


def test_sensitivity_finds_the_layer_that_was_made_sensitive() -> None:
    _, card, content = network("tinyssd256", (96, 64))
    quantizer = LitertQuantizer(content, card, pictures()[:4])
    victim = quantizer.layers[4]
    quantizer.ranges[victim] = tuple(limit / 30 for limit in quantizer.ranges[victim])
    ranking = quantizer.sensitivity(1)
    assert ranking[0].node == victim
    assert [row.snr_db for row in ranking] == sorted(row.snr_db for row in ranking)


def test_equal_input_gives_equal_bytes(quantizer: LitertQuantizer) -> None:
    detector, card, content = network("tinyssd256", (96, 64))
    assert convert_network(detector, card) == content
    assert quantizer.quantised() == quantizer.quantised()
