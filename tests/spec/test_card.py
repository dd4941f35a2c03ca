from __future__ import annotations

import copy
import dataclasses
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.catalogue import CATALOGUE, DEFAULT_MODEL, resolve_model
from multibox.errors import ContractError, ModelFileError
from multibox.spec.anchors import anchors_digest, ssd_anchors
from multibox.spec.card import METADATA_KEY, ModelCard, read_safetensors_card
from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess

MAPS = ((2, 3), (1, 1))


def make(**changes: Any) -> ModelCard:
    anchors = ssd_anchors((0.2, 0.5, 0.9), ((2,), ()), steps=(16, 32), nominal_size_hw=(32, 48))
    values: dict[str, Any] = {
        "name": "tiny",
        "builder": "builder",
        "arguments": {"num_classes": 2},
        "class_map": ClassMap(("cat", "Hündin, „groß“"), (3, 7)),
        "preprocess": Preprocess((32, 48), mean=(1, 2, 3)),
        "postprocess": PostprocessSpec("softmax", top_k=None),
        "anchors": anchors,
        "variances": (0.1, 0.1, 0.2, 0.2),
        "feature_sizes_hw": MAPS,
        "anchors_sha256": anchors_digest(anchors.generate(MAPS, (32, 48))),
        "summary": {"boxes": 26},
        "licence": "Apache-2.0",
        "training": {"seed": 1},
        "metrics": {"ap": 0.25},
    }
    return ModelCard(**{**values, **changes})


GOOD: dict[str, Any] = json.loads(make().to_json())


def one_line_naming(error: ModelFileError, name: str) -> bool:
    text = str(error)
    return (
        "\n" not in text and text.startswith(f"{name}: ") and error.source == name and "; " in text and len(text) < 700
    )


# ------------------------------------------------------------------------------------------------ JSON


def test_json_round_trip() -> None:
    card = make()
    assert ModelCard.from_json(card.to_json(), source="file") == card
    assert ModelCard.from_json(card.to_json(), source="file").to_json() == card.to_json()


def test_json_is_one_ascii_line_and_does_not_depend_on_key_order() -> None:
    text = make(arguments={"a": 1, "b": 2}).to_json()
    assert text == make(arguments={"b": 2, "a": 1}).to_json()
    assert text.isascii()
    assert "\n" not in text


@pytest.mark.parametrize("values", [{"ap": float("nan")}, {"ap": np.float32(1)}, {"ap": object()}])
def test_what_json_cannot_hold_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="the card of tiny holds what JSON cannot"):
        make(metrics=values).to_json()


def test_a_newer_format_says_upgrade() -> None:
    with pytest.raises(ModelFileError, match=r"metadata format 2, this multibox reads 1; upgrade multibox") as caught:
        ModelCard.from_json(json.dumps({**GOOD, "format": 2, "what": "ever"}), source="new.onnx")
    assert one_line_naming(caught.value, "new.onnx")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ModelFileError, match=r"unknown metadata key 'licences'; did you mean 'licence'\?") as caught:
        ModelCard.from_json(json.dumps({**GOOD, "licences": ""}), source="f.onnx")
    assert one_line_naming(caught.value, "f.onnx")


@pytest.mark.parametrize(
    "key", [k for k in GOOD if k not in {"format", "summary", "licence", "source", "training", "metrics"}]
)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ModelFileError, match=f"lacks '{key}'") as caught:
        ModelCard.from_json(json.dumps({k: v for k, v in GOOD.items() if k != key}), source="f.onnx")
    assert one_line_naming(caught.value, "f.onnx")


def test_optional_parts_may_be_missing() -> None:
    least = {k: v for k, v in GOOD.items() if k not in {"summary", "licence", "source", "training", "metrics"}}
    card = ModelCard.from_json(json.dumps(least), source="f.onnx")
    assert (card.summary, card.licence, card.source, card.training, card.metrics) == ({}, "", "", {}, {})


@pytest.mark.parametrize(
    "text",
    ["", " ", "nonsense", "[]", "5", '"format"', "null", "{}", '{"format"', "[" * 100_000, "\x00", '{"format": 1'],
)
def test_text_that_is_no_card(text: str) -> None:
    with pytest.raises(ModelFileError, match="multibox metadata is damaged") as caught:
        ModelCard.from_json(text, source="f.onnx")
    assert one_line_naming(caught.value, "f.onnx")


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("name",), 5, "name must be a str"),
        (("builder",), None, "builder must be a str"),
        (("arguments",), [1], "arguments must be a dict"),
        (("summary",), "x", "summary must be a dict"),
        (("anchors_sha256",), 5, "anchors_sha256 must be a str"),
        (("class_map",), [], "class_map"),
        (("class_map",), "cat", "class_map"),
        (("class_map",), {"names": "cat", "ids": []}, "must be a list of strings"),
        (("class_map", "names"), ["a"], "1 class names but 2 ids"),
        (("class_map", "names"), ["a", "a"], "used more than once"),
        (("class_map", "names"), ["a", "b\nc"], "line break"),
        (("class_map",), {"names": ["a"]}, "class_map lacks 'ids'"),
        (("preprocess",), [], "preprocess"),
        (("preprocess",), None, "preprocess"),
        (("preprocess", "size_hw"), [0, 5], "size_hw must be two integers"),
        (("preprocess", "mean"), [1, 2, float("nan")], "finite"),
        (("preprocess", "antialias"), True, "not supported"),
        (("postprocess",), 5, "postprocess"),
        (("postprocess", "activation"), "relu", "unknown"),
        (("postprocess", "nms_iou"), "0.5", "nms_iou"),
        (("anchors",), {}, "anchors lacks"),
        (("anchors", "levels"), [], "at least one level"),
        (("anchors", "levels"), [[[1, 2, 3]]], "anchors"),
        (("anchors", "levels"), 7, "anchors"),
        (("anchors", "nominal_size_hw"), [1], "anchors"),
        (("anchors", "offset"), float("inf"), "offset must be finite"),
        (("anchors", "steps"), [0, 1], "steps must be positive"),
        (("variances",), [0.1, 0.1, 0.2], "variances"),
        (("variances",), [0.1, 0.1, 0.2, 0], "variances must be positive"),
        (("variances",), [0.1, 0.1, 0.2, float("nan")], "variances must be positive"),
        (("variances",), "abcd", "variances"),
        (("feature_sizes_hw",), [[2, 3]], "2 anchor levels but 1 feature maps"),
        (("feature_sizes_hw",), [[2, 3], [0, 1]], "a feature map of 0 × 1"),
        (("feature_sizes_hw",), [[2, 3], [10**9, 10**9]], "a feature map of 1000000000"),
        (("feature_sizes_hw",), [[2, 3], [float("inf"), 1]], "feature_sizes_hw"),
        (("feature_sizes_hw",), [[2, 3], 5], "feature_sizes_hw"),
    ],
)
def test_damaged_values(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        ModelCard.from_json(json.dumps(changed(path, value)), source="f.onnx")
    assert one_line_naming(caught.value, "f.onnx")


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of nested JSON lies."""
    items: Any = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(places(GOOD), key=str)), json_values)
def test_any_value_anywhere_is_read_or_refused_in_one_line(path: tuple[Any, ...], value: Any) -> None:
    text = json.dumps(changed(path, value))
    refused = ""
    try:
        card = ModelCard.from_json(text, source="f.onnx")
        boxes = card.anchors_cxcywh()
    except ModelFileError as error:
        refused = str(error)
    assert "\n" not in refused
    assert refused or anchors_digest(boxes) == GOOD["anchors_sha256"] == card.anchors_sha256


@given(json_values)
def test_any_json_is_refused_as_a_card(value: Any) -> None:
    with pytest.raises(ModelFileError):
        ModelCard.from_json(json.dumps(value), source="f.onnx")


def test_anchors_are_checked_against_their_digest() -> None:
    assert make().anchors_cxcywh().shape == (2 * 3 * 4 + 2, 4)
    spec = make().anchors
    shifted = make(anchors=dataclasses.replace(spec, offset=0.25))
    with pytest.raises(ModelFileError, match="its default boxes differ from those it was made with"):
        shifted.anchors_cxcywh()


# ------------------------------------------------------------------------------------------------ safetensors headers


def container(header: Any, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def test_reads_the_card_of_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(container({"__metadata__": {METADATA_KEY: make().to_json()}}) + b"tensors")
    assert read_safetensors_card(path) == make()


def test_reads_the_shipped_card() -> None:
    card = read_safetensors_card(CATALOGUE[DEFAULT_MODEL].path(".safetensors"))
    assert len(card.class_map) == 80
    assert card.anchors_cxcywh().shape == (1917, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x08\x00\x00", "not a safetensors file"),
        (b"\x00" * 64, "not a safetensors file"),
        (b"PK\x03\x04" + b"\x00" * 60, "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"\x80\x02}q\x00." * 20, "not a safetensors file"),
        (container({}, length=99_999_999), "ends within its header"),
        (container({}, length=10**15), "not a safetensors file"),
        (container(b"{nonsense}"), "header is damaged"),
        (container(b"\xff\xfe\xff\xff"), "header is damaged"),
        (container(b"[" * 100_000), "header is damaged"),
        (container([]), "header is damaged"),
        (container("text"), "header is damaged"),
        (container({"__metadata__": "multibox"}), "header is damaged"),
        (container({"__metadata__": None}), "header is damaged"),
        (container({}), "without multibox metadata; convert foreign weights with `multibox import`"),
        (container({"__metadata__": {"format": "pt"}}), "without multibox metadata"),
        (container({"__metadata__": {METADATA_KEY: 5}}), "without multibox metadata"),
        (container({"__metadata__": {METADATA_KEY: "5"}}), "metadata is damaged"),
    ],
)
def test_damaged_and_foreign_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_safetensors_card(path)
    assert one_line_naming(caught.value, str(path))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_safetensors_card(path)
    assert one_line_naming(caught.value, str(path))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file; check the path"):
        read_safetensors_card(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match=r"cannot be read \(Is a directory\)"):
        read_safetensors_card(tmp_path)


# ------------------------------------------------------------------------------------------------ names and paths


def test_a_shipped_name_gives_the_first_suffix() -> None:
    for suffixes in ((".onnx", ".safetensors"), (".safetensors", ".onnx")):
        path = resolve_model(DEFAULT_MODEL, suffixes=suffixes)
        assert path.is_file()
        assert path.suffix == suffixes[0]


@pytest.mark.parametrize("name", ["a.onnx", "b.safetensors", "C.ONNX", "deep/d.onnx"])
def test_an_existing_file_is_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / name).touch()
    assert resolve_model(tmp_path / name) == tmp_path / name
    assert resolve_model(str(tmp_path / name)) == tmp_path / name


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve_model("~/m.onnx") == tmp_path / "m.onnx"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ssdlite300-cocoo", r"unknown model; did you mean 'ssdlite300-coco'\?$"),
        ("SSDLite300-COCO", r"did you mean 'ssdlite300-coco'\?$"),
        ("yolo", r"unknown model; known: bpn300_mobilenetv2, .*; or give the path of a model file"),
        ("ssdlite300-coco.onnx", "no such model file; the model that ships inside is called 'ssdlite300-coco'"),
        ("best.onnx", "no such model file; check the path, or see `multibox list`"),
        ("runs/train", "no such model file; check the path"),
        ("~nobody-of-that-name/m.onnx", "no such model file; check the path"),
        ("x" * 5000 + ".onnx", "no such model file"),
        ("nul\x00byte.onnx", "no such model file"),
        ("", "is an empty name; give a .onnx or .safetensors file, or one of: ssdlite300-coco"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match=message):
        resolve_model(name)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".PTH", ".ckpt", ".bin", ".pickle"])
def test_pickled_files_are_refused_with_the_remedy(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.touch()
    with pytest.raises(
        ModelFileError, match=r"they are pickled, and reading them can run code; .*`multibox import`"
    ) as caught:
        resolve_model(path)
    assert one_line_naming(caught.value, str(path))


@pytest.mark.parametrize(("suffix", "shown"), [(".pb", ".pb"), (".h5", ".h5"), (".txt", ".txt"), ("", "one without")])
def test_other_files_are_refused_with_the_remedy(tmp_path: Path, suffix: str, shown: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.touch()
    message = (
        f"a .onnx or .safetensors file is needed here, not {shown}.*; convert foreign weights with `multibox import`"
    )
    with pytest.raises(ModelFileError, match=message) as caught:
        resolve_model(path)
    assert one_line_naming(caught.value, str(path))


def test_an_openvino_file_is_no_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.touch()
    with pytest.raises(ModelFileError, match=r"not \.xml; give that one, or use engine=auto$"):
        resolve_model(path, suffixes=(".onnx",))


def test_a_file_of_the_other_kind(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    message = r"a \.safetensors file is needed here, not \.onnx; give that one, or use engine=auto"
    with pytest.raises(ModelFileError, match=message):
        resolve_model(tmp_path / "m.onnx", suffixes=(".safetensors",))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a folder; name the model file inside it"):
        resolve_model(tmp_path)
