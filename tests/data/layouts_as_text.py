"""The layouts of XML, YOLO text and tables. See `annotation_layouts`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from annotation_layouts import ROBOFLOW, Shot, classes, dump, layout, of_split, place, text

# ------------------------------------------------------------------------------------------------ Pascal VOC


def xml(shot: Shot, folder: str) -> str:
    width, height = shot.size_wh
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>\n"
        f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for name, (x1, y1, x2, y2) in shot.boxes
    )
    return (
        f"<annotation>\n<folder>{folder}</folder><filename>{shot.name}</filename><path>C:\\pics\\{shot.name}</path>\n"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n{objects}</annotation>\n"
    )


@layout(splits=True)
def voc(root: Path, shots: list[Shot]) -> None:
    for shot in shots:
        place(root, shot, "JPEGImages")
        text(root, f"Annotations/{shot.stem}.xml", xml(shot, "JPEGImages"))
    for split in ROBOFLOW:
        text(root, f"ImageSets/Main/{split}.txt", [shot.stem for shot in of_split(shots, split)])


@layout()
def labelimg_voc(root: Path, shots: list[Shot]) -> None:
    for shot in shots:
        place(root, shot, "")
        text(root, f"{shot.stem}.xml", xml(shot, root.name))


@layout(splits=True)
def roboflow_voc(root: Path, shots: list[Shot]) -> None:
    for shot in shots:
        folder = ROBOFLOW[shot.split]
        place(root, shot, folder)
        text(root, f"{folder}/{shot.stem}.xml", xml(shot, ""))
    text(root, "README.dataset.txt", "cells > raw\nProvided by a user\nLicense: MIT\n")


@layout()
def cvat_voc(root: Path, shots: list[Shot]) -> None:
    for shot in shots:
        place(root, shot, "JPEGImages")
        text(root, f"Annotations/{shot.stem}.xml", xml(shot, ""))
    text(root, "ImageSets/Main/default.txt", [shot.stem for shot in shots])
    text(root, "labelmap.txt", ["# label:color_rgb:parts:actions", *(f"{name}:::" for name in classes(shots))])


@layout()
def label_studio_voc(root: Path, shots: list[Shot]) -> None:
    for shot in shots:
        place(root, shot, "images")
        text(root, f"Annotations/{shot.stem}.xml", xml(shot, "images"))


@layout(splits=True)
def cvat_xml(root: Path, shots: list[Shot]) -> None:
    pictures = []
    for number, shot in enumerate(shots):
        place(root, shot, f"images/{shot.split}")
        boxes = "".join(
            f'<box label="{name}" occluded="0" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}" z_order="0">\n'
            f'<attribute name="colour">red</attribute></box>\n'
            for name, (x1, y1, x2, y2) in shot.boxes
        )
        size = f'width="{shot.size_wh[0]}" height="{shot.size_wh[1]}"'
        pictures.append(f'<image id="{number}" name="{shot.name}" subset="{shot.split}" {size}>\n{boxes}</image>\n')
    labels = "".join(f"<label><name>{name}</name><attributes></attributes></label>" for name in classes(shots))
    meta = f"<version>1.1</version>\n<meta><job><labels>{labels}</labels></job></meta>\n"
    text(root, "annotations.xml", f"<annotations>\n{meta}{''.join(pictures)}</annotations>\n")


# ------------------------------------------------------------------------------------------------ YOLO


def rows(shot: Shot, names: list[str]) -> list[str]:
    width, height = shot.size_wh
    return [
        f"{names.index(name)} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
        f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}"
        for name, (x1, y1, x2, y2) in shot.boxes
    ]


def yolo_folders(root: Path, shots: list[Shot], pictures: str, labels: str) -> None:
    """`{}` in the names of the folders stands for the split."""
    for shot in shots:
        place(root, shot, pictures.format(ROBOFLOW[shot.split]))
        text(root / labels.format(ROBOFLOW[shot.split]), f"{shot.stem}.txt", rows(shot, classes(shots)))


@layout(splits=True)
def roboflow_yolo(root: Path, shots: list[Shot]) -> None:
    yolo_folders(root, shots, "{}/images", "{}/labels")
    names = ", ".join(f"'{name}'" for name in classes(shots))
    ends = [f"{key}: ../{folder}/images" for key, folder in ROBOFLOW.items()]
    text(root, "data.yaml", [*ends, f"nc: {len(classes(shots))}", f"names: [{names}]", "roboflow:", "  version: 1"])


@layout(splits=True)
def roboflow_darknet(root: Path, shots: list[Shot]) -> None:
    yolo_folders(root, shots, "{}", "{}")
    for folder in ROBOFLOW.values():
        text(root, f"{folder}/_darknet.labels", classes(shots))


@layout(splits=True)
def ultralytics(root: Path, shots: list[Shot]) -> None:
    yolo_folders(root, shots, "images/{}", "labels/{}")
    ends = [f"{key}: images/{folder}" for key, folder in ROBOFLOW.items()]
    names = [f"  {number}: {name}" for number, name in enumerate(classes(shots))]
    text(root, "data.yaml", ["path: ../datasets/cells", *ends, "names:", *names])


@layout()
def yolo_capital_folders(root: Path, shots: list[Shot]) -> None:
    yolo_folders(root, shots, "Images", "Labels")
    text(root, "data.yaml", ["train: Images", f"names: [{', '.join(classes(shots))}]"])


@layout()
def yolo_beside(root: Path, shots: list[Shot]) -> None:
    yolo_folders(root, shots, "", "")
    text(root, "classes.txt", classes(shots))


@layout()
def label_studio_yolo(root: Path, shots: list[Shot]) -> None:
    yolo_folders(root, shots, "images", "labels")
    text(root, "classes.txt", classes(shots))
    named = [{"id": number, "name": name} for number, name in enumerate(classes(shots))]
    dump(root, "notes.json", {"categories": named, "info": {"year": 2026, "contributor": "Label Studio"}})


@layout()
def cvat_yolo(root: Path, shots: list[Shot]) -> None:
    yolo_folders(root, shots, "obj_train_data", "obj_train_data")
    text(root, "obj.names", classes(shots))
    text(root, "train.txt", [f"data/obj_train_data/{shot.name}" for shot in shots])
    ends = ["train = data/train.txt", "names = data/obj.names", "backup = backup/"]
    text(root, "obj.data", [f"classes = {len(classes(shots))}", *ends])


@layout()
def cvat_ultralytics(root: Path, shots: list[Shot]) -> None:
    yolo_folders(root, shots, "images/train", "labels/train")
    text(root, "train.txt", [f"data/images/train/{shot.name}" for shot in shots])
    names = [f"  {number}: {name}" for number, name in enumerate(classes(shots))]
    text(root, "data.yaml", ["names:", *names, "path: .", "train: train.txt"])


# ------------------------------------------------------------------------------------------------ tables


def table(root: Path, name: str, lines: Iterable[Iterable[Any]]) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    text(root, name, stream.getvalue())


@layout(splits=True)
def tensorflow_csv(root: Path, shots: list[Shot]) -> None:
    head = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
    for split, folder in ROBOFLOW.items():
        own = of_split(shots, split)
        found = [(shot.name, *shot.size_wh, name, *box) for shot in own for name, box in shot.boxes]
        table(root, f"{folder}/_annotations.csv", [head, *found])
        for shot in own:
            place(root, shot, folder)


@layout(splits=True)
def open_images(root: Path, shots: list[Shot]) -> None:
    names = {"train": "train", "val": "validation", "test": "test"}
    codes = {name: f"/m/0{number}x" for number, name in enumerate(classes(shots))}
    flags = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")
    head = ("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", *flags)
    for split, folder in names.items():
        found = [
            (shot.stem, "xclick", codes[name], 1, x1 / width, x2 / width, y1 / height, y2 / height, 0, 0, 0, 0, 0)
            for shot in of_split(shots, split)
            for width, height in [shot.size_wh]
            for name, (x1, y1, x2, y2) in shot.boxes
        ]
        table(root, f"{folder}-annotations-bbox.csv", [head, *found])
    table(root, "class-descriptions-boxable.csv", [(code, name) for name, code in codes.items()])
    for shot in shots:
        place(root, shot, f"{names[shot.split]}/data")
