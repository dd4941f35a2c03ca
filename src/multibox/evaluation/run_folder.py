"""Truth and predictions of a run in two files, so that runs can be compared long after."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from multibox.errors import MultiboxError
from multibox.evaluation.records import EvaluationSet, Truth
from multibox.files import atomic_write
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections

__all__ = ["load_evaluation", "save_evaluation", "truth_digest"]

TRUTH_FILE, PREDICTIONS_FILE = "truth.json", "coco-results.json"


def save_evaluation(folder: Path, data: EvaluationSet) -> None:
    """Write `truth.json` and `coco-results.json` (COCO's own form, with the data set's category ids), unrounded."""
    atomic_write(folder / TRUTH_FILE, json.dumps(_truth_json(data), allow_nan=False))
    rows: list[dict[str, Any]] = []
    for number, predictions in enumerate(data.predictions):
        rows += predictions.to_coco(_image_id(data, number))
    atomic_write(folder / PREDICTIONS_FILE, json.dumps(rows, allow_nan=False))


def _image_id(data: EvaluationSet, number: int) -> int | str:
    image_id = data.truths[number].image_id
    return number if image_id is None else image_id


def _truth_json(data: EvaluationSet) -> dict[str, Any]:
    pictures = []
    for number, truth in enumerate(data.truths):
        area = [None if np.isnan(value) else value for value in truth.area.tolist()]
        pictures.append(
            {
                "image_id": _image_id(data, number),
                "path": truth.detections.path,
                "size_hw": list(truth.detections.picture_size_hw),
                "boxes_xyxy": truth.detections.boxes_xyxy.tolist(),
                "labels": truth.detections.labels.tolist(),
                "crowd": truth.crowd.tolist(),
                "difficult": truth.difficult.tolist(),
                "area": area,
            }
        )
    return {"name": data.name, "class_map": data.class_map.to_dict(), "pictures": pictures}


def truth_digest(data: EvaluationSet) -> str:
    """SHA-256 over classes and objects, without paths: equal for runs that can be compared."""
    content = _truth_json(data)
    for picture in content["pictures"]:
        del picture["path"]
    text = json.dumps([content["class_map"], content["pictures"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_evaluation(folder: Path) -> EvaluationSet:
    """Inverse of `save_evaluation`.

    Raises:
        MultiboxError: not a run folder of `multibox val`, or a damaged one.
    """
    try:
        truth = json.loads((folder / TRUTH_FILE).read_text(encoding="utf-8"))
        rows = json.loads((folder / PREDICTIONS_FILE).read_text(encoding="utf-8"))
        return _evaluation(truth, rows)
    except FileNotFoundError as error:
        raise MultiboxError(f"{folder}: no {Path(error.filename).name}; give a run folder of `multibox val`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MultiboxError(f"{folder}: its results are damaged ({error}); run `multibox val` again") from None


def _evaluation(truth: dict[str, Any], rows: list[dict[str, Any]]) -> EvaluationSet:
    class_map = ClassMap.from_dict(truth["class_map"])
    by_picture: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        by_picture.setdefault(row["image_id"], []).append(row)
    truths, predictions = [], []
    for picture in truth["pictures"]:
        size_hw = (picture["size_hw"][0], picture["size_hw"][1])
        objects = Detections(
            np.array(picture["boxes_xyxy"], np.float32).reshape(-1, 4),
            np.array(picture["labels"], np.int64),
            None,
            class_map,
            size_hw,
            picture["path"],
        )
        area = np.array([np.nan if value is None else value for value in picture["area"]], np.float64)
        flags = {key: np.array(picture[key], bool) for key in ("crowd", "difficult")}
        truths.append(Truth(objects, **flags, area=area, image_id=picture["image_id"]))
        found = by_picture.pop(picture["image_id"], [])
        bbox = np.array([row["bbox"] for row in found], np.float64).reshape(-1, 4)
        predictions.append(
            Detections(
                np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1).astype(np.float32),
                np.array([class_map.index_of_id(row["category_id"]) for row in found], np.int64),
                np.array([row["score"] for row in found], np.float32),
                class_map,
                size_hw,
                picture["path"],
            )
        )
    if by_picture:
        raise ValueError(f"results for pictures that are not in {TRUTH_FILE}: {sorted(map(str, by_picture))[:3]}")
    return EvaluationSet(class_map, truths, predictions, truth["name"])
