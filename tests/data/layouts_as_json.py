"""The layouts of JSON. See `annotation_layouts`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from annotation_layouts import ROBOFLOW, Shot, classes, corner_and_sides, dump, layout, of_split, place

# ------------------------------------------------------------------------------------------------ COCO


def coco(shots: list[Shot], names: list[str], file_name: str = "{}", first_id: int = 1) -> dict[str, Any]:
    pictures = [
        {"id": number, "file_name": file_name.format(shot.name), "width": shot.size_wh[0], "height": shot.size_wh[1]}
        for number, shot in enumerate(shots)
    ]
    boxes = [(number, name, box) for number, shot in enumerate(shots) for name, box in shot.boxes]
    annotations = [
        {
            "id": position,
            "image_id": number,
            "category_id": names.index(name) + first_id,
            "bbox": corner_and_sides(box),
            "area": (box[2] - box[0]) * (box[3] - box[1]),
            "iscrowd": 0,
        }
        for position, (number, name, box) in enumerate(boxes)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=first_id)]
    return {"info": {}, "licenses": [], "categories": categories, "images": pictures, "annotations": annotations}


@layout(splits=True)
def roboflow_coco(root: Path, shots: list[Shot]) -> None:
    for split, folder in ROBOFLOW.items():
        own = of_split(shots, split)
        data = coco(own, classes(shots))
        data["categories"] = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            *({**category, "supercategory": "cells"} for category in data["categories"]),
        ]
        dump(root, f"{folder}/_annotations.coco.json", data)
        for shot in own:
            place(root, shot, folder)


@layout(splits=True)
def coco_2017(root: Path, shots: list[Shot]) -> None:
    for split in ROBOFLOW:
        own = of_split(shots, split)
        dump(root, f"annotations/instances_{split}2017.json", coco(own, classes(shots)))
        for shot in own:
            place(root, shot, f"{split}2017")


@layout()
def cvat_coco(root: Path, shots: list[Shot]) -> None:
    dump(root, "annotations/instances_default.json", coco(shots, classes(shots)))
    for shot in shots:
        place(root, shot, "images/default")


@layout()
def label_studio_coco(root: Path, shots: list[Shot]) -> None:
    dump(root, "result.json", coco(shots, classes(shots), "images\\{}", first_id=0))
    for shot in shots:
        place(root, shot, "images")


@layout(give="polygons.json")
def coco_polygons(root: Path, shots: list[Shot]) -> None:
    data = coco(shots, classes(shots))
    for item in data["annotations"]:
        x, y, width, height = item.pop("bbox")
        item["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    dump(root, "polygons.json", data)
    for shot in shots:
        place(root, shot, "")


@layout(give="masks.json")
def coco_masks(root: Path, shots: list[Shot]) -> None:
    """Run lengths, down the columns, of masks that fill their boxes; boxes lie within the picture."""
    data = coco(shots, classes(shots))
    for item in data["annotations"]:
        x, y, width, height = (int(value) for value in item.pop("bbox"))
        whole = shots[item["image_id"]].size_wh
        runs = [x * whole[1] + y, *[height, whole[1] - height] * (width - 1), height]
        item["segmentation"] = {"size": [whole[1], whole[0]], "counts": [*runs, whole[0] * whole[1] - sum(runs)]}
        item["iscrowd"] = 1
    dump(root, "masks.json", data)
    for shot in shots:
        place(root, shot, "")


# ------------------------------------------------------------------------------------------------ other JSON


@layout()
def labelme(root: Path, shots: list[Shot]) -> None:
    for shot in shots:
        place(root, shot, "")
        shapes = [
            {"label": name, "points": [[x2, y1], [x1, y2]], "shape_type": "rectangle", "flags": {}, "group_id": None}
            for name, (x1, y1, x2, y2) in shot.boxes
        ]
        size = {"imageHeight": shot.size_wh[1], "imageWidth": shot.size_wh[0]}
        head = {"version": "5.5.0", "flags": {}, "imagePath": shot.name, "imageData": None}
        dump(root, f"{shot.stem}.json", {**head, "shapes": shapes, **size})


def via_regions(shots: list[Shot]) -> dict[str, Any]:
    return {
        f"{shot.name}-1": {
            "filename": shot.name,
            "size": -1,
            "regions": [
                {
                    "shape_attributes": {
                        "name": "rect",
                        **dict(zip(("x", "y", "width", "height"), sides, strict=True)),
                    },
                    "region_attributes": {"class": name},
                }
                for name, sides in ((name, corner_and_sides(box)) for name, box in shot.boxes)
            ],
            "file_attributes": {},
        }
        for shot in shots
    }


@layout()
def via(root: Path, shots: list[Shot]) -> None:
    dump(root, "via_region_data.json", via_regions(shots))
    for shot in shots:
        place(root, shot, "")


@layout()
def via_project(root: Path, shots: list[Shot]) -> None:
    settings = {"ui": {}, "core": {"default_filepath": "images/"}}
    dump(root, "via_project.json", {"_via_settings": settings, "_via_img_metadata": via_regions(shots)})
    for shot in shots:
        place(root, shot, "images")


@layout(splits=True)
def createml(root: Path, shots: list[Shot]) -> None:
    for split, folder in ROBOFLOW.items():
        own = of_split(shots, split)
        pictures = [
            {
                "image": shot.name,
                "annotations": [
                    {
                        "label": name,
                        "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1},
                    }
                    for name, (x1, y1, x2, y2) in shot.boxes
                ],
            }
            for shot in own
        ]
        dump(root, f"{folder}/_annotations.createml.json", pictures)
        for shot in own:
            place(root, shot, folder)


@layout()
def label_studio(root: Path, shots: list[Shot]) -> None:
    tasks = []
    for number, shot in enumerate(shots):
        width, height = shot.size_wh
        regions = [
            {
                "id": f"r{position}",
                "type": "rectanglelabels",
                "original_width": width,
                "original_height": height,
                "value": {
                    "x": x1 / width * 100,
                    "y": y1 / height * 100,
                    "width": (x2 - x1) / width * 100,
                    "height": (y2 - y1) / height * 100,
                    "rotation": 0,
                    "rectanglelabels": [name],
                },
            }
            for position, (name, (x1, y1, x2, y2)) in enumerate(shot.boxes)
        ]
        address = f"/data/upload/3/{shot.name}".replace(" ", "%20")
        tasks.append({"id": number, "annotations": [{"id": number, "result": regions}], "data": {"image": address}})
        place(root, shot, "upload")
    dump(root, "project-3.json", tasks)


@layout()
def label_studio_min(root: Path, shots: list[Shot]) -> None:
    tasks = []
    for number, shot in enumerate(sorted(shots, key=lambda shot: len(shot.boxes))):  # those without objects first
        width, height = shot.size_wh
        regions = [
            {
                "x": x1 / width * 100,
                "y": y1 / height * 100,
                "width": (x2 - x1) / width * 100,
                "height": (y2 - y1) / height * 100,
                "rotation": 0,
                "rectanglelabels": [name],
                "original_width": width,
                "original_height": height,
            }
            for name, (x1, y1, x2, y2) in shot.boxes
        ]
        task = {"image": f"/data/upload/3/{shot.name}", "id": number, "annotator": 1, "annotation_id": number}
        tasks.append({**task, "label": regions} if regions else task)
        place(root, shot, "upload")
    dump(root, "project-3-min.json", tasks)


@layout(splits=True)
def supervisely(root: Path, shots: list[Shot]) -> None:
    for shot in shots:
        place(root, shot, f"{shot.split}/img")
        size = {"height": shot.size_wh[1], "width": shot.size_wh[0]}
        objects = [
            {
                "classTitle": name,
                "geometryType": "rectangle",
                "points": {"exterior": [[x1, y1], [x2, y2]], "interior": []},
            }
            for name, (x1, y1, x2, y2) in shot.boxes
        ]
        dump(root, f"{shot.split}/ann/{shot.name}.json", {"description": "", "size": size, "objects": objects})
    titles = [{"title": name, "shape": "rectangle", "color": "#00FF00"} for name in classes(shots)]
    dump(root, "meta.json", {"classes": titles, "tags": []})


@layout(splits=True)
def datumaro(root: Path, shots: list[Shot]) -> None:
    labels = {"label": {"labels": [{"name": name, "parent": ""} for name in classes(shots)]}}
    for split in ROBOFLOW:
        items = [
            {
                "id": shot.stem,
                "annotations": [
                    {"id": 0, "type": "bbox", "label_id": classes(shots).index(name), "bbox": corner_and_sides(box)}
                    for name, box in shot.boxes
                ],
                "image": {"path": shot.name, "size": [shot.size_wh[1], shot.size_wh[0]]},
            }
            for shot in of_split(shots, split)
        ]
        dump(root, f"annotations/{split}.json", {"info": {}, "categories": labels, "items": items})
    for shot in shots:
        place(root, shot, f"images/{shot.split}")
