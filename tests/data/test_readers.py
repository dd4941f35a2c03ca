"""What readers make of files as they are found: odd, hostile, incomplete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_sets import coco, picture, write_coco, yolo

from multibox.data import DataError, Dataset, from_rows, read_dataset, write_dataset
from multibox.pictures.read import picture_size_hw
from multibox.spec.classes import ClassMap


def boxes(dataset: Dataset, index: int = 0) -> list[list[float]]:
    found: list[list[float]] = dataset[index].boxes_xyxy.tolist()
    return found


# ------------------------------------------------------------------------------------------------ COCO


def test_coco_ids_may_have_gaps_start_at_zero_and_be_unsorted(tmp_path: Path) -> None:
    dataset = read_dataset(write_coco(tmp_path, coco()))
    assert dataset.class_map == ClassMap(("cat", "dog", "unused"), (0, 18, 90))
    first, second = dataset
    assert (first.image_id, first.size_hw, first.path) == (5, (30, 40), "p.jpg")
    assert first.boxes_xyxy.tolist() == [[0.5, 0, 10.75, 5]]
    assert (first.labels.tolist(), first.crowd.tolist(), first.area.tolist()) == ([0], [True], [7.5])
    assert (second.size_hw, second.labels.tolist()) == (None, [1])
    assert np.isnan(second.area).all()
    assert second.effective_area().tolist() == [12]
    assert dataset.findings.counts == {"detail_not_kept": 1, "picture_missing": 2}


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        ({"bbox": [1, 2, "wide", 4]}, "unparsable_box"),
        ({"bbox": [1, 2, 3]}, "unparsable_box"),
        ({"bbox": None}, "unparsable_box"),
        ({"bbox": [1, 2, float("nan"), 4]}, "unparsable_box"),
        ({"bbox": [1e300, 2, 3, 4]}, "unparsable_box"),
        ({"category_id": 7}, "unknown_class"),
        ({"category_id": [18]}, "unknown_class"),
        ({"image_id": 77}, "unknown_picture"),
        ({"image_id": {}}, "unknown_picture"),
    ],
)
def test_a_bad_coco_annotation_costs_only_itself(tmp_path: Path, annotation: dict[str, Any], kind: str) -> None:
    data = coco()
    data["annotations"].insert(1, {"id": 99, "image_id": 5, "category_id": 18, "bbox": [1, 1, 2, 2], **annotation})
    dataset = read_dataset(write_coco(tmp_path, data), check_pictures=False)
    assert (len(dataset), dataset.num_boxes, dataset.findings.lost_boxes) == (2, 2, 1)
    (finding,) = dataset.findings.of_kind(kind)
    assert finding.severity == "error"
    assert "99" in finding.where
    assert any(line.endswith(str(finding)) for line in dataset.findings.summary())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}], "results"),
        ({"categories": []}, '"images"'),
        (coco(categories=[]), '"categories"'),
        (coco(categories=[{"id": 1}]), "without id or name"),
        (coco(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "same id"),
        (coco(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "more than once"),
        (coco(images=[{"id": 1}]), "file_name"),
        (coco(images=[{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]), "used twice"),
    ],
)
def test_a_broken_coco_file_is_refused_by_name(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(write_coco(tmp_path, data))
    assert "set.json" in str(caught.value)
    assert caught.value.remedy


def test_coco_pictures_are_found_where_they_customarily_are(tmp_path: Path) -> None:
    picture(tmp_path / "train2017" / "p.jpg")
    (tmp_path / "annotations").mkdir()
    for name in ("instances_train2017", "captions_train2017"):
        (tmp_path / f"annotations/{name}.json").write_text(json.dumps(coco()))
    dataset = read_dataset(tmp_path)
    assert dataset.splits == ("train",)
    assert dataset.picture_path(0).is_file()
    lone = read_dataset(tmp_path / "annotations/instances_train2017.json", images=tmp_path / "train2017")
    assert (lone.picture_path(0), len(lone)) == (tmp_path / "train2017/p.jpg", 2)


def test_coco_files_that_disagree_about_classes_are_refused(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("val", "car")):
        (tmp_path / f"{split}").mkdir()
        data = coco(categories=[{"id": 18, "name": "dog"}, {"id": 0, "name": name}])
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="cat"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("declared_wh", "kind"), [((30, 40), None), ((40, 30), "size_turned"), ((41, 30), "size_differs")]
)
def test_a_declared_size_in_the_frame_before_exif_is_found(
    tmp_path: Path, declared_wh: tuple[int, int], kind: str | None
) -> None:
    picture(tmp_path / "p.jpg", orientation=6)  # stored 40 × 30, upright 30 × 40
    entry = {"id": 5, "file_name": "p.jpg", "width": declared_wh[0], "height": declared_wh[1]}
    dataset = read_dataset(write_coco(tmp_path, coco(images=[entry], annotations=[])))
    assert dict(dataset.findings.counts) == ({} if kind is None else {kind: 1})
    assert dataset[0].size_hw == (declared_wh[1], declared_wh[0])


def test_degenerate_and_outside_boxes_are_kept_and_counted(tmp_path: Path) -> None:
    data = coco()
    data["annotations"] = [
        {"image_id": 5, "category_id": 0, "bbox": box} for box in ([1, 1, 0, 5], [9, 9, -3, 2], [-5, -5, 100, 100])
    ]
    dataset = read_dataset(write_coco(tmp_path, data), check_pictures=False)
    assert boxes(dataset) == [[1, 1, 1, 6], [9, 9, 6, 11], [-5, -5, 95, 95]]
    assert dataset.findings.counts == {"degenerate_box": 2}
    with pytest.raises(DataError, match="swapped corners"):
        dataset.to_detections(0)


def test_ids_used_in_both_splits_are_numbered_anew_in_one_file(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco()))
    dataset = read_dataset(tmp_path, check_pictures=False)
    assert [(r.split, r.image_id) for r in dataset] == [("train", 5), ("train", 2), ("val", 5), ("val", 2)]
    assert len(read_dataset(tmp_path, split="val", check_pictures=False)) == 2
    report = write_dataset(dataset, tmp_path / "one.json")
    assert any("numbered anew" in note for note in report.notes)
    back = read_dataset(tmp_path / "one.json", check_pictures=False)
    assert [(r.split, r.image_id, len(r)) for r in back] == [
        ("train", 1, 1),
        ("train", 2, 1),
        ("val", 3, 1),
        ("val", 4, 1),
    ]


# ------------------------------------------------------------------------------------------------ Pascal VOC


def voc(folder: Path, stem: str, objects: str = "", size: str = "<width>40</width><height>30</height>") -> None:
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    text = f"<annotation><filename>other.jpg</filename><size>{size}</size>{objects}</annotation>"
    (folder / f"Annotations/{stem}.xml").write_text(text, encoding="utf-8")
    picture(folder / f"JPEGImages/{stem}.jpg")


def thing(name: str, corners: str, extra: str = "") -> str:
    values = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners.split(), strict=True))
    corner = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    return f"<object><name>{name}</name>{extra}<bndbox>{corner}</bndbox></object>"


def lists(folder: Path, **stems: str) -> None:
    (folder / "ImageSets/Main").mkdir(parents=True)
    for name, text in stems.items():
        (folder / f"ImageSets/Main/{name}.txt").write_text(text)


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    flags = "<pose>Left</pose><truncated>1</truncated><difficult>1</difficult><occluded>0</occluded>"
    voc(tmp_path, "a", thing("cat", "1 1 40 30", flags) + thing(" dog ", "2.5 3 4 5.75"))
    dataset = read_dataset(tmp_path)
    assert boxes(dataset) == [[0, 0, 40, 30], [1.5, 2, 4, 5.75]]
    assert dataset.class_map.names == ("cat", "dog")
    record = dataset[0]
    assert (record.truncated.tolist(), record.difficult.tolist()) == ([True, False], [True, False])
    assert (record.path, record.image_id, record.split) == ("JPEGImages/a.jpg", "a", None)
    assert dataset.findings.counts == {"no_class_list": 1, "detail_not_kept": 1}


def test_voc_lists_are_read_once_and_the_rest_is_counted(tmp_path: Path) -> None:
    for stem in ("a", "b", "c", "d"):
        voc(tmp_path, stem, thing(f"class {stem}", "1 1 2 2"))
    picture(tmp_path / "JPEGImages/e.jpg")
    picture(tmp_path / "JPEGImages/f.jpg")
    lists(tmp_path, trainval="a\nb\n", train="a\n\n", val="b\r\na\ne\n", cat_train="a -1\n")
    dataset = read_dataset(tmp_path)
    assert [(r.image_id, r.split) for r in dataset] == [
        ("a", "train"),
        ("b", "val"),
        ("e", "val"),
        ("c", None),
        ("d", None),
    ]
    assert dataset.findings.counts == {
        "in_several_splits": 1,
        "no_annotation_file": 1,
        "unlisted_picture": 3,
        "no_class_list": 1,
        "list_of_class": 1,  # no object is called cat
    }
    both = read_dataset(tmp_path, split="trainval")
    assert [r.image_id for r in both] == ["a", "b"]
    assert both.class_map == dataset.class_map  # the class list does not depend on the split
    with pytest.raises(DataError, match=r"test\.txt .*train, val"):
        read_dataset(tmp_path, split="test")


def test_bad_voc_objects_cost_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\ufeffcat\ndog\n", encoding="utf-8")
    bad = (
        thing("cat", "1 x 3 4")
        + "<object><name>cat</name></object>"
        + thing("cow", "1 1 2 2")
        + thing("dog", "1 1 9 9")
    )
    voc(tmp_path, "a", bad, size="<width>0</width><height>0</height>")
    voc(tmp_path, "b")
    (tmp_path / "Annotations/b.xml").write_text("<annotation><object>")
    voc(tmp_path, "c")
    (tmp_path / "Annotations/c.xml").write_text('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>')
    dataset = read_dataset(tmp_path)
    assert [record.image_id for record in dataset] == ["a"]  # b and c are unreadable, not empty
    assert dataset[0].labels.tolist() == [1]
    assert (dataset.findings.lost_boxes, dataset.findings.lost_files) == (3, 2)
    assert dataset.findings.counts == {
        "unparsable_box": 2,
        "unknown_class": 1,
        "size_unusable": 1,
        "unparsable_annotation": 2,
    }


# ------------------------------------------------------------------------------------------------ YOLO


def test_yolo_rows_of_all_kinds(tmp_path: Path) -> None:
    text = "\ufeff0 0.5 0.5 0.5 1\r\n\n1 0 0 1 0 1 0.5\n1 0.5 0.5 1 1 0.9\n"
    dataset = read_dataset(yolo(tmp_path, {"train/a": text, "train/b": ""}))
    assert dataset.class_map.names == ("no", "007")  # not False and 7
    assert boxes(dataset) == [[10, 0, 30, 30], [0, 0, 40, 15], [0, 0, 40, 30]]
    assert dataset[0].labels.tolist() == [0, 1, 1]
    assert (len(dataset[1]), dataset[1].size_hw) == (0, (30, 40))
    assert dataset.findings.counts == {"polygon_to_box": 1, "score_ignored": 1}


def test_bad_yolo_rows_cost_only_themselves(tmp_path: Path) -> None:
    text = (
        "2 .5 .5 1 1\nx .5 .5 1 1\n0 .5 .5 1\n0 .5 .5 one 1\n0 nan .5 1 1\n0 320 200 40 30\n-1 .5 .5 1 1\n1 .5 .5 1 1\n"
    )
    yolo(tmp_path, {"train/a": text, "train/b": "0 .5 .5 1 1\n0 .5 .5 1 1\n", "train/c": "0 .5 .5 1 1\n"})
    (tmp_path / "images/train/b.png").unlink()
    (tmp_path / "labels/train/c.txt").unlink()
    dataset = read_dataset(tmp_path)
    assert [Path(record.path).stem for record in dataset] == ["a", "c"]
    assert dataset[0].labels.tolist() == [0, 1]
    assert dataset.findings.counts == {
        "unknown_class": 2,
        "unparsable_box": 4,
        "not_normalised": 1,
        "no_annotation_file": 1,
        "label_without_picture": 1,
    }
    assert dataset.findings.lost_boxes == 8
    assert [finding.where for finding in dataset.findings.of_kind("unknown_class")] == ["line 1", "line 7"]


def test_yolo_splits_are_folders_lists_or_list_files(tmp_path: Path) -> None:
    config = "path: .\ntrain: [images/x, images/y]\nval: val.txt\ntest:\nnc: 3\nnames:\n  2: c\n  0: a\n"
    yolo(tmp_path, {"x/1": "2 .5 .5 1 1", "y/2": "", "z/3": "0 .5 .5 1 1\n1 .5 .5 1 1"}, config)
    picture(tmp_path / "images/z/4.png")
    (tmp_path / "labels/z/4.txt").write_text("0 .5 .5 1 1")  # not in the list, and no loss
    (tmp_path / "val.txt").write_text("./images/z/3.png\nimages/x/1.png\n")
    dataset = read_dataset(tmp_path / "data.yaml")
    assert [(r.path, r.split) for r in dataset] == [
        ("images/x/1.png", "train"),
        ("images/y/2.png", "train"),
        ("images/z/3.png", "val"),
    ]
    assert dataset.class_map == ClassMap(("a", "c"), (0, 2))
    assert dataset[0].labels.tolist() == [1]
    assert dataset.findings.counts == {"in_several_splits": 1, "unknown_class": 1, "unlisted_picture": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("train: images/nowhere\nnames: [a]\n", "images/nowhere"),
        ("train: images\n", "class names"),
        ("train: images\nnames: [a, a]\n", "more than once"),
        ("train: images\nnc: 1\nnames: [a, b]\n", "nc: 1"),
        ("train: {a: b}\nnames: [a]\n", "train is neither"),
        ("names: [a\n", "is no YAML"),
        ("- a\n", "holds no keys"),
    ],
)
def test_a_broken_data_yaml_is_refused_by_name(tmp_path: Path, config: str, message: str) -> None:
    yolo(tmp_path, {"a": ""}, config)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path / "data.yaml")
    assert "data.yaml" in str(caught.value)


def test_yolo_without_data_yaml_takes_classes_txt(tmp_path: Path) -> None:
    yolo(tmp_path, {"train/a": "1 .5 .5 1 1", "val/b": ""})
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"classes\.txt"):
        read_dataset(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    dataset = read_dataset(tmp_path)
    assert [(r.split, r.labels.tolist()) for r in dataset] == [("train", [1]), ("val", [])]


def test_flags_of_edited_labels_are_not_used(tmp_path: Path, small: Dataset) -> None:
    write_dataset(small, tmp_path / "y", format="yolo")
    file = next(path for path in (tmp_path / "y/labels").rglob("*.txt") if path.read_text().count("\n") == 2)
    file.write_text(file.read_text().replace("\n", "  \r\n"))  # white space alone changes nothing
    assert read_dataset(tmp_path / "y")[0].crowd.any()
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    edited = read_dataset(tmp_path / "y")
    assert not any(record.crowd.any() for record in edited)
    assert edited.findings.counts == {"sidecar_stale": 1}


# ------------------------------------------------------------------------------------------------ tables, rows


def test_csv_rows_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    text = (
        "\ufeffpath,x1,y1,x2,y2,name,width,height\n"
        '"b, c.jpg",1,2,3,4,dog,40,30\na.jpg,,,,,,,\n"b, c.jpg",0,0,9.5,9,cat,41,30\n'
        "a.jpg,1,2,3,,cat,,\n\n,1,2,3,4,cat,,\n"
    )
    file.write_text(text, encoding="utf-8")
    dataset = read_dataset(file, check_pictures=False)
    assert dataset.class_map.names == ("cat", "dog")
    assert [(r.path, r.labels.tolist(), r.size_hw) for r in dataset] == [
        ("b, c.jpg", [1, 0], (30, 40)),
        ("a.jpg", [], None),
    ]
    assert dataset.findings.counts == {
        "conflicting_size": 1,
        "unparsable_box": 1,
        "unknown_picture": 1,
        "no_class_list": 1,
    }
    assert dataset.findings.of_kind("unparsable_box")[0].where == "line 5"


def test_csv_class_ids_order_the_classes(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("path,x1,y1,x2,y2,name,class_id\na,1,2,3,4,apple,9\na,1,2,3,4,pear,4\n")
    assert read_dataset(file, check_pictures=False).class_map == ClassMap(("pear", "apple"), (4, 9))
    file.write_text("path,x1,y1,x2,y2,name,class_id\na,1,2,3,4,apple,9\na,1,2,3,4,pear,9\n")
    with pytest.raises(DataError, match=r"apple.*pear"):
        read_dataset(file)
    file.write_text("path,x1,y1,x2\n")
    with pytest.raises(DataError, match="no column y2"):
        read_dataset(file)
    file.write_text("path,x1,y1,x2,y2,name\na,,,,,\n")
    with pytest.raises(DataError, match=r"names no class.*t\.classes\.json"):
        read_dataset(file)


def test_hugging_face_rows_in_memory(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "image": {"path": "a.jpg", "bytes": None},
            "objects": {"bbox": [[1, 2, 3, 4]], "categories": [1], "area": [5]},
        },
        {
            "image": Image.new("RGB", (4, 5)),
            "image_id": 12,
            "objects": [{"bbox": (0, 0, 1, 1), "category": 0}, {"bbox": "?", "category": 0}],
        },
        {"image": "c.jpg", "objects": None},
    ]
    dataset = from_rows(rows, ClassMap(("x", "y")), images=tmp_path / "made", split="train")
    assert [record.labels.tolist() for record in dataset] == [[1], [0], []]
    assert boxes(dataset) == [[1, 2, 4, 6]]
    assert dataset[1].image_id == 12
    assert picture_size_hw(dataset.picture_path(1)) == (5, 4)
    assert dataset.findings.counts == {"unparsable_box": 1}
    with pytest.raises(DataError, match="in memory only"):
        from_rows(rows[1:2], ClassMap(("x",)))


def test_class_names_come_from_the_features_of_rows() -> None:
    class Names:
        names = ("cat", "dog")

    class Rows(list[dict[str, Any]]):
        features = {"objects": {"category": [Names()]}}  # noqa: RUF012

    rows = Rows([{"image": "a.jpg", "objects": {"bbox": [[0, 0, 1, 1]], "category": [1]}}])
    assert from_rows(rows).class_map.names == ("cat", "dog")


def test_a_damaged_metadata_file_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg"}\n{"file_name"\n')
    with pytest.raises(DataError, match="line 2"):
        read_dataset(tmp_path)


# ------------------------------------------------------------------------------------------------ beside the labels


def test_a_damaged_sidecar_or_class_file_is_refused_by_name(tmp_path: Path, small: Dataset) -> None:
    write_dataset(small, tmp_path / "y", format="yolo")
    sidecar = tmp_path / "y/multibox.jsonl"
    sidecar.write_text(sidecar.read_text().replace('"multibox": 1', '"multibox": 2'))
    with pytest.raises(DataError, match=r"multibox\.jsonl.*version 2"):
        read_dataset(tmp_path / "y")
    write_dataset(small, tmp_path / "v", format="voc")
    (tmp_path / "v/classes.json").write_text("[]")
    with pytest.raises(DataError, match=r"classes\.json"):
        read_dataset(tmp_path / "v")


def test_pictures_missing_from_a_yolo_folder_keep_their_boxes(tmp_path: Path, small: Dataset) -> None:
    write_dataset(small, tmp_path / "y", format="yolo", copy="true")
    for file in (tmp_path / "y/images").rglob("*.png"):
        file.unlink()
    dataset = read_dataset(tmp_path / "y")
    assert (len(dataset), dataset.num_boxes, dataset.findings.lost_boxes) == (3, 3, 0)
    assert dataset.findings.counts == {"picture_missing": 3}
    (tmp_path / "y/multibox.jsonl").unlink()
    alone = read_dataset(tmp_path / "y")
    assert (len(alone), alone.findings.lost_boxes) == (0, 3)
    assert alone.findings.counts == {"label_without_picture": 3}


def test_writing_never_replaces_another_picture(tmp_path: Path, small: Dataset) -> None:
    other = picture(tmp_path / "v/JPEGImages/one.png")
    before = other.read_bytes()
    with pytest.raises(DataError, match="another picture"):
        write_dataset(small, tmp_path / "v", format="voc", copy="true", exist_ok=True)
    assert other.read_bytes() == before


# ------------------------------------------------------------------------------------------------ areas


@pytest.mark.parametrize("area", ["-1", "-1e-9", "1e999", "nan", "much"])
@pytest.mark.parametrize("kind", ["coco", "voc", "csv", "huggingface"])
def test_an_impossible_area_counts_as_absent(tmp_path: Path, kind: str, area: str) -> None:
    picture(tmp_path / "JPEGImages/a.jpg")
    value = {"nan": "NaN", "much": '"much"'}.get(area, area)
    if kind == "coco":
        text = json.dumps(coco()).replace("7.5", value)
        dataset = read_dataset(write_coco(tmp_path, text))
    elif kind == "voc":
        voc(tmp_path, "a", thing("cat", "1 1 9 9", f"<area>{area}</area>"))
        dataset = read_dataset(tmp_path)
    elif kind == "csv":
        (tmp_path / "t.csv").write_text(f"path,name,x1,y1,x2,y2,area\na.jpg,cat,0,0,9,9,{area}\n")
        dataset = read_dataset(tmp_path / "t.csv")
    else:
        objects = f'{{"bbox": [[0, 0, 9, 9]], "category": ["cat"], "area": [{value}]}}'
        (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.jpg", "objects": {objects}}}\n')
        dataset = read_dataset(tmp_path / "metadata.jsonl")
    assert dataset.findings.counts["area_unusable"] == 1
    assert dataset.findings.lost_boxes == 0
    assert np.isnan(dataset[0].area).all()
    assert (dataset[0].effective_area() > 0).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_entities_are_refused_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    voc(tmp_path, "a", thing("cat", "1 1 9 9"))
    plain = (tmp_path / "Annotations/a.xml").read_text()
    mark = "\ufeff" if encoding.startswith("utf-16-") else ""
    for stem, head in (("b", '<!DOCTYPE a [<!ENTITY x "y">]>'), ("c", "<!DOCTYPE a><!-- <!ENTITY -->")):
        (tmp_path / f"Annotations/{stem}.xml").write_bytes((mark + head + plain).encode(encoding))
    dataset = read_dataset(tmp_path)
    assert [record.image_id for record in dataset] == ["a", "c"]
    assert [finding.path for finding in dataset.findings.of_kind("unparsable_annotation")] == ["Annotations/b.xml"]


def test_the_shapes_of_cvat(tmp_path: Path) -> None:
    picture(tmp_path / "images/p.jpg")
    shapes = (
        '<box label="cup" xtl="1" ytl="2" xbr="5" ybr="8" occluded="1"/>'
        '<box label="cup" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>'
        '<polygon label="bolt" points="1.0,2.0;9.5,2.0;4.0,7.0"/>'
        '<ellipse label="bolt" cx="10" cy="12" rx="3" ry="2"/>'
        '<mask label="cup" rle="1, 2" left="3" top="4" width="5" height="6"/>'
        '<cuboid label="cup" xtl1="1" ytl1="2" xbl1="1" ybl1="9" xtr1="7" ytr1="3" xbr1="7" ybr1="8"/>'
        '<points label="cup" points="1,2"/><polyline label="cup" points="1,2;3,4"/><tag label="cup"/>'
        '<box label="cup" xtl="1" ytl="?" xbr="5" ybr="8"/><box label="cow" xtl="1" ytl="2" xbr="5" ybr="8"/>'
    )
    labels = "<meta><labels><label><name>cup</name></label><label><name>bolt</name></label></labels></meta>"
    image = f'<image id="0" name="p.jpg" width="40" height="30">{shapes}</image>'
    (tmp_path / "annotations.xml").write_text(f"<annotations>{labels}{image}</annotations>")
    dataset = read_dataset(tmp_path)
    assert dataset.class_map.names == ("cup", "bolt")
    assert dataset[0].labels.tolist() == [0, 0, 1, 1, 0, 0]
    expected = [[1, 2, 5, 8], [13, 7, 17, 17], [1, 2, 9.5, 7], [7, 10, 13, 14], [3, 4, 8, 10], [1, 2, 7, 9]]
    np.testing.assert_allclose(dataset[0].boxes_xyxy, expected, atol=1e-5)
    assert dataset[0].occluded.tolist() == [True, *[False] * 5]
    assert dataset.findings.counts == {"no_box": 3, "polygon_to_box": 5, "unparsable_box": 1, "unknown_class": 1}
    assert dataset.findings.lost_boxes == 2
