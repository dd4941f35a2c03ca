"""The command line as its users meet it: exit status, standard output, standard error and the files it writes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import multibox
from multibox import Detector
from multibox.catalogue import CATALOGUE, DEFAULT_MODEL, NETWORKS
from multibox.cli import main
from multibox.cli.info import render
from multibox.errors import install_command
from multibox.inference.engines.onnxruntime import OrtEngine
from multibox.run_folders import RUN_MARKER
from multibox.spec.card import METADATA_KEY, ModelCard, read_safetensors_card
from multibox.spec.classes import COCO_CLASSES
from multibox.spec.detections import Detections

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CAT, PERSON, CUP = (str(EXAMPLES / f"{name}.png") for name in ("chelsea", "astronaut", "coffee"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
COMMAND = [sys.executable, "-m", "multibox"]
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and terminals of POSIX systems")


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`multibox ARGS` in this process and an empty working folder, through the real entry point."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["multibox", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(int(stop.value.code or 0), captured.out, captured.err)

    return call


def spawn(*args: str | Path, cwd: Path, stdin: bytes | None = None, **environment: str) -> Ran:
    """`multibox ARGS` in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def names(row: dict[str, Any]) -> list[str]:
    return [found["name"] for found in row["detections"]]


# ------------------------------------------------------------------------------------------------ the whole program


def test_without_arguments_it_explains_itself(run: Run) -> None:
    said = run()
    assert said.code == 2
    for verb in ("predict", "info", "list", "import"):
        assert re.search(rf"^  {verb} +\S", said.err, re.MULTILINE)


@pytest.mark.parametrize("verb", [[], ["predict"], ["info"], ["list"], ["import"]])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(run: Run, verb: list[str], flag: str) -> None:
    said = run(*verb, flag)
    assert said.code == 0
    assert said.out.startswith(" ".join(["Usage: multibox", *verb]))
    assert said.err == ""
    assert list(Path().iterdir()) == []


def test_version(run: Run) -> None:
    assert run("--version") == Ran(0, f"multibox, version {multibox.__version__}\n", "")


def test_as_a_module(tmp_path: Path) -> None:
    said = spawn("--version", cwd=tmp_path)
    assert said == Ran(0, f"multibox, version {multibox.__version__}\n", "")
    assert spawn("predict", cwd=tmp_path).err.startswith("Usage: multibox predict")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prdict"], "unknown command 'prdict'; did you mean 'predict'?"),
        (["cat.jpg"], "unknown command 'cat.jpg'; did you mean: multibox predict cat.jpg"),
        (["zzz"], "unknown command 'zzz'; known: "),
        (["predict"], "name at least one picture, folder or pattern: multibox predict cat.jpg"),
        (["predict", "--cnof", "0.3", CAT], "unknown option '--cnof'; did you mean '--conf'?"),
        (["predict", CAT, "classs=cat"], "unknown option 'classs'; did you mean 'classes'?"),
        (["predict", CAT, "conf=2"], "Invalid value for '--conf': 2.0 is not in the range 0<=x<1."),
        (["predict", CAT, "conf=1"], "1.0 is not in the range 0<=x<1."),
        (["predict", CAT, "conf=nan"], "'nan' is not a number."),
        (["predict", CAT, "iou=-0.1"], "Invalid value for '--iou': -0.1 is not in the range 0<=x<=1."),
        (["predict", CAT, "iou=nan"], "'nan' is not a number."),
        (["predict", CAT, "max_det=0"], "Invalid value for '--max-det': 0 is not in the range x>=1."),
        (["predict", CAT, "save=maybe"], "save is a switch: write save=true or save=false, not 'maybe'"),
        (["info", "a", "b"], "unexpected extra argument"),
        (["list", "x"], "unexpected extra argument"),
        (["import"], "Missing argument"),
    ],
)
def test_wrong_usage(run: Run, args: list[str], message: str) -> None:
    said = run(*args)
    assert said.code == 2
    assert message in said.err
    assert "--help' for help." in said.err
    assert said.out == ""
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["model=ssdlite300-cco"], "ssdlite300-cco: unknown model; did you mean 'ssdlite300-coco'?"),
        (["model=yolo"], "yolo: unknown model; known: bpn300_mobilenetv2, "),
        (["model=none.onnx"], "none.onnx: no such model file; check the path, or see `multibox list`"),
        (["model="], "'': is an empty name; give a .onnx or .safetensors or .xml or .tflite file"),
        (["engine=onnxruntme"], "unknown engine 'onnxruntme'; did you mean 'onnxruntime'?"),
        (["device=gpu"], "unknown device 'gpu'; use cpu, cuda or cuda:0"),
        (["classes=dgo"], "unknown class 'dgo'; did you mean 'dog'?"),
        (["classes=80"], "class index 80 is outside 0…79"),
        (["classes="], "names no class; write classes=cat,dog, or leave it out for all classes"),
        (["classes=,"], "names no class"),
        (["name=../x"], "name='../x' must be a plain folder name; put the path into project"),
        (["name=.."], "must be a plain folder name"),
        (["name="], "must be a plain folder name"),
    ],
)
def test_expected_failures_are_one_line(run: Run, args: list[str], message: str) -> None:
    said = run("predict", CAT, *args)
    assert said.code == 1
    assert message in said.err
    assert said.err.startswith("multibox: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert list(Path().iterdir()) == []


# ------------------------------------------------------------------------------------------------ predict


def test_finds_cat_person_and_cup(run: Run) -> None:
    said = run("predict", CAT, PERSON, CUP)
    assert said.code == 0
    assert said.out.splitlines()[0] == f"{CAT} (451×300): 1 cat"
    assert re.fullmatch(rf"{re.escape(PERSON)} \(512×512\): .*1 person.*", said.out.splitlines()[1])
    assert re.fullmatch(rf"{re.escape(CUP)} \(600×400\): .*1 cup.*", said.out.splitlines()[2])
    assert re.fullmatch(r"3 pictures, \d+ objects\nresults in runs.predict\n", said.err)
    drawn = sorted(Path("runs/predict").glob("*.*g"))
    assert [path.name for path in drawn] == ["astronaut.png", "chelsea.png", "coffee.png"]
    for path in drawn:
        with Image.open(path) as ours, Image.open(EXAMPLES / path.name) as original:
            assert ours.size == original.size
            assert (np.asarray(ours) != np.asarray(original.convert("RGB"))).any()


def test_json_lines_are_exact(run: Run) -> None:
    said = run("predict", CAT, CUP, "--json")
    assert said.code == 0
    assert list(Path().iterdir()) == []  # json alone draws nothing
    detector = Detector()
    for row, path in zip(said.rows, (CAT, CUP), strict=True):
        assert set(row) == {"path", "width", "height", "detections"}
        for found in row["detections"]:
            assert set(found) == {"name", "class_id", "confidence", "box"}
            assert list(found["box"]) == ["x1", "y1", "x2", "y2"]
            assert COCO_CLASSES.names[found["class_id"]] == found["name"]
        # Not rounded: reading it back gives the very same detections.
        assert Detections.from_dict(row, detector.card.class_map) == detector(path)
    assert names(said.rows[0]) == ["cat"]
    assert said.rows[0]["width"] == 451
    assert said.rows[0]["height"] == 300


def test_json_is_valid_whatever_the_name_and_the_terminal(tmp_path: Path) -> None:
    shutil.copy(CAT, tmp_path / "Kätzchen „1“ 猫.png")
    said = spawn("predict", "Kätzchen „1“ 猫.png", "--json", cwd=tmp_path, PYTHONIOENCODING="latin-1")
    assert said.code == 0
    assert said.rows[0]["path"] == "Kätzchen „1“ 猫.png"


def test_a_name_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    shutil.copy(CAT, tmp_path / "猫.png")
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"}
    out = subprocess.check_output([*COMMAND, "predict", "猫.png"], cwd=tmp_path, env=environment, timeout=60)
    assert out.decode("latin-1") == "\\u732b.png (451×300): 1 cat\n"
    assert (tmp_path / "runs" / "predict" / "猫.png").is_file()


def test_json_and_pictures(run: Run) -> None:
    assert run("predict", CAT, "json=true", "save=true").code == 0
    assert Path("runs/predict/chelsea.png").is_file()


def test_quiet_prints_nothing(run: Run) -> None:
    assert run("predict", CAT, "--quiet") == Ran(0, "", "")
    said = run("predict", CAT, "--quiet", "--json")
    assert names(said.rows[0]) == ["cat"]
    assert said.err == ""


def test_quiet_still_tells_what_went_wrong(run: Run) -> None:
    said = run("predict", CAT, "none.jpg", "--quiet")
    assert (said.code, said.out) == (1, "")
    assert said.err == "multibox: none.jpg: there is no such file or folder; check the path\n"


def test_a_bad_picture_among_good_ones(run: Run) -> None:
    Path("pics").mkdir()
    shutil.copy(CAT, "pics/a.png")
    Path("pics/b.png").write_bytes(Path(CAT).read_bytes()[:5000])
    shutil.copy(CUP, "pics/c.png")
    Path("pics/notes.txt").write_text("no picture")
    said = run("predict", "pics")
    assert said.code == 1
    assert [line.split(" ")[0] for line in said.out.splitlines()] == [str(Path("pics/a.png")), str(Path("pics/c.png"))]
    lines = said.err.splitlines()
    assert lines[0] == "1 file in the folders passed over: no picture by the suffix"
    assert lines[1].startswith("2 pictures, ")
    assert lines[2] == f"results in {Path('runs/predict')}"
    assert lines[3].startswith(f"multibox: {Path('pics/b.png')}: ")
    assert "; " in lines[3]  # what to do follows what is wrong
    assert len(lines) == 4
    assert sorted(path.name for path in Path("runs/predict").iterdir()) == [RUN_MARKER, "a.png", "c.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jpg", "none.jpg: there is no such file or folder; check the path"),
        ("empty", "empty: this folder holds no picture; looked for"),
        ("*.gif", "*.gif: this pattern matches nothing; check the pattern"),
        ("bad.jpg", "bad.jpg: is not a picture of a known format; give a JPEG"),
        ("ftp://host/a.jpg", "ftp addresses are not read; give an http or https address or a file"),
        ("", "'': is an empty name; give the path of a picture"),
    ],
)
def test_sources_that_give_nothing(run: Run, source: str, message: str) -> None:
    Path("empty").mkdir()
    Path("bad.jpg").write_text("hello")
    said = run("predict", source)
    assert said.code == 1
    assert said.out == ""
    assert said.err.startswith("0 pictures, 0 objects\nmultibox: ")
    assert message in said.err
    assert said.err.count("\n") == 2
    assert not Path("runs/predict").exists()  # nothing to keep


def test_patterns_and_source_spelling(run: Run) -> None:
    shutil.copytree(EXAMPLES, "shots")
    said = run("predict", "shots/c*.png", "source=shots/astronaut.png", "json=true")
    assert [Path(row["path"]).name for row in said.rows] == ["chelsea.png", "coffee.png", "astronaut.png"]
    assert said.code == 0


@pytest.mark.slow
def test_a_picture_from_standard_input(tmp_path: Path) -> None:
    said = spawn("predict", "-", "--json", "--save", cwd=tmp_path, stdin=Path(CAT).read_bytes())
    assert said.code == 0
    assert said.rows[0]["path"] == "-"
    assert names(said.rows[0]) == ["cat"]
    assert (tmp_path / "runs/predict/stdin.jpg").is_file()
    said = spawn("predict", "-", cwd=tmp_path, stdin=b"")
    assert said.code == 1
    assert re.search(r"^multibox: -: ", said.err, re.MULTILINE)


@pytest.fixture
def server() -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(EXAMPLES))) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def test_pictures_from_a_server(run: Run, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    said = run("predict", f"{server}/chelsea.png", f"{server}/none.png?a=b", "--json", "--save-txt")
    assert said.code == 1
    assert names(said.rows[0]) == ["cat"]
    assert said.rows[0]["path"] == f"{server}/chelsea.png"
    assert f"multibox: {server}/none.png?a=b: the server answered 404" in said.err
    assert {path.name for path in Path("runs/predict/labels").iterdir()} == {"chelsea.txt", "classes.txt"}


@pytest.mark.parametrize("wanted", ["cat", "15", " cat ", "[cat]", "'cat'", "cat,person", "person,15,", "['cat', 0]"])
def test_classes_by_name_or_index(run: Run, wanted: str) -> None:
    assert names(run("predict", CAT, f"classes={wanted}", "json=1").rows[0]) == ["cat"]


def test_classes_leave_the_others_out(run: Run) -> None:
    said = run("predict", CAT, CUP, "classes=dining table,dog", "json=1", "conf=0.3")
    assert names(said.rows[0]) == []
    assert set(names(said.rows[1])) == {"dining table"}


def test_conf_iou_and_max_det_limit_what_is_found(run: Run) -> None:
    def scores(*options: str) -> list[float]:
        return [found["confidence"] for found in run("predict", CUP, "json=1", *options).rows[0]["detections"]]

    usual, many = scores(), scores("conf=0")
    assert 0 < len(usual) < len(many) <= 200
    assert min(usual) > 0.5
    assert many == sorted(many, reverse=True)
    assert scores("conf=0.3") == [score for score in many if score > 0.3]
    assert scores("conf=0", "max_det=7") == many[:7]
    assert len(scores("conf=0.02", "iou=0.1")) < len(scores("conf=0.02", "iou=0.9"))
    assert scores("conf=0.999") == []


def test_text_csv_and_coco_files(run: Run) -> None:
    Path("in").mkdir()
    shutil.copy(CAT, "in/000000000139.png")
    shutil.copy(CUP, "in/cup.png")
    Image.new("RGB", (40, 30)).save("in/black.png")
    args = ("in", "save=false", "save_txt=true", "save_conf=true", "--save-csv", "--save_coco=yes", "json=true")
    said = run("predict", *args)
    assert said.code == 0
    folder = Path("runs/predict")
    assert {path.name for path in folder.iterdir()} == {
        *(RUN_MARKER, "labels", "detections.csv", "detections.classes.json", "coco-results.json"),
    }
    found = {Path(row["path"]).stem: row for row in said.rows}
    assert names(found["black"]) == []

    for stem, row in found.items():
        lines = (folder / "labels" / f"{stem}.txt").read_text().splitlines()
        assert len(lines) == len(row["detections"])
        for line, item in zip(lines, row["detections"], strict=True):
            label, cx, cy, w, h, score = map(float, line.split(" "))
            box = item["box"]
            assert label == item["class_id"]
            assert score == pytest.approx(item["confidence"], rel=1e-6)
            assert (cx - w / 2) * row["width"] == pytest.approx(box["x1"], abs=1e-3)
            assert (cy + h / 2) * row["height"] == pytest.approx(box["y2"], abs=1e-3)

    with (folder / "detections.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table if row["path"].endswith("black.png")] == [""]
    assert [float(row["x2"]) for row in table if row["name"] == "cat"] == [
        found["000000000139"]["detections"][0]["box"]["x2"]
    ]

    results = json.loads((folder / "coco-results.json").read_text())
    assert {row["image_id"] for row in results} == {139, "cup"}
    cat = next(row for row in results if row["image_id"] == 139)
    box = found["000000000139"]["detections"][0]["box"]
    assert cat["category_id"] == 17  # COCO's own number of the cat, not the index 15
    assert cat["bbox"] == [box["x1"], box["y1"], box["x2"] - box["x1"], box["y2"] - box["y1"]]
    assert cat["score"] == found["000000000139"]["detections"][0]["confidence"]


def test_coco_ids_stay_distinct(run: Run) -> None:
    Path("in").mkdir()
    for name in ("7.png", "007.png", "8.png"):
        shutil.copy(CAT, f"in/{name}")
    assert run("predict", "in", "--save-coco", "--no-save").code == 0
    results = json.loads(Path("runs/predict/coco-results.json").read_text())
    assert sorted((row["image_id"] for row in results), key=str) == ["007", "7", 8]


def test_coco_file_without_objects_is_an_empty_list(run: Run) -> None:
    assert run("predict", CAT, "--save-coco", "--no-save", "conf=0.999").code == 0
    assert json.loads(Path("runs/predict/coco-results.json").read_text()) == []


def test_run_folders_are_numbered_or_reused(run: Run) -> None:
    for expected in ("predict", "predict-2", "predict-3"):
        assert run("predict", CAT).err.endswith(f"results in {Path('runs') / expected}\n")
    assert run("predict", CAT, "exist_ok=true").err.endswith(f"results in {Path('runs/predict')}\n")
    assert run("predict", CAT, "project=out/deep", "name=cats").err.endswith(f"results in {Path('out/deep/cats')}\n")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["predict", "predict-2", "predict-3"]


def test_pictures_of_one_name_do_not_overwrite_each_other(run: Run) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        shutil.copy(CAT, f"{folder}/x.png")
    assert run("predict", "a", "b").code == 0
    assert sorted(path.name for path in Path("runs/predict").iterdir()) == [RUN_MARKER, "a_x.png", "b_x.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["project=file"], "file/predict: cannot be created (Not a directory); choose a writable project="),
        (["name=file", "project=.", "exist_ok=true"], "file is a file; choose another name"),
    ],
)
@needs_posix
def test_a_project_that_cannot_be_written(run: Run, args: list[str], message: str) -> None:
    Path("file").touch()
    said = run("predict", CAT, *args)
    assert said == Ran(1, "", f"multibox: {message}\n")


@needs_posix
def test_results_that_cannot_be_written(run: Run) -> None:
    Path("runs/predict/labels").mkdir(parents=True)
    Path("runs/predict/labels/chelsea.txt").mkdir()
    said = run("predict", CAT, "exist_ok=1", "save=0", "save_txt=1")
    assert said.code == 1
    assert said.err.splitlines()[-1].startswith(
        "multibox: runs/predict: cannot write the results (Is a directory); free some"
    )


def test_the_user_s_empty_folder_is_not_removed(run: Run) -> None:
    Path("runs/predict").mkdir(parents=True)
    Path("bad.jpg").write_text("hello")
    assert run("predict", "bad.jpg", "exist_ok=true").code == 1
    assert Path("runs/predict").is_dir()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.onnx", b"", "m.onnx: "),
        ("m.onnx", b"not a model", "m.onnx: ONNX Runtime cannot open it"),
        ("m.safetensors", b"not a model at all", "m.safetensors: "),
        ("m.safetensors", b"\x02\0\0\0\0\0\0\0{}", "m.safetensors: a safetensors file without multibox metadata"),
        ("m.pth", b"x", "m.pth: .pth files are not opened: they are pickled, and reading them can run code"),
        ("m.txt", b"x", "file is needed here, not .txt; convert foreign weights with `multibox import`"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "info"])
def test_bad_model_files(run: Run, verb: str, name: str, content: bytes, message: str) -> None:
    if verb == "predict" and name == "m.safetensors":
        pytest.importorskip("torch")
    Path(name).write_bytes(content)
    said = run("predict", CAT, f"model={name}") if verb == "predict" else run("info", name)
    assert said.code == 1
    assert said.out == ""
    assert said.err.startswith("multibox: ")
    assert said.err.count("\n") == 1
    assert "; " in said.err
    assert message in said.err
    assert not Path("runs").exists()


def test_a_foreign_onnx_file(run: Run) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Identity", ["images"], ["offsets"])
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT, shape=[1])
    graph = onnx.helper.make_graph([node], "g", [value("images")], [value("offsets")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "foreign.onnx")
    said = run("info", Path("foreign.onnx").resolve())
    assert said.code == 1
    assert "an ONNX file without multibox metadata" in said.err


@needs_posix
def test_a_reader_that_leaves_early(tmp_path: Path) -> None:
    for i in range(40):
        shutil.copy(CAT, tmp_path / f"{i}.png")
    command = " ".join([*COMMAND, "predict", ".", "--json", "| head -1"])
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=60, check=False
    )
    assert json.loads(done.stdout)["detections"][0]["name"] == "cat"
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@needs_posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "predict", CAT],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "multibox: No space left on device; check the place and its free space\n"


@needs_posix
def test_interrupt_leaves_valid_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(600):
        os.link(shutil.copy(CAT, tmp_path / "cat.png") if i == 0 else tmp_path / "cat.png", tmp_path / f"in/{i}.png")
    args = [*COMMAND, "predict", "in", "--save-coco", "--save-csv", "--no-save"]
    pipe = subprocess.PIPE
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program started to ignore it would do so
    with subprocess.Popen(args, cwd=tmp_path, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        for _ in range(3):
            assert "1 cat" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped; the results until now are in runs/predict" in err
    results = json.loads((tmp_path / "runs/predict/coco-results.json").read_text())
    assert 3 <= len(results) < 600
    assert {row["category_id"] for row in results} == {17}
    with (tmp_path / "runs/predict/detections.csv").open(newline="") as file:
        assert abs(len(list(csv.DictReader(file))) - len(results)) <= 1
    assert len(out.splitlines()) + 3 <= len(results)


def in_terminal(args: list[str], cwd: Path) -> tuple[int, str]:
    """Exit status and everything a terminal would have shown."""
    import pty

    outer, inner = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *args], cwd=cwd, env=ENVIRONMENT, stdin=inner, stdout=inner, stderr=inner
    ) as process:
        os.close(inner)
        shown, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([outer], [], [], 0.1)[0]:
                try:
                    chunk = os.read(outer, 65536)
                except OSError:  # the other side is closed
                    break
                if not chunk:
                    break
                shown += chunk
    os.close(outer)
    return process.returncode, shown.decode()


@pytest.mark.slow
@needs_posix
def test_a_bar_in_a_terminal_for_many_pictures(tmp_path: Path) -> None:
    for i in range(12):
        shutil.copy(CAT, tmp_path / f"{i}.png")
    code, shown = in_terminal(["predict", "."], tmp_path)
    assert code == 0
    assert re.search(r"pictures.*12/12", shown)
    assert "12 pictures, 12 objects" in shown
    assert "11.png (451" not in shown  # lines would tear the bar
    code, shown = in_terminal(["predict", ".", "--quiet", "--no-save"], tmp_path)
    assert (code, shown) == (0, "")
    code, shown = in_terminal(["predict", "1.png", "--no-save"], tmp_path)
    assert code == 0
    assert "1.png (451×300): 1 cat" in shown
    assert "1/1" not in shown


def test_no_bar_without_a_terminal(run: Run) -> None:
    for i in range(12):
        shutil.copy(CAT, f"{i}.png")
    said = run("predict", ".", "--no-save")
    assert said.err == "12 pictures, 12 objects\n"
    assert len(said.out.splitlines()) == 12


# ------------------------------------------------------------------------------------------------ info and list


def test_info_of_the_shipped_model(run: Run) -> None:
    said = run("info")
    assert said == run("info", DEFAULT_MODEL) == run("info", "model=ssdlite300-coco")
    assert said.code == 0
    assert said.err == ""
    assert re.search(r"^total +1917 +\d+$", said.out, re.MULTILINE)
    for text in (
        "80 classes, no background",
        "19 × 19",
        "(R − ",
        "asymmetric",
        "toothbrush",
        "Apache-2.0",
        "NMS at IoU",
    ):
        assert text in said.out


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".ONNX", ".SafeTensors"])
def test_info_of_a_file(run: Run, suffix: str) -> None:
    shutil.copy(CATALOGUE[DEFAULT_MODEL].path(suffix.lower()), f"copy{suffix}")
    said = run("info", f"copy{suffix}")
    assert said.code == 0
    assert said.out == run("info").out


def test_info_as_json(run: Run) -> None:
    said = run("info", "--json")
    assert ModelCard.from_json(said.out, source="stdout") == read_safetensors_card(
        CATALOGUE[DEFAULT_MODEL].path(".safetensors")
    )


def test_info_of_a_file_without_a_summary(run: Run) -> None:
    card = replace(read_safetensors_card(CATALOGUE[DEFAULT_MODEL].path(".safetensors")), summary={})
    header = json.dumps({"__metadata__": {METADATA_KEY: card.to_json()}}).encode()
    Path("m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    said = run("info", "m.safetensors")
    assert said == Ran(
        1, "", "multibox: m.safetensors: its summary of the network is missing or damaged; export it anew\n"
    )


def test_info_worked_example(run: Run) -> None:
    pytest.importorskip("torch")
    said = run("info", "ssd300_vgg16", "num_classes=10", "ratios=2/2,3/2/2,3/2/2")
    assert said.code == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in said.out.splitlines() if line.strip()}
    assert lines["conv8_2"].startswith("conv8_2 10 × 10 512 ")
    assert lines["conv8_2"].endswith(" 4 400 10×10×4×15 = 6000")
    assert lines["conv4_3"].endswith(" 4 5776 38×38×4×15 = 86640")
    assert lines["total"] == "total 8532 127980"
    assert "A box has 15 outputs: 4 offsets and 11 scores (10 classes + background; softmax over them)." in said.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "boxes"),
    [("ssd300_vgg16", 8732), ("ssd512_vgg16", 24564), ("ssdlite300_mobilenetv2", 1917), ("tinyssd256", 5444)],
)
def test_info_of_every_network(run: Run, name: str, boxes: int) -> None:
    pytest.importorskip("torch")
    assert re.search(rf"^total +{boxes} ", run("info", name).out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("imgsz", ["320,480", "320x480", " 320 , 480 "])
def test_info_at_another_size(run: Run, imgsz: str) -> None:
    pytest.importorskip("torch")
    assert "input 320 × 480" in run("info", "ssdlite300_mobilenetv2", f"imgsz={imgsz}").out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ssd300vgg"], "ssd300vgg: unknown model; did you mean 'ssd300_vgg16'?"),
        (["ssdlite300-coc"], "ssdlite300-coc: unknown model; did you mean 'ssdlite300-coco'?"),
        (["zzz"], "or give the path of a model file"),
        (["none.onnx"], "none.onnx: no such model file; check the path"),
        (["folder"], "folder: is a folder; name the model file inside it"),
        (["ssdlite300-coco", "num_classes=3"], "ssdlite300-coco has weights, which settle num_classes; leave that out"),
        (["ssd300_vgg16", "imgsz=300,abc"], "imgsz='300,abc': write one side (320) or height x width"),
        (["ssd300_vgg16", "imgsz="], "imgsz='': write one side"),
        (["ssd300_vgg16", "imgsz=0"], "imgsz='0': write one side"),
        (["ssd300_vgg16", "imgsz=1,2,3"], "imgsz='1,2,3': write one side"),
        (["ssd300_vgg16", "imgsz=10"], "is too small for this network"),
        (["ssd300_vgg16", "ratios=2"], "7 scales make 6 levels, but ratios are given for 1"),
        (["ssd300_vgg16", "ratios=0/2/2/2/2/2"], "ratios must be positive numbers, got 0"),
        (["ssd300_vgg16", "ratios=-2/2/2/2/2/2"], "ratios must be positive numbers, got -2"),
        (["ssd300_vgg16", "ratios=2/two/2/2/2/2"], "ratios must be numbers, separated by commas on a level"),
        (["tinyssd256", "ratios=2"], "has no argument 'ratios'"),
    ],
)
def test_info_refuses(run: Run, args: list[str], message: str) -> None:
    pytest.importorskip("torch")
    Path("folder").mkdir()
    said = run("info", *args)
    assert said.code == 1
    assert message in said.err
    assert said.err.startswith("multibox: ")
    assert said.err.count("\n") == 1


def test_a_folder_with_the_name_of_a_network(run: Run) -> None:
    pytest.importorskip("torch")
    Path("tinyssd256").mkdir()
    assert "5444" in run("info", "tinyssd256").out


def test_without_torch(without_torch: Callable[..., tuple[int, str, str]]) -> None:
    code, _, said = without_torch("info", "ssd300_vgg16")
    assert code == 1
    assert "install it with: pip install 'multibox[train]'" in said
    code, _, said = without_torch("import", "torchvision-ssd300", "x.pth")
    assert code == 1
    assert "install it with: pip install 'multibox[export]'" in said
    assert without_torch("predict", CAT, "--no-save")[0] == 0


def test_list(run: Run) -> None:
    said = run("list")
    assert said.code == 0
    assert "ssdlite300-coco [default]" in said.out
    assert "Apache-2.0" in said.out
    size = "256 × 256, 5,444 boxes, 1.0 M parameters, 0.98 G multiply-adds"
    assert f"  {'tinyssd256':<29}  {size}\n" in said.out


def test_list_names_the_networks_without_torch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = run("list")
    assert all(f"  {name} " in said.out for name in NETWORKS)
    assert said.out.endswith(f"need torch, which is not installed; install it with: {install_command('train')}\n")


def test_the_listed_networks_are_those_that_can_be_built() -> None:
    pytest.importorskip("torch")
    from multibox.models import list_models

    assert list(NETWORKS) == [name for name in list_models() if not name.startswith("toy_")]


def test_info_shows_a_foreign_card_without_its_escapes() -> None:
    card = OrtEngine(CATALOGUE[DEFAULT_MODEL].path(".onnx")).card
    assert "\x1b" not in render(card)
    evil = "\x1b[2J\nx"
    levels = [{**level, "name": evil} for level in card.summary["levels"]]
    text = render(
        replace(
            card,
            **dict.fromkeys(("name", "builder", "licence", "source"), evil),
            summary={**card.summary, "levels": levels},
        )
    )
    assert "\x1b" not in text
    assert text.count("\\x1b[2J") >= 4 + len(levels)
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["nonsense", "x"], 1, "unknown kind of weights 'nonsense'; known: caffe, chainercv, "),
        (["torchvision-ssd30", "x"], 1, "did you mean 'torchvision-ssd300'?"),
        (["none.pth"], 1, "none.pth: no such file or folder; check the path"),
        (["x", "as=tfjs", "y"], 2, "one file or folder at a time"),
        (["torchvision-ssd300", "none.pth"], 1, "none.pth: no such file; check the path"),
        (["ssdlite300-coco", "nofolder"], 1, "cannot be read"),
        (["torchvision-ssd300", "none.pth", "names=none.txt"], 1, "names=none.txt: cannot be read"),
    ],
)
def test_import_refuses(run: Run, args: list[str], code: int, message: str) -> None:
    pytest.importorskip("torch")
    said = run("import", *args)
    assert said.code == code
    assert message in said.err
    assert list(Path().iterdir()) == []


def test_streams_without_an_encoding_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output may be any object, as in notebooks."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    assert run("list").code == 0
    assert "ssdlite300-coco" in out.getvalue()
