"""Small data sets on disk, for tests of readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

SIZE_WH = (40, 30)


def picture(path: Path, *, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", SIZE_WH).save(path, exif=exif)
    return path


def coco(**changes: Any) -> dict[str, Any]:
    data = {
        "images": [{"id": 5, "file_name": "p.jpg", "width": 40, "height": 30}, {"id": 2, "file_name": "q.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 0, "name": "cat"}, {"id": 90, "name": "unused"}],
        "annotations": [
            {"id": 1, "image_id": 2, "category_id": 18, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, 6]]},
            {"id": 2, "image_id": 5, "category_id": 0, "bbox": [0.5, 0, 10.25, 5], "area": 7.5, "iscrowd": 1},
        ],
    }
    return data | changes


def write_coco(folder: Path, data: Any) -> Path:
    file = folder / "set.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return file


def yolo(folder: Path, labels: dict[str, str], config: str = "train: images/train\nnames: [no, 007]\n") -> Path:
    for name, text in labels.items():
        picture(folder / f"images/{name}.png")
        file = folder / f"labels/{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (folder / "data.yaml").write_text("\ufeff" + config, encoding="utf-8")
    return folder
