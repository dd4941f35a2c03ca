"""Every layout that annotation tools write gives the boxes that were written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from annotation_layouts import WRITERS, Shot
from click.testing import CliRunner

from multibox.cli.check import command as check
from multibox.cli.convert import command as convert
from multibox.data import Dataset, read_dataset

CASES_FOLDER = Path(os.environ.get("MULTIBOX_CASES", Path(__file__).parents[3] / "shared" / "cases"))
"""Small data sets as people have them, each with what is right: see `right.json` in each."""

WITHOUT_EMPTY = {"tensorflow_csv", "open_images"}
"""Tables have rows for boxes only, so that a picture without objects is not in them."""

Content = dict[str, tuple[str | None, list[tuple[str, list[float]]]]]


def in_order(boxes: Iterable[tuple[str, list[float]]]) -> list[tuple[str, list[float]]]:
    return sorted(boxes, key=lambda found: (found[0], [round(value) for value in found[1]]))


def content(dataset: Dataset, *, splits: bool = True) -> Content:
    names = dataset.class_map.names
    return {
        Path(record.path).name: (
            record.split if splits else None,
            in_order((names[label], box) for label, box in zip(record.labels, record.boxes_xyxy.tolist(), strict=True)),
        )
        for record in dataset
    }


def expected(shots: list[Shot], *, splits: bool, empty: bool) -> Content:
    boxes = {shot.name: in_order((name, list(box)) for name, box in shot.boxes) for shot in shots}
    return {
        shot.name: (
            shot.split if splits else None,
            [(name, pytest.approx(box, abs=0.01)) for name, box in boxes[shot.name]],
        )
        for shot in shots
        if empty or shot.boxes
    }


def check_layout(name: str, dataset: Dataset, shots: list[Shot]) -> None:
    splits = WRITERS[name][1]
    empty = name not in WITHOUT_EMPTY
    assert content(dataset, splits=splits) == expected(shots, splits=splits, empty=empty)
    assert not dataset.findings.has_loss, dataset.findings.summary()


def write_layout(name: str, root: Path, shots: list[Shot]) -> Path:
    """Write a layout; return what is given to the reader."""
    writer, _, give = WRITERS[name]
    root.mkdir()
    writer(root, shots)
    return root / give


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_layout_of_a_tool_is_read_as_it_was_written(name: str, tmp_path: Path, shots: list[Shot]) -> None:
    check_layout(name, read_dataset(write_layout(name, tmp_path / "set", shots)), shots)


@pytest.fixture(scope="session")
def blood_cells(data_folder: Path) -> list[Shot]:
    """Every ninth picture of BCCD."""
    source = read_dataset(data_folder / "bccd", check_pictures=False)
    shots = []
    for index, record in list(enumerate(source))[::9]:
        assert record.size_hw is not None
        assert record.split is not None
        named = [source.class_map.names[label] for label in record.labels]
        boxes = [(box[0], box[1], box[2], box[3]) for box in record.boxes_xyxy.tolist()]
        file = source.picture_path(index).resolve()
        size_wh = record.size_hw[1], record.size_hw[0]
        shots.append(Shot(file, file.name, size_wh, record.split, tuple(zip(named, boxes, strict=True))))
    assert (len(shots), len({shot.split for shot in shots})) == (41, 3)
    return shots


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_the_first_command_of_a_newcomer_keeps_every_blood_cell(
    name: str, tmp_path: Path, blood_cells: list[Shot]
) -> None:
    source, target = write_layout(name, tmp_path / "set", blood_cells), tmp_path / "set.csv"
    result = CliRunner().invoke(convert, [str(source), str(target)], standalone_mode=False)
    assert (result.exception, result.return_value) == (None, 0), result.output
    check_layout(name, read_dataset(target), blood_cells)


def cases() -> list[Any]:
    found = sorted(file.parent for file in CASES_FOLDER.glob("*/right.json"))
    none = pytest.param(None, marks=pytest.mark.skip(f"no cases in {CASES_FOLDER}; set MULTIBOX_CASES to run this"))
    return [pytest.param(case, id=case.name) for case in found] or [none]


@pytest.mark.parametrize("case", cases())
def test_what_people_have_is_read_right(case: Path) -> None:
    right = json.loads((case / "right.json").read_text())
    options = [option.replace("{case}", str(case)) for option in right["options"]]
    result = CliRunner().invoke(check, [str(case / right["data"]), *options, "--json"], standalone_mode=False)
    assert result.exception is None
    found = json.loads(result.stdout)
    found |= {"exit": result.return_value, "classes": sorted(found["classes"])}
    keys = ("pictures", "boxes", "classes", "exit")
    assert {key: found[key] for key in keys} == {key: right[key] for key in keys}
    assert [word for word in right["says"] if word not in result.stdout] == []
