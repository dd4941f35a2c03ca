"""`multibox benchmark`, with turns as short as they can be: what is printed, noted and refused, not how fast it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multibox.benchmark import contenders, run, turns
from multibox.benchmark.machine import EnergyMeter, hardware_line, peak_memory_mb
from multibox.benchmark.numbers import percentiles_ms
from multibox.benchmark.run import BenchmarkRequest
from multibox.cli import main
from multibox.errors import OptionError

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., tuple[int, str, str]]
START = {"load_ms": 100.0, "first_ms": 20.0, "start_ms": 400.0, "peak_mb": 90.0}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`multibox benchmark ARGS` in this process and an empty working folder: exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MULTIBOX_CACHE", str(tmp_path / "cache"))
    for name, value in {"TURN_S": 0.001, "FOLDER_PICTURES": 3, "LEAST_ROUNDS": 2, "WARM_UP_CALLS": 1}.items():
        for module in (run, turns):
            monkeypatch.setattr(module, name, value, raising=module is turns)
    monkeypatch.setattr(run, "fresh_process", lambda *_, **__: START)

    def command(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["multibox", "benchmark", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(stop.value.code or 0), captured.out, captured.err

    return command


@pytest.mark.slow
def test_a_page(call: Run) -> None:
    code, out, err = call("engine=onnxruntime", "seconds=0.01", "batch=1,2", "threads=1")
    assert code == 0
    assert out.startswith("# ssdlite300-coco (300 × 300)\n\n")
    assert hardware_line() in out
    rows = [line for line in out.splitlines() if line.startswith("| ssdlite300-coco | onnxruntime |")]
    assert len(rows) == 2 * 3
    assert all(len(row) == len(rows[i // 2 * 2]) for i, row in enumerate(rows))
    assert "a made-up picture" in out
    assert "warming up 4 contenders" in err
    assert "engine=auto" not in out  # one engine leaves nothing to choose
    assert not Path("cache").exists()


def test_json_on_a_folder_with_a_bad_picture(call: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("chelsea", "coffee"):
        Image.open(EXAMPLES / f"{name}.png").convert("RGB").resize((200, 150)).save(folder / f"{name}.jpg")
    (folder / "bad.jpg").write_bytes(b"no picture")
    code, out, err = call(f"data={folder}", "engine=onnxruntime", "seconds=0.01", "threads=2", "--json", "--quiet")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["pictures"] == 2
    assert "bad.jpg" in found["notes"][0]
    (row,) = found["rows"]
    assert (row["engine"], row["threads"], row["batch"]) == ("onnxruntime", 2, 1)
    for key in ("total_ms", "network_ms", "decode_ms", "postprocess_ms"):
        assert 0 < row[key]["p50"] <= row[key]["p90"] <= row[key]["p99"]
    assert row["network_ms"]["p50"] < row["total_ms"]["p50"]
    assert row["folder_pictures_per_s"] > 0
    assert {key: row[key] for key in START} == START


@pytest.mark.slow
def test_a_new_process(tmp_path: Path) -> None:
    from multibox.benchmark.fresh import fresh_process

    picture = EXAMPLES / "coffee.png"
    found = fresh_process("ssdlite300-coco", engine="onnxruntime", threads=1, picture=picture)
    assert found is not None
    assert 0 < (found["first_ms"] or 0) < (found["start_ms"] or 0)
    assert 0 < (found["load_ms"] or 0) < (found["start_ms"] or 0)
    assert 20 < (found["peak_mb"] or 0) < 2000
    assert fresh_process("none.onnx", engine="onnxruntime", threads=1, picture=picture) is None


def thrice(run_engine: Callable[[Any], Any], images: Any) -> Any:
    return [run_engine(images) for _ in range(3)][-1]


@pytest.mark.slow
def test_the_fastest_of_several_is_noted(call: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With two stand-ins for engines that open the same file."""
    from multibox.inference.engines import choice

    monkeypatch.setattr(choice, "installed", lambda _: True)
    monkeypatch.setattr(run, "usable_cpus", lambda: 1)
    opened: list[Any] = []
    original = run.Detector

    def detector(model: str, *, engine: str, threads: int) -> Any:
        made = original(model, engine="onnxruntime", threads=threads)
        made.engine.name = engine
        if engine == "onnxruntime":
            made.engine.run = partial(thrice, made.engine.run)
        opened.append(made)
        return made

    monkeypatch.setattr(run, "Detector", detector)
    code, out, _ = call("engine=onnxruntime,openvino", "seconds=0.01")
    assert code == 0
    assert "engine=auto takes openvino for ssdlite300-coco on this machine from now on" in out
    assert (tmp_path / "cache" / "engines.json").is_file()
    assert choice.fastest_engine(opened[0].path, ("onnxruntime", "openvino")) == "openvino"
    (tmp_path / "cache" / "engines.json").unlink()
    assert "engine=auto" not in call("engine=onnxruntime,openvino", "seconds=0.01", "--no-remember")[1]
    assert not (tmp_path / "cache" / "engines.json").exists()
    monkeypatch.setenv("MULTIBOX_CACHE", "/dev/null/nowhere")
    assert "could not be noted" in call("engine=onnxruntime,openvino", "seconds=0.01")[1]


@pytest.mark.slow
def test_against_torchvision(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision", reason="the train extra is not installed")
    code, out, _ = call("engine=onnxruntime", "seconds=0.01", "threads=1", "against=ssdlite320", "--json")
    assert code == 0
    (row,) = json.loads(out)["against"]
    assert row["name"] == "ssdlite320_mobilenet_v3_large"
    (ratio,) = row["times_ours"]
    assert (ratio["model"], ratio["engine"]) == ("ssdlite300-coco", "onnxruntime")
    assert 0 < ratio["without_postprocess"] < ratio["total"]
    assert row["postprocess_ms"]["p50"] > 0
    monkeypatch.setattr(run, "TORCHVISION", {"ssdlite320": run.TORCHVISION["ssdlite320"]})
    code, out, _ = call("engine=onnxruntime", "seconds=0.01", "threads=1", "against=torchvision")
    assert "random weights (weights=None)" in out
    assert "| ssdlite300-coco | onnxruntime | ssdlite320_mobilenet_v3_large |" in out


@pytest.mark.slow
def test_several_models(call: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(run.Detector("ssdlite300-coco", engine="onnxruntime").path.read_bytes())
    code, out, _ = call("ssdlite300-coco", other, "engine=onnxruntime", "seconds=0.01", "threads=1", "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["model"] for row in found["rows"]] == ["ssdlite300-coco", str(other)]
    assert found["models"][str(other)] == {"name": "ssdlite300-coco", "input_hw": [300, 300]}


def test_torchvision_names_are_its_own() -> None:
    detection = pytest.importorskip("torchvision.models.detection", reason="the train extra is not installed")
    assert all(hasattr(detection, builder) for builder in contenders.TORCHVISION.values())


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["engine=onnxruntim"], 1, "unknown engine 'onnxruntim'; did you mean 'onnxruntime'?"),
        (["none.onnx"], 1, "none.onnx: no such model file"),
        (["engine=onnxruntime", "data=nowhere"], 1, "nowhere: no picture that can be read"),
        (["batch=0"], 2, "'0' is no list of whole numbers from 1"),
        (["threads=two"], 2, "'two' is no list of whole numbers from 1"),
        (["conf=1"], 2, "1.0 is not in the range 0<=x<1."),
        (["seconds=0"], 2, "0.0 is not in the range x>0."),
        (["against=yolo"], 1, "against: unknown 'yolo'; known: fasterrcnn, fasterrcnn320, ssd300, "),
    ],
)
def test_refusals(call: Run, args: list[str], code: int, message: str) -> None:
    ended, out, err = call(*args)
    assert (ended, out) == (code, "")
    assert message in err


@pytest.mark.parametrize(
    "values",
    [
        {"batches": ()},
        {"batches": (0,)},
        {"threads": (-1,)},
        {"conf": 1.0},
        {"against": ("x",)},
        {"models": ()},
        {"seconds": 0},
    ],
)
def test_requests_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        BenchmarkRequest(**values)


def test_percentiles() -> None:
    found = percentiles_ms(np.arange(101) / 1000)
    assert found == pytest.approx({"p50": 50.0, "p90": 90.0, "p99": 99.0})


def test_energy_counters(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "none").read() is None
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("999999999\n")
        (tmp_path / name / "energy_uj").write_text("999000000\n")
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    assert before == (999000000, 999000000)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("500000\n")  # it started anew
    assert meter.joules(before, meter.read()) == pytest.approx(1.5)
    assert meter.joules(before, None) is None
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()  # as if it may no longer be read
    assert meter.read() is None


def test_memory_of_this_process() -> None:
    assert (peak_memory_mb() or 100) > 10


def test_the_help_names_every_detector_to_compare_with(call: Run) -> None:
    status, out, _ = call("--help")
    assert status == 0
    assert f"all, or some of {', '.join(contenders.TORCHVISION)}." in " ".join(out.split())


@pytest.mark.slow
def test_a_file_with_a_fixed_batch_is_timed_on_as_many_pictures(call: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the export extra is not installed")
    import multibox

    path = tmp_path / "four.onnx"
    assert multibox.export("tinyssd256", imgsz=64, batch=4, output=path).report.passed
    code, out, _ = call(path, "engine=onnxruntime", "seconds=0.01", "threads=1", "json=true")
    assert code == 0
    found = json.loads(out)
    (row,) = found["rows"]
    assert row["batch"] == 4
    assert row["pictures_per_s"] == pytest.approx(4e3 / row["total_ms"]["p50"], rel=0.9)
    assert any("takes 4 at once" in note for note in found["notes"])
