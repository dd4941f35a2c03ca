"""Which engine "auto" is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multibox import Detector
from multibox.catalogue import CATALOGUE
from multibox.errors import ModelFileError, OptionError
from multibox.inference.engines import choice
from multibox.inference.engines.choice import cache_file, fastest_engine, note_timings

MODEL = CATALOGUE["ssdlite300-coco"].path(".onnx")
BOTH = ("onnxruntime", "openvino")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTIBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MULTIBOX_ENGINE", raising=False)
    monkeypatch.setattr(choice, "installed", lambda _: True)
    return tmp_path / "cache" / "engines.json"


def test_without_a_cache_nothing_is_known_and_nothing_written(cache: Path) -> None:
    assert fastest_engine(MODEL, BOTH) is None
    assert Detector().engine.name == "onnxruntime"
    assert not cache.parent.exists()


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        ({"onnxruntime": 10.0, "openvino": 7.0}, "openvino"),
        ({"onnxruntime": 10.0, "openvino": 9.8}, "onnxruntime"),  # not worth a change
        ({"onnxruntime": 7.0, "openvino": 10.0}, "onnxruntime"),
        ({"openvino": 7.0}, None),
        ({"onnxruntime": 7.0, "torch": 1.0}, "onnxruntime"),  # does not open the file
    ],
)
def test_the_fastest_is_noted(cache: Path, timings: dict[str, float], expected: str | None) -> None:
    assert note_timings(MODEL, timings) == cache
    assert fastest_engine(MODEL, BOTH) == expected
    assert [path.name for path in cache.parent.iterdir()] == ["engines.json"]


def test_another_file_machine_or_version_is_another_entry(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note_timings(MODEL, {"onnxruntime": 10.0, "openvino": 7.0})
    other = tmp_path / "other.onnx"
    data = bytearray(MODEL.read_bytes())
    other.write_bytes(data)
    assert fastest_engine(other, BOTH) == "openvino"  # the same model elsewhere
    data[-1] ^= 1
    other.write_bytes(data)
    assert fastest_engine(other, BOTH) is None
    assert fastest_engine(tmp_path / "none.onnx", BOTH) is None
    monkeypatch.setattr(choice, "usable_cpus", lambda: 77)
    assert fastest_engine(MODEL, BOTH) is None


def test_an_engine_that_was_removed_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    note_timings(MODEL, {"onnxruntime": 10.0, "openvino": 7.0})
    monkeypatch.setattr(choice, "installed", lambda name: name != "openvino")
    assert fastest_engine(MODEL, BOTH) == "onnxruntime"
    assert Detector().engine.name == "onnxruntime"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 2, "entries": {}}', '{"format": 1, "entries": [1]}', '{"format": 1}', "[" * 100_000],
)
def test_a_damaged_cache_counts_as_none_and_is_replaced(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert fastest_engine(MODEL, BOTH) is None
    assert note_timings(MODEL, {"onnxruntime": 10.0, "openvino": 7.0}) == cache
    assert fastest_engine(MODEL, BOTH) == "openvino"


@pytest.mark.parametrize("entry", [None, 3, {"size": MODEL.stat().st_size}, {"size": MODEL.stat().st_size, "ms": [1]}])
def test_entries_of_the_wrong_kind(cache: Path, entry: object) -> None:
    note_timings(MODEL, {"onnxruntime": 10.0, "openvino": 7.0})
    data = json.loads(cache.read_text())
    data["entries"] = dict.fromkeys(data["entries"], entry)
    cache.write_text(json.dumps(data))
    assert fastest_engine(MODEL, BOTH) is None


def test_a_place_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MULTIBOX_CACHE", str(tmp_path / "file" / "below"))
    assert note_timings(MODEL, {"onnxruntime": 10.0, "openvino": 7.0}) is None
    assert Detector().engine.name == "onnxruntime"
    monkeypatch.setenv("MULTIBOX_CACHE", "~nobody-of-this-name/cache")
    assert cache_file() is None
    assert note_timings(MODEL, {"onnxruntime": 10.0}) is None
    assert fastest_engine(MODEL, BOTH) is None


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MULTIBOX_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "multibox" / "engines.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_file() == tmp_path / "home" / ".cache" / "multibox" / "engines.json"


def test_the_oldest_entries_go_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MOST_ENTRIES", 2)
    for i in range(3):
        (tmp_path / f"{i}.onnx").write_bytes(bytes([i]))
        note_timings(tmp_path / f"{i}.onnx", {"onnxruntime": 1.0})
    assert [Path(entry["path"]).name for entry in json.loads(cache.read_text())["entries"].values()] == [
        "1.onnx",
        "2.onnx",
    ]


def test_the_environment_decides_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note_timings(MODEL, {"onnxruntime": 10.0, "openvino": 7.0})
    monkeypatch.setenv("MULTIBOX_ENGINE", "onnxruntime")
    assert Detector().engine.name == "onnxruntime"
    monkeypatch.setenv("MULTIBOX_ENGINE", "onnxruntim")
    with pytest.raises(OptionError, match="MULTIBOX_ENGINE: unknown engine 'onnxruntim'; did you mean 'onnxruntime'"):
        Detector()
    assert Detector(engine="onnxruntime").engine.name == "onnxruntime"
    monkeypatch.setenv("MULTIBOX_ENGINE", "torch")
    with pytest.raises(ModelFileError, match="engine 'torch' does not open it; MULTIBOX_ENGINE=torch asks for that"):
        Detector(MODEL)


def test_only_a_file_that_may_be_known_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, same = tmp_path / "other.onnx", tmp_path / "same.onnx"
    other.write_bytes(b"another size")
    same.write_bytes(MODEL.read_bytes())
    note_timings(other, {"onnxruntime": 10.0, "openvino": 7.0})
    hashed: list[Path] = []
    original = choice._digest
    monkeypatch.setattr(choice, "_digest", lambda path: hashed.append(path) or original(path))
    assert fastest_engine(MODEL, BOTH) is None
    assert hashed == []
    note_timings(MODEL, {"onnxruntime": 10.0, "openvino": 7.0})
    assert hashed == [MODEL]
    assert fastest_engine(MODEL, BOTH) == "openvino"  # the same path, size and time
    assert hashed == [MODEL]
    assert fastest_engine(same, BOTH) == "openvino"
    assert hashed == [MODEL, same]
