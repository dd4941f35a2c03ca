"""The README's commands and its Python, run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.data import Dataset, ImageRecord, write_dataset
from multibox.spec.classes import ClassMap

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
# Lines that install packages or fetch the original weights are run by .ci/run, or need more than a test should have.
COMMANDS = [
    line.split("  #")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
    if "multibox" in line and not re.search(r"pip install|npm|multibox import|multibox benchmark", line)
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with what the README's commands speak of."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "shots" / "old").mkdir(parents=True)
    picture = Image.open(ROOT / "examples" / "chelsea.png")
    for name in ("cat.jpg", "shots/one.jpg"):
        picture.save(tmp_path / name)
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "shots" / "old" / "two.jpg")
    records = [
        ImageRecord(
            path=str(tmp_path / name),
            image_id=number,
            size_hw=(300, 451),
            boxes_xyxy=np.array([box], np.float32),
            labels=np.array([0]),
            split=split,
        )
        for number, (name, split, box) in enumerate(
            (("shots/one.jpg", "val", [0, 2, 403, 297]), ("shots/old/two.jpg", "train", [48, 2, 451, 297]))
        )
    ]
    dataset = Dataset.from_records(records, ClassMap(("cat",)), root=str(tmp_path))
    write_dataset(dataset, tmp_path / "VOC2012", format="voc")
    return tmp_path


@pytest.mark.slow
def test_the_commands_run_in_the_order_of_the_readme(place: Path) -> None:
    assert len(COMMANDS) >= 10
    runner = place / "multibox"
    runner.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m multibox "$@"\n')
    runner.chmod(0o755)
    second = "./multibox val ssdlite300-coco VOC2012 split=val name=val-2 resamples=0"
    subprocess.run(["sh", "-c", second], cwd=place, check=True)
    for command in COMMANDS:
        local = command.replace("multibox ", "./multibox ")
        if command == "multibox train VOC2012":
            local += " epochs=2 batch=2 warmup=1"  # shorter, otherwise as it stands
        done = subprocess.run(["sh", "-c", local], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (place / "runs" / "predict" / "cat.jpg").exists()
    assert (place / "runs" / "val" / "report.html").exists()
    assert (place / "runs" / "train" / "results.csv").read_text().count("\n") == 4  # epoch 0 is the start


def test_the_python_runs(place: Path) -> None:
    snippets = [text for kind, text in BLOCKS if kind == "python"]
    assert snippets
    for snippet in snippets:
        done = subprocess.run([sys.executable, "-c", snippet], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "cat" in done.stdout
    assert (place / "chelsea-boxes.png").exists()
