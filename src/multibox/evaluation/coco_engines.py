"""The engines behind `evaluate_coco`: the same tables of precision and recall from each."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox import __version__
from multibox.errors import MissingDependencyError
from multibox.evaluation.accumulate import class_values
from multibox.evaluation.matching import AREA_RANGES, IOU_THRESHOLDS, MAX_DETECTIONS, match_coco
from multibox.evaluation.records import EvaluationSet

__all__ = ["Scores", "by_numpy", "by_pycocotools"]

_RECALLS = {
    "1": ("all", 1),
    "10": ("all", 10),
    "100": ("all", 100),
    "small": ("small", 100),
    "medium": ("medium", 100),
    "large": ("large", 100),
}
"""Name: (size range, best detections of a picture and class)."""

_LIMITS = (1, 10, 100)  # COCOeval's maxDets


@dataclass(frozen=True, eq=False)
class Scores:
    """Average precision by size range and recall by name, each [T, C] float64 with NaN where a class has no objects."""

    precision: dict[str, NDArray[np.float64]]
    recall: dict[str, NDArray[np.float64]]
    engine: str


def by_numpy(data: EvaluationSet) -> Scores:
    """The implementation of multibox itself."""
    matched = dict(zip(AREA_RANGES, match_coco(data, thresholds=IOU_THRESHOLDS, areas=tuple(AREA_RANGES)), strict=True))
    shape = len(IOU_THRESHOLDS), len(data.class_map)
    precision = {area: np.full(shape, np.nan) for area in AREA_RANGES}
    recall = {name: np.full(shape, np.nan) for name in _RECALLS}
    for name, (area, best) in _RECALLS.items():
        for label, values in class_values(matched[area], ("101", "recall"), max_rank=best):
            recall[name][:, label] = values["recall"][:, 0]
            if best == MAX_DETECTIONS:
                precision[area][:, label] = values["101"][:, 0]
    return Scores(precision, recall, f"multibox {__version__} (numpy {np.__version__})")


def by_pycocotools(data: EvaluationSet) -> Scores:
    """COCO's own tools, with what they print thrown away."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise MissingDependencyError("pycocotools", "the engine 'pycocotools'", "data") from None
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = _truth_dataset(data), _found_dataset(data)
        truth.createIndex()
        found.createIndex()
        run = COCOeval(truth, found, "bbox")
        if len(data):
            run.evaluate()
            run.accumulate()
    return _scores(data, run.eval, f"pycocotools {version('pycocotools')}")


def _scores(data: EvaluationSet, tables: dict[str, Any] | None, engine: str) -> Scores:
    """The tables of these tools, [T, R, C, A, M] and [T, C, A, M], with −1 for absent classes."""
    areas, best = list(AREA_RANGES), list(_LIMITS)
    absent = np.full((len(IOU_THRESHOLDS), len(data.class_map)), np.nan)
    if not tables:
        return Scores(dict.fromkeys(areas, absent), dict.fromkeys(_RECALLS, absent), engine)
    precision = np.asarray(tables["precision"])[..., best.index(100)].mean(axis=1)
    recalls = np.asarray(tables["recall"])
    return Scores(
        {area: _without_absent(precision[..., i]) for i, area in enumerate(areas)},
        {
            name: _without_absent(recalls[..., areas.index(area), best.index(count)])
            for name, (area, count) in _RECALLS.items()
        },
        engine,
    )


def _without_absent(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values < 0, np.nan, values)


def _pictures(data: EvaluationSet) -> list[dict[str, Any]]:
    sizes_hw = [data.truths[i].detections.picture_size_hw for i in data.order]
    return [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes_hw, start=1)]


def _places(data: EvaluationSet) -> NDArray[np.int64]:
    """[N] the place of each picture in the order of evaluation, from 1: its id for these tools."""
    places = np.empty(len(data), np.int64)
    places[data.order] = np.arange(1, len(data) + 1)
    return places


def _truth_dataset(data: EvaluationSet) -> dict[str, Any]:
    # Ids start at 1: for these tools an object of id 0 is never found.
    columns = data.columns
    rows = zip(
        _places(data)[columns.truth_picture].tolist(),
        columns.truth_label.tolist(),
        columns.truth_xywh.tolist(),
        columns.truth_area.tolist(),
        columns.truth_crowd.tolist(),
        strict=True,
    )
    return {
        "images": _pictures(data),
        "categories": _categories(data),
        "annotations": [
            {"id": i, "image_id": p, "category_id": c + 1, "bbox": xywh, "area": area, "iscrowd": int(crowd)}
            for i, (p, c, xywh, area, crowd) in enumerate(rows, start=1)
        ],
    }


def _found_dataset(data: EvaluationSet) -> dict[str, Any]:
    columns = data.columns
    rows = zip(
        _places(data)[columns.picture].tolist(),
        columns.label.tolist(),
        columns.xywh.tolist(),
        columns.score.tolist(),
        strict=True,
    )
    return {
        "images": _pictures(data),
        "categories": _categories(data),
        "annotations": [
            {
                "id": i,
                "image_id": p,
                "category_id": c + 1,
                "bbox": xywh,
                "area": xywh[2] * xywh[3],
                "iscrowd": 0,
                "score": score,
            }
            for i, (p, c, xywh, score) in enumerate(rows, start=1)
        ],
    }


def _categories(data: EvaluationSet) -> list[dict[str, Any]]:
    return [{"id": i, "name": name} for i, name in enumerate(data.class_map.names, start=1)]
