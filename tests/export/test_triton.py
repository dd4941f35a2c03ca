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

from multibox.errors import ContractError, OptionError
from multibox.export.layout import Layout, metadata_of
from multibox.export.triton import MAX_BATCH, compose, require_free
from multibox.export.triton import write as write_triton
from multibox.export.verify.check import Report, verify
from multibox.export.verify.samples import drawn_pictures
from multibox.spec.classes import ClassMap

pytestmark = pytest.mark.slow

SIZE_HW = (96, 64)
ANCHORS = 512  # of tinyssd256 at this size
ROWS = 200
BATCH = 3


@pytest.fixture
def write(exported: Any, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    def written(head: str = "nms", *, batch: int | None = None, preprocess: bool = False) -> tuple[Path, Any]:
        made = exported("tinyssd256", SIZE_HW)
        made = replace(made, card=replace(made.card, class_map=ClassMap(('tête-à-"tête"',))))
        layout = Layout(head, batch, preprocess)
        model = compose(made.network, made.card, layout)
        write_triton(model, tmp_path / "repository" / "tiny", metadata_of(made.card, layout), made.card)
        return tmp_path / "repository" / "tiny", made

    return written


def judged(folder: Path, made: Any) -> Report:
    return verify(folder, made.detector, made.card, drawn_pictures()[2:6])


OUTPUTS: dict[str, dict[str, tuple[str, list[int]]]] = {
    "raw": {"offsets": ("TYPE_FP32", [ANCHORS, 4]), "logits": ("TYPE_FP32", [ANCHORS, 2])},
    "decoded": {"boxes_unit_xyxy": ("TYPE_FP32", [ANCHORS, 4]), "scores": ("TYPE_FP32", [ANCHORS, 1])},
    "nms": {"detections": ("TYPE_FP32", [ROWS, 6]), "count": ("TYPE_INT64", [])},
}


def declaration(kind: str, name: str, data_type: str, dims: list[int]) -> str:
    more = "" if dims else "  reshape {\n  }\n"
    more += '  label_filename: "labels.txt"\n' if name == "scores" else ""
    return f'\n{kind} {{\n  name: "{name}"\n  data_type: {data_type}\n  dims: {dims or [1]}\n{more}}}\n'


@pytest.mark.parametrize("preprocess", [False, True])
@pytest.mark.parametrize("batch", [None, BATCH])
@pytest.mark.parametrize("head", OUTPUTS)
def test_what_is_declared_and_that_it_runs(head: str, batch: int | None, preprocess: bool, write: Any) -> None:
    folder, made = write(head, batch=batch, preprocess=preprocess)
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    assert text.startswith('name: "tiny"\nbackend: "onnxruntime"\ndefault_model_filename: "model.onnx"\n')
    assert f"\nmax_batch_size: {MAX_BATCH if batch is None else 0}\n" in text
    assert ("\ndynamic_batching {\n}\n" in text) == (batch is None)
    assert "version_policy {\n  latest {\n    num_versions: 1\n  }\n}\n" in text
    first = [] if batch is None else [batch]
    taken = [-1, -1, 3] if preprocess else [3, *SIZE_HW]
    assert declaration("input", "images", "TYPE_UINT8" if preprocess else "TYPE_FP32", [*first, *taken]) in text
    assert text.count("\ninput {") == 1
    assert text.count("\noutput {") == 2
    for name, (data_type, dims) in OUTPUTS[head].items():
        assert declaration("output", name, data_type, [*first, *dims]) in text
    assert (folder / "labels.txt").read_text(encoding="utf-8") == 'tête-à-"tête"\n'
    assert parameter("head", head) in text
    assert parameter("class_names", json.dumps(list(made.card.class_map.names), ensure_ascii=False)) in text
    assert parameter("preprocess", json.dumps(made.card.preprocess.to_dict(), sort_keys=True)) in text
    report = judged(folder, made)
    assert report.failures == []
    assert report.detections is not None
    assert report.detections.paired > 0


def parameter(key: str, value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'\nparameters {{\n  key: "multibox.{key}"\n  value {{\n    string_value: "{quoted}"\n  }}\n}}\n'


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
    "unknown input": (edited('name: "images"', 'name: "image"'), "input 'images' of the model is not declared"),
    "unknown output": (edited('name: "count"', 'name: "counts"'), "the model has no output 'counts'"),
    "classes": (edited("tête-à-", "tête"), "the parameter class_names does not hold the model's classes"),
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


def test_a_batch_that_not_every_output_has_first_is_refused(exported: Any, tmp_path: Path) -> None:
    made = exported("tinyssd256", SIZE_HW)
    model = compose(made.network, made.card, Layout())
    model.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 1
    metadata = metadata_of(made.card, Layout())
    with pytest.raises(ContractError, match="'logits' has no free batch as its first dimension"):
        write_triton(model, tmp_path / "tiny", metadata, made.card)
    assert list(tmp_path.iterdir()) == []


def test_only_an_unchanged_export_is_replaced(write: Any, tmp_path: Path) -> None:
    folder, _ = write("raw")
    write("decoded")
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]
    assert parameter("head", "decoded") in (folder / "config.pbtxt").read_text(encoding="utf-8")
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
    from google.protobuf import text_format

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
