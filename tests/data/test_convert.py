"""`multibox convert`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from multibox.cli.convert import command
from multibox.data import Dataset, read_dataset, write_dataset
from multibox.errors import MultiboxError, OptionError


def convert(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def test_what_is_read_and_written_is_said(small: Dataset, tmp_path: Path) -> None:
    write_dataset(small, tmp_path / "c.json")
    result = convert(tmp_path / "c.json", tmp_path / "v", "format=voc", "copy=true")
    assert result.return_value == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"reading {tmp_path / 'c.json'} as COCO JSON (a .json file)"
    assert lines[1] == (
        "3 pictures (train 2, val 1), 3 boxes, 3 classes, 1 picture without objects, 1 crowd, 1 difficult, 2 truncated"
    )
    assert "note: 3 pictures copied" in lines
    assert "note: 1 picture renamed because of equal or unusable names" in lines
    assert any("1 box carries <crowd>" in line for line in lines)
    assert lines[-1] == f"wrote {tmp_path / 'v'} as Pascal VOC"
    assert read_dataset(tmp_path / "v").num_boxes == 3


def test_lost_boxes_are_listed_and_change_the_exit_status(small: Dataset, tmp_path: Path) -> None:
    write_dataset(small, tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text())
    data["annotations"][0]["bbox"] = ["?", 1, 2, 3]
    (tmp_path / "c.json").write_text(json.dumps(data))
    result = convert(tmp_path / "c.json", tmp_path / "t.csv", "--quiet")
    assert result.return_value == 1
    assert result.stdout == ""
    assert "c.json, annotation id 1: bbox is ['?', 1, 2, 3]; the box is lost" in result.stderr
    assert "1 box of" in result.stderr
    assert [len(record) for record in read_dataset(tmp_path / "t.csv")] == [1, 0, 1]


def test_options_select_and_round(small: Dataset, tmp_path: Path) -> None:
    write_dataset(small, tmp_path / "c.json")
    source = tmp_path / "c.json"
    convert(
        source, tmp_path / "v", "format=voc", "split=train", "round=true", "from_format=coco", f"images={small.root}"
    )
    back = read_dataset(tmp_path / "v")
    assert [record.split for record in back] == ["train", "train"]
    assert back[0].boxes_xyxy.tolist()[0] == [1, 2, 11, 22]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out",), "format="),
        (("out", "format=pascal"), "voc|known"),
        (("out.csv", "copy=hard"), "copy must be"),
        (("out.csv", "from_format=xyz"), "unknown format"),
        (("out", "format=yolo", "round=true"), "Pascal VOC"),
    ],
)
def test_wrong_options_are_refused(small: Dataset, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write_dataset(small, tmp_path / "c.json")
    with pytest.raises(OptionError, match=message):
        convert(tmp_path / "c.json", tmp_path / arguments[0], *arguments[1:])
    assert not (tmp_path / arguments[0]).exists()


def test_a_missing_source_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(MultiboxError, match="no such file"):
        convert(tmp_path / "gone", tmp_path / "t.csv")
