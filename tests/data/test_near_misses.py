"""A file that nearly fits is read, or named with the place for it; its picture is not taken for an empty one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_sets import coco, picture, write_coco, yolo

from multibox.data import DataError, read_dataset


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels/train/b.txt~", b"0 .5 .5 1 1"),
        ("labels/train/b.label", b"0,.5,.5,1,1"),
        ("labels/train/b.txt.bak", b"[0 .5 .5 1 1]"),
        ("labels/train/b.xml", b"<annotation><object/></annotation>"),
        ("labels/train/b.jpg.json", b'{"shapes": []}'),
        ("labels/train/x/b.txt", b"car 0.00 0 -1.57 614.24 181.78 727.31 284.77"),
        ("labels/train/x/b.txt", "0 .5 .5 1 1".encode("utf-16-le")),
    ],
)
def test_a_file_that_nearly_fits_is_named_and_its_picture_is_not_empty(
    tmp_path: Path, file: str, content: bytes
) -> None:
    yolo(tmp_path, {"train/a": "0 .5 .5 1 1", "train/b": "0 .5 .5 1 1"})
    (tmp_path / "labels/train/b.txt").unlink()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    dataset = read_dataset(tmp_path)
    assert [record.path for record in dataset] == ["images/train/a.png"]
    assert [finding.path for finding in dataset.findings.of_kind("label_not_read")] == [file]
    assert dataset.findings.lost_files == 1


def test_pictures_that_a_file_of_another_format_names_are_not_empty(tmp_path: Path) -> None:
    for stem in ("a", "b", "c", "d"):
        picture(tmp_path / f"{stem}.jpg")
    shape = {"label": "cup", "shape_type": "rectangle", "points": [[1, 1], [5, 5]]}
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": [shape]}))
    (tmp_path / "other.json").write_text(json.dumps({"pictures": [{"file": "b.jpg"}, {"file": "C.JPG"}]}))
    dataset = read_dataset(tmp_path)
    assert [(record.path, len(record)) for record in dataset] == [("a.jpg", 1), ("d.jpg", 0)]
    assert [finding.path for finding in dataset.findings.of_kind("label_not_read")] == ["other.json"]


def test_a_label_file_beside_a_picture_that_the_table_leaves_out_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "p.jpg")
    picture(tmp_path / "r.jpg")
    (tmp_path / "r.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    write_coco(tmp_path, coco(images=[{"id": 5, "file_name": "p.jpg"}], annotations=[]))
    dataset = read_dataset(tmp_path, format="coco")
    assert [finding.path for finding in dataset.findings.of_kind("label_not_read")] == ["r.xml"]
    assert "unlisted_picture" not in dataset.findings.counts


def test_a_data_yaml_without_splits_leaves_them_to_the_folders(tmp_path: Path) -> None:
    dataset = read_dataset(yolo(tmp_path, {"train/a": "0 .5 .5 1 1", "valid/b": ""}, "names: [no]\n"))
    assert [(record.split, len(record)) for record in dataset] == [("train", 1), ("val", 0)]
    assert dataset.findings.counts == {"path_repaired": 1}


def test_labels_that_no_picture_is_led_to_are_refused_with_the_right_place(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    (tmp_path / "inner/labels").mkdir(parents=True)
    (tmp_path / "inner/classes.txt").write_text("cup\n")
    (tmp_path / "inner/labels/a.txt").write_text("0 .5 .5 1 1\n")
    with pytest.raises(DataError, match=r"inner/labels/a\.txt .* is looked for as labels/a\.txt"):
        read_dataset(tmp_path)


def test_a_table_of_none_of_the_pictures_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
    write_coco(tmp_path, data)
    with pytest.raises(DataError, match=r"pictures that are there \(1\)"):
        read_dataset(tmp_path)


def test_pictures_of_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    yolo(tmp_path, {"train/a": "0 .5 .5 1 1", "train/b": "0 .5 .5 1 1"})
    (tmp_path / "images/train/b.png").rename(tmp_path / "images/train/b.HEIC")
    dataset = read_dataset(tmp_path)
    assert dataset.findings.counts == {"label_without_picture": 1, "picture_not_read": 1}
    (finding,) = dataset.findings.of_kind("picture_not_read")
    assert str(finding).startswith("images/train/b.HEIC: pictures of the kind HEIC are not read; convert it to JPEG")
    assert dataset.findings.lost_boxes == 1
