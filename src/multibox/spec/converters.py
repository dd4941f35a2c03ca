"""Detections in the formats of other programs. Coordinates are never rounded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, MissingDependencyError
from multibox.spec.classes import ClassMap

__all__ = ["RESERVED", "Converters", "Detection"]

JSON_KEYS = ("name", "class_id", "confidence", "box")
COCO_KEYS = ("image_id", "category_id", "bbox", "score")
HUGGINGFACE_KEYS = ("score", "label", "box")
TORCHVISION_KEYS = ("boxes", "labels", "scores")
CSV_COLUMNS = ("path", "width", "height", "name", "class_id", "confidence", "x1", "y1", "x2", "y2")
RESERVED = frozenset(
    (*JSON_KEYS, *COCO_KEYS, *HUGGINGFACE_KEYS, *TORCHVISION_KEYS, *CSV_COLUMNS, "boxes_xyxy", "class_name")
)
"""What an extra column cannot be called, because a format has something else under that name."""


@dataclass(frozen=True)
class Detection:
    """One object: a row of `Detections`."""

    name: str
    label: int
    score: float | None
    box_xyxy: tuple[float, float, float, float]
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Converters:
    """The methods of `Detections` that lead to other programs and back."""

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32] | None
    class_map: ClassMap
    picture_size_hw: tuple[int, int]
    path: str | None
    columns: Mapping[str, NDArray[Any]]

    def __iter__(self) -> Iterator[Detection]:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The row of `multibox predict --json`: path, width, height and a list of detections in pixels.

        Extra columns are further keys of a detection.
        """
        height, width = self.picture_size_hw
        return {
            "path": self.path,
            "width": width,
            "height": height,
            "detections": [
                {
                    "name": row.name,
                    "class_id": row.label,
                    "confidence": row.score,
                    "box": dict(zip(("x1", "y1", "x2", "y2"), row.box_xyxy, strict=True)),
                    **row.columns,
                }
                for row in self
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], class_map: ClassMap) -> Self:
        """Inverse of `to_dict`; names and indexes must agree with `class_map`. Further keys are extra columns.

        Raises:
            ContractError: something is missing or of the wrong kind.
        """
        try:
            return cls._from_dict(data, class_map)
        except KeyError as error:
            raise ContractError(f"this is no row of `multibox predict --json`: {error} is missing") from None
        except TypeError as error:
            raise ContractError(f"this is no row of `multibox predict --json`: {error}") from None

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any], class_map: ClassMap) -> Self:
        rows = data["detections"]
        for row in rows:
            if class_map.index(row["name"]) != row["class_id"]:
                raise ContractError(
                    f"class {row['name']!r} has index {row['class_id']} in the data "
                    f"but {class_map.index(row['name'])} in the class map"
                )
        scores = [row["confidence"] for row in rows]
        if 0 < scores.count(None) < len(scores):
            raise ContractError("some objects have a confidence and some have none; give all or none")
        names = dict.fromkeys(key for row in rows for key in row if key not in JSON_KEYS)
        for name in names:
            if not all(name in row for row in rows):
                raise ContractError(f"some objects have {name!r} and some have none; give all or none")
        make: Any = cls
        made: Self = make(
            [[row["box"][k] for k in ("x1", "y1", "x2", "y2")] for row in rows],
            [row["class_id"] for row in rows],
            None if None in scores else scores,
            class_map,
            (data["height"], data["width"]),
            data["path"],
            columns={name: [row[name] for row in rows] for name in names},
        )
        return made

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Rows of a COCO results file: original category ids, bbox [x, y, width, height] in pixels, extra columns."""
        rows = []
        for row in self:
            x1, y1, x2, y2 = row.box_xyxy
            out = {
                "image_id": image_id,
                "category_id": self.class_map.ids[row.label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                **row.columns,
            }
            rows.append(out if row.score is None else {**out, "score": row.score})
        return rows

    def to_yolo(self, *, scores: bool = False) -> str:
        """YOLO text, a line per object: index, centre x, centre y, width, height.

        Coordinates are fractions of the picture's sides. The format has no room for extra columns.

        Args:
            scores: add the score, where there is one, as a sixth number. Tools that read labels take five.
        """
        height, width = self.picture_size_hw
        lines = []
        for row in self:
            x1, y1, x2, y2 = row.box_xyxy
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            values += [row.score] if scores and row.score is not None else []
            lines.append(" ".join([str(row.label), *(f"{value:.9g}" for value in values)]))
        return "".join(line + "\n" for line in lines)

    CSV_COLUMNS = CSV_COLUMNS

    def to_csv_rows(self) -> list[tuple[Any, ...]]:
        """Rows in the order of `CSV_COLUMNS`, then the extra columns (several values of an object as JSON).

        A picture without objects gives one row with empty object columns.
        """
        height, width = self.picture_size_hw
        head = (self.path, width, height)
        if not len(self.labels):
            return [(*head, *[None] * (len(CSV_COLUMNS) - len(head) + len(self.columns)))]
        return [
            (*head, row.name, row.label, row.score, *row.box_xyxy, *map(_cell, row.columns.values())) for row in self
        ]

    def to_huggingface(self) -> list[dict[str, Any]]:
        """What the Hugging Face object-detection pipeline returns (its boxes are rounded to whole pixels).

        Extra columns are further keys.
        """
        keys = ("xmin", "ymin", "xmax", "ymax")
        return [
            {
                "score": row.score,
                "label": row.name,
                "box": {k: round(v) for k, v in zip(keys, row.box_xyxy, strict=True)},
                **row.columns,
            }
            for row in self
        ]

    def to_torchvision(self, *, first_label: Literal[0, 1]) -> dict[str, Any]:
        """Torchvision's dictionary of tensors: boxes xyxy pixels, labels, scores if any, and extra columns.

        Texts, of which there are no tensors, become lists.

        Args:
            first_label: the number of the first class. torchvision's own detectors count from 1 because 0 is their
                background; say which you want, there is no default.
        """
        if first_label not in (0, 1):
            raise ContractError(f"first_label must be 0 or 1, got {first_label!r}")
        try:
            import torch
        except ImportError:
            raise MissingDependencyError("torch", "the torchvision dictionary", "train") from None
        out = {
            "boxes": torch.from_numpy(self.boxes_xyxy.copy()),
            "labels": torch.from_numpy(self.labels + first_label),
            **{
                name: values.tolist() if values.dtype.kind == "U" else torch.from_numpy(values.copy())
                for name, values in self.columns.items()
            },
        }
        return out if self.scores is None else {**out, "scores": torch.from_numpy(self.scores.copy())}

    def to_supervision(self) -> Any:
        """`supervision.Detections`, with the class names under data["class_name"] and extra columns under their names.

        The column `track_id` becomes its `tracker_id`.
        """
        try:
            import supervision
        except ImportError:
            raise MissingDependencyError("supervision", "to_supervision()", None) from None
        extra = {name: values.copy() for name, values in self.columns.items()}
        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(),
            confidence=None if self.scores is None else self.scores.copy(),
            class_id=self.labels.copy(),
            tracker_id=extra.pop("track_id", None),
            data={"class_name": np.array([row.name for row in self], dtype=str), **extra},
        )


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value
