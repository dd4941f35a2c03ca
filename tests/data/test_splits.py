"""A split is found under any of its usual names."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from multibox.data import read_dataset


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def voc_pictures(root: Path, *stems: str) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for stem in stems:
        picture(root / f"JPEGImages/{stem}.jpg")
        text(root / f"Annotations/{stem}.xml", f"<annotation><object><name>cup</name>{box}</object></annotation>")


ALIASES = [
    (train, val, wanted)
    for train, val in (("train", "valid"), ("training", "validation"), ("Train", "Valid"), ("train", "val"))
    for wanted in ("val", "valid", val)
]


@pytest.mark.parametrize(("train", "val", "wanted"), sorted(set(ALIASES)))
@pytest.mark.parametrize("layout", ["folders", "yaml", "lists"])
def test_a_split_is_found_under_its_aliases(layout: str, train: str, val: str, wanted: str, tmp_path: Path) -> None:
    if layout == "lists":
        voc_pictures(tmp_path, "a", "b")
        text(tmp_path / f"ImageSets/Main/{train}.txt", "a\n")
        text(tmp_path / f"ImageSets/Main/{val}.txt", "b\n")
    else:
        for split, stem in ((train, "a"), (val, "b")):
            picture(tmp_path / f"images/{split}/{stem}.jpg")
            text(tmp_path / f"labels/{split}/{stem}.txt", "0 .5 .5 .5 .5\n")
        text(tmp_path / "classes.txt", "cup\n")
    if layout == "yaml":
        text(tmp_path / "data.yaml", f"{train}: images/{train}\n{val}: images/{val}\nnames: [cup]\n")
    found = read_dataset(tmp_path, split=wanted)
    assert [(Path(record.path).stem, len(record)) for record in found] == [("b", 1)]
    assert [record.split for record in read_dataset(tmp_path)] == ["train", "val"]


@pytest.mark.parametrize("name", ["hard_val", "night_train", "cup_test"])
def test_a_list_without_numbers_is_a_split_and_no_list_of_a_class(name: str, tmp_path: Path) -> None:
    voc_pictures(tmp_path, "a", "b", "c")
    text(tmp_path / "ImageSets/Main/train.txt", "a\n")
    text(tmp_path / "ImageSets/Main/val.txt", "b\n")
    text(tmp_path / f"ImageSets/Main/{name}.txt", "c\nb\n")
    assert [record.image_id for record in read_dataset(tmp_path, split=name)] == ["c", "b"]
    assert [record.image_id for record in read_dataset(tmp_path, split="val")] == ["b"]
    whole = read_dataset(tmp_path)
    assert {record.image_id: record.split for record in whole} == {"a": "train", "b": "val", "c": name}
    assert "list_of_class" not in whole.findings.counts
