"""docs/data.md: its table lists the layouts that are tested, with the files they have and a command that reads them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from annotation_layouts import WRITERS, Shot
from click.testing import CliRunner

from multibox.cli.check import command as check

LAYOUTS = {
    "Pascal VOC": "voc",
    "LabelImg, Pascal VOC": "labelimg_voc",
    "Roboflow, Pascal VOC": "roboflow_voc",
    "CVAT, Pascal VOC 1.1": "cvat_voc",
    "Label Studio, Pascal VOC": "label_studio_voc",
    "Roboflow, YOLO": "roboflow_yolo",
    "Roboflow, YOLO Darknet": "roboflow_darknet",
    "Ultralytics": "ultralytics",
    "YOLO, folders with capitals": "yolo_capital_folders",
    "YOLO, labels beside the pictures": "yolo_beside",
    "Label Studio, YOLO": "label_studio_yolo",
    "CVAT, YOLO 1.1": "cvat_yolo",
    "CVAT, Ultralytics YOLO": "cvat_ultralytics",
    "COCO 2017": "coco_2017",
    "Roboflow, COCO": "roboflow_coco",
    "CVAT, COCO 1.0": "cvat_coco",
    "Label Studio, COCO": "label_studio_coco",
    "COCO with polygons and no boxes": "coco_polygons",
    "COCO with masks and no boxes": "coco_masks",
    "LabelMe, X-AnyLabeling": "labelme",
    "VIA, annotations": "via",
    "VIA, project": "via_project",
    "CreateML, Roboflow": "createml",
    "CVAT for images 1.1": "cvat_xml",
    "Label Studio, JSON": "label_studio",
    "Label Studio, JSON-MIN": "label_studio_min",
    "Supervisely": "supervisely",
    "Datumaro": "datumaro",
    "TensorFlow CSV, Roboflow": "tensorflow_csv",
    "Open Images": "open_images",
}
"""The writer of each row."""

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = {row[0]: row[1:] for row in re.findall(r"^\| ([^|`]+) \| ([^|]*`[^|]*) \| `([^|]+)` \|$", PAGE, re.M)}


def patterns(files: str) -> list[str]:
    """The patterns of a cell; "`train/*.jpg`, `valid` alike" stands for `valid/*.jpg` as well."""
    words = re.findall("`([^`]+)`", files)
    others = [word for word in words if "." not in word]
    found = [word for word in words if "." in word]
    first = "train2017" if any("2017" in word for word in others) else "train"
    alike = files.partition(" alike")[0]
    moved = [word for word in found if f"`{word}`" in alike]
    return found + [re.sub(rf"\b{first}/", f"{other}/", word) for word in moved for other in others]


def test_every_layout_has_a_row() -> None:
    assert ROWS.keys() == LAYOUTS.keys()
    assert sorted(LAYOUTS.values()) == sorted(WRITERS)


@pytest.mark.parametrize("title", LAYOUTS)
def test_a_row_shows_the_files_and_a_command_that_reads_them(title: str, shots: list[Shot], tmp_path: Path) -> None:
    files, command = ROWS[title]
    shots = [replace(shot, name=f"{shot.stem}.jpg") for shot in shots]
    (tmp_path / "SET").mkdir()
    WRITERS[LAYOUTS[title]][0](tmp_path / "SET", shots)
    there = [path.relative_to(tmp_path / "SET").as_posix() for path in (tmp_path / "SET").rglob("*") if path.is_file()]
    shown = patterns(files)
    matches = {name: [p for p in shown if p.count("/") == name.count("/") and fnmatchcase(name, p)] for name in there}
    assert [name for name, found in matches.items() if not found] == []
    assert set(shown) == {pattern for found in matches.values() for pattern in found}
    program, verb, place = command.split()
    assert (program, verb) == ("multibox", "check")
    words = [str(tmp_path / place), "--json"]
    result = CliRunner().invoke(check, words, standalone_mode=False)
    assert (result.exception, result.return_value) == (None, 0), result.output
    assert json.loads(result.stdout)["boxes"] == sum(len(shot.boxes) for shot in shots)
