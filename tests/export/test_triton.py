"""Folders of a Triton repository: what the configuration declares, and that what it declares is so."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the train extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")

from google.protobuf import text_format

from multibox.errors import ContractError, ModelFileError, OptionError
from multibox.export.heads import HEADS
from multibox.export.onnx import compose, export_metadata
from multibox.export.triton import MAX_BATCH, read_config, require_free, triton_parameters, write_triton
from multibox.export.verify import Report, verify
from multibox.export.verify.artefact import Artefact
from multibox.export.verify.samples import drawn_pictures
from multibox.spec.classes import ClassMap

SIZE_HW = (96, 64)
ANCHORS = 512  # of tinyssd256 at this size
ROWS = 200
BATCH = 3


@pytest.fixture
def write(exported: Any, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    def written(head: str = "nms", *, batch: int | None = None, preprocess: bool = False) -> tuple[Path, Any]:
        made = exported("tinyssd256", SIZE_HW, batch)
        made = replace(made, card=replace(made.card, class_map=ClassMap(('tête-à-"tête"',))))
        model = compose(made.network, made.card, head=HEADS[head], batch=batch, preprocess=preprocess)
        metadata = export_metadata(made.card, head=HEADS[head], batch=batch, preprocess=preprocess)
        write_triton(model, tmp_path / "repository" / "tiny", metadata, made.card)
        return tmp_path / "repository" / "tiny", made

    return written


def judged(folder: Path, made: Any) -> Report:
    return verify(folder, made.detector, made.card, drawn_pictures()[2:6])


DIMS = {
    "raw": {"offsets": [ANCHORS, 4], "logits": [ANCHORS, 2]},
    "decoded": {"boxes_unit_xyxy": [ANCHORS, 4], "scores": [ANCHORS, 1]},
    "nms": {"detections": [ROWS, 6], "count": []},
}


@pytest.mark.parametrize("preprocess", [False, True])
@pytest.mark.parametrize("batch", [None, BATCH])
@pytest.mark.parametrize("head", DIMS)
def test_what_is_declared_and_that_it_runs_so(head: str, batch: int | None, preprocess: bool, write: Any) -> None:
    folder, made = write(head, batch=batch, preprocess=preprocess)
    config = read_config(folder)
    first = [] if batch is None else [batch]
    assert (config.name, config.backend, config.default_model_filename) == ("tiny", "onnxruntime", "model.onnx")
    assert config.max_batch_size == (MAX_BATCH if batch is None else 0)
    assert config.HasField("dynamic_batching") == (batch is None)
    assert config.version_policy.latest.num_versions == 1
    (images,) = config.input
    assert list(images.dims) == [*first, *((-1, -1, 3) if preprocess else (3, *SIZE_HW))]
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    assert ('name: "images"\n  data_type: ' + ("TYPE_UINT8" if preprocess else "TYPE_FP32")) in text
    assert {o.name: list(o.dims) for o in config.output} == {
        name: [*first, *dims] or [1] for name, dims in DIMS[head].items()
    }
    assert [o.name for o in config.output if o.HasField("reshape")] == (
        ["count"] if first == [] == DIMS[head].get("count") else []
    )
    assert [o.name for o in config.output if o.label_filename] == (["scores"] if head == "decoded" else [])
    assert (folder / "labels.txt").read_text(encoding="utf-8") == 'tête-à-"tête"\n'
    parameters = triton_parameters(config)
    assert json.loads(parameters["multibox.class_names"]) == list(made.card.class_map.names)
    assert json.loads(parameters["multibox.preprocess"])["size_hw"] == list(SIZE_HW)
    assert parameters["multibox.head"] == head
    report = judged(folder, made)
    assert report.failures == []
    assert report.detections is not None
    assert report.detections.paired > 0


def edited(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.pbtxt"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "type": (
        edited("TYPE_INT64", "TYPE_FP32"),
        "output 'count' is TYPE_INT64 [-1] in the model, declared is TYPE_FP32",
    ),
    "rows": (edited("[200, 6]", "[100, 6]"), "'detections' is TYPE_FP32 [-1, 200, 6] in the model, declared is"),
    "input": (edited("[3, 96, 64]", "[3, 64, 96]"), "input 'images' is TYPE_FP32 [-1, 3, 96, 64] in the model"),
    "whole shape": (edited("[3, 96, 64]", "[-1, 3, 96, 64]"), "input 'images' is TYPE_FP32 [-1, 3, 96, 64]"),
    "no reshape": (edited("  reshape {\n  }\n", ""), "output 'count' is TYPE_INT64 [-1] in the model"),
    "no batching": (edited("max_batch_size: 8", "max_batch_size: 0"), "dynamic batching needs a max_batch_size"),
    "small batch": (edited("max_batch_size: 8", "max_batch_size: 2"), "3 pictures, but max_batch_size is 2"),
    "unknown input": (edited('name: "images"', 'name: "image"'), "input 'images' of the model is not declared"),
    "unknown output": (edited('name: "count"', 'name: "counts"'), "the model has no output 'counts'"),
    "backend": (edited('backend: "onnxruntime"', 'backend: "openvino"'), "the backend is 'openvino'"),
    "file": (edited('"model.onnx"', '"network.onnx"'), "there is no model file 'network.onnx'"),
    "name": (edited('name: "tiny"', 'name: "huge"'), "the name is 'huge', the folder's 'tiny'"),
    "classes": (edited("tête-à-", "tête"), "the parameter class_names does not hold the model's classes"),
    "preprocessing": (edited('\\"RGB\\"', '\\"BGR\\"'), "the parameter preprocess is not the model's"),
    "labels": (lambda f: (f / "labels.txt").write_text("cat\n") and None, "labels.txt: other classes than the model's"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_configuration_that_is_not_the_models_is_refused(case: str, write: Any) -> None:
    damage, message = FAULTS[case]
    folder, made = write()
    damage(folder)
    report = judged(folder, made)
    assert not report.passed
    assert message in "\n".join(report.failures)


def test_what_is_no_configuration_is_not_opened(write: Any) -> None:
    folder, _ = write()
    edited("max_batch_size", "maximum_batch_size")(folder)
    with pytest.raises(ModelFileError, match=r"config\.pbtxt: .*maximum_batch_size"):
        Artefact(folder)


def test_a_batch_that_not_every_output_has_first_is_refused(exported: Any, tmp_path: Path) -> None:
    made = exported("tinyssd256", SIZE_HW, None)
    model = compose(made.network, made.card, head=HEADS["raw"])
    model.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 1
    metadata = export_metadata(made.card, head=HEADS["raw"], batch=None, preprocess=False)
    with pytest.raises(ContractError, match="'logits' has no free batch as its first dimension"):
        write_triton(model, tmp_path / "tiny", metadata, made.card)
    assert list(tmp_path.iterdir()) == []


def test_only_an_unchanged_export_is_replaced(write: Any, tmp_path: Path) -> None:
    folder, _ = write("raw")
    write("decoded")
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]
    assert triton_parameters(read_config(folder))["multibox.head"] == "decoded"
    edited("max_batch_size: 8", "max_batch_size: 4\ninstance_group { count: 2 }")(folder)
    require_free(folder)  # what was edited is still an export
    (folder / "2").mkdir()
    taken = [folder, tmp_path / "file", tmp_path / "empty"]
    taken[1].write_text("", encoding="utf-8")
    taken[2].mkdir()
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    (foreign / "2").rmdir()
    edited("multibox.head", "head")(foreign)
    for path in (*taken, foreign):
        with pytest.raises(OptionError, match="exists and is not an unchanged export of ours; move it away"):
            require_free(path)
    with pytest.raises(OptionError):
        write("nms")
    assert (folder / "2").is_dir()
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_a_folder_that_cannot_be_written_leaves_nothing(
    write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("multibox.export.triton.write_onnx", full)
    with pytest.raises(OSError, match="no space left"):
        write()
    assert list((tmp_path / "repository").iterdir()) == []


@pytest.mark.parametrize("batch", [None, BATCH])
def test_tritons_own_definition_reads_it(batch: int | None, write: Any) -> None:
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    source = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", source)
    assert spec is not None
    assert spec.loader is not None
    protocol = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(protocol)
    folder, made = write("nms", batch=batch, preprocess=True)
    config = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), protocol.ModelConfig())
    assert config.max_batch_size == (MAX_BATCH if batch is None else 0)
    assert [(i.name, i.data_type) for i in config.input] == [("images", protocol.TYPE_UINT8)]
    kinds = {o.name: (o.data_type, list(o.dims)) for o in config.output}
    first = [] if batch is None else [batch]
    assert kinds == {
        "detections": (protocol.TYPE_FP32, [*first, ROWS, 6]),
        "count": (protocol.TYPE_INT64, first or [1]),
    }
    names = json.loads(config.parameters["multibox.class_names"].string_value)
    assert names == list(made.card.class_map.names)
