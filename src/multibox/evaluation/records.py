"""What an evaluation reads: the truth and the predictions of every picture, checked once and laid out flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections

__all__ = ["EvaluationColumns", "EvaluationSet", "Truth"]

_ABSENT: Any = np.zeros(0)


@dataclass(frozen=True, eq=False)
class Truth:
    """The true objects of one picture. Arrays are copied and read-only.

    Args:
        detections: N objects without scores, in pixels of the upright picture.
        crowd: [N] bool; a region that holds many objects (COCO's `iscrowd`). All False when left out.
        difficult: [N] bool; an object that VOC does not ask for. All False when left out.
        area: [N] float64 square pixels of the object itself; NaN, or left out, where only the box is known.
        image_id: the id in the data set; ids of one type decide the order of pictures, and with it of equal scores.

    Raises:
        ContractError: scores where there must be none, or an array that does not fit the objects.
    """

    detections: Detections
    crowd: NDArray[np.bool_] = field(default_factory=lambda: _ABSENT)
    difficult: NDArray[np.bool_] = field(default_factory=lambda: _ABSENT)
    area: NDArray[np.float64] = field(default_factory=lambda: _ABSENT)
    image_id: int | str | None = None

    def __post_init__(self) -> None:
        count = len(self.detections)
        if count and self.detections.scores is not None:
            raise ContractError("truth has no scores, but these objects have; are they predictions?")
        for name, fill, kinds in (("crowd", False, "biu"), ("difficult", False, "biu"), ("area", np.nan, "fiu")):
            given = getattr(self, name)
            values = np.full(count, fill) if given is _ABSENT else np.asarray(given)
            if values.shape != (count,) or (count and values.dtype.kind not in kinds):
                raise ContractError(
                    f"{name} must be [{count}] like the objects, got {values.dtype} {list(values.shape)}"
                )
            values = values.astype(np.asarray(fill).dtype)
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if (self.area < 0).any() or np.isinf(self.area).any():
            raise ContractError("area must be square pixels, 0 or more, or NaN where it is not known")

    def __len__(self) -> int:
        return len(self.detections)


@dataclass(frozen=True, eq=False)
class EvaluationColumns:
    """All objects of a set as flat read-only columns, picture after picture in the order of evaluation.

    `*_xywh` are [·, 4] float64 corner, width and height in pixels: the form in which COCO's tools compute, so that
    equal overlaps stay equal. `*_picture` and `*_index` lead back to the picture and to the row in its `Detections`.
    """

    truth_picture: NDArray[np.int64]
    truth_index: NDArray[np.int64]
    truth_label: NDArray[np.int64]
    truth_xywh: NDArray[np.float64]
    truth_area: NDArray[np.float64]
    truth_crowd: NDArray[np.bool_]
    truth_difficult: NDArray[np.bool_]
    picture: NDArray[np.int64]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    xywh: NDArray[np.float64]
    score: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Truth and predictions of the same pictures, picture by picture.

    Args:
        class_map: the classes; every picture's own must be the same.
        truths: one for each picture.
        predictions: one for each picture, with scores.
        name: what is evaluated on what, for messages and titles.

    Raises:
        ContractError: counts or picture sizes that differ, predictions without scores, a repeated image id.
        ClassMapError: other classes; the message shows the difference (see `ClassMapping` for the way out).
    """

    class_map: ClassMap
    truths: Sequence[Truth]
    predictions: Sequence[Detections]
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "truths", tuple(self.truths))
        object.__setattr__(self, "predictions", tuple(self.predictions))
        if len(self.truths) != len(self.predictions):
            raise ContractError(f"{len(self.truths)} pictures have truth and {len(self.predictions)} have predictions")
        for i, (truth, found) in enumerate(zip(self.truths, self.predictions, strict=True)):
            for what, part in (("truth", truth.detections), ("predictions", found)):
                if part.class_map is not self.class_map:
                    self.class_map.require_same(part.class_map, mine="the evaluation", theirs=f"picture {i}'s {what}")
            if len(found) and found.scores is None:
                raise ContractError(f"the predictions of picture {i} have no scores; are they truth?")
            if truth.detections.picture_size_hw != found.picture_size_hw:
                raise ContractError(
                    f"picture {i} is {truth.detections.picture_size_hw} (height, width) in the truth but "
                    f"{found.picture_size_hw} in the predictions; both must be of the upright picture"
                )
        ids = [truth.image_id for truth in self.truths if truth.image_id is not None]
        if len(set(ids)) != len(ids):
            repeated = next(image_id for image_id in ids if ids.count(image_id) > 1)
            raise ContractError(f"image id {repeated!r} occurs more than once; evaluate every picture once")

    def __len__(self) -> int:
        return len(self.truths)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """[N] the pictures in the order of evaluation: by image id if all have one of one type, else as given.

        Equal scores are ranked in this order, so it can change an AP slightly; COCO's tools sort by image id.
        """
        ids: list[Any] = [truth.image_id for truth in self.truths]
        sortable = all(isinstance(i, int) for i in ids) or all(isinstance(i, str) for i in ids)
        places = sorted(range(len(ids)), key=ids.__getitem__) if sortable else range(len(ids))
        return np.array(places, np.int64)

    @cached_property
    def columns(self) -> EvaluationColumns:
        """Everything, flat."""
        truths = [self.truths[i] for i in self.order]
        found = [self.predictions[i] for i in self.order]
        truth_xywh = _xywh([truth.detections for truth in truths])
        area = _joined([truth.area for truth in truths], np.float64)
        columns = EvaluationColumns(
            truth_picture=np.repeat(self.order, [len(truth) for truth in truths]),
            truth_index=_joined([np.arange(len(truth)) for truth in truths], np.int64),
            truth_label=_joined([truth.detections.labels for truth in truths], np.int64),
            truth_xywh=truth_xywh,
            truth_area=np.where(np.isnan(area), truth_xywh[:, 2] * truth_xywh[:, 3], area),
            truth_crowd=_joined([truth.crowd for truth in truths], np.bool_),
            truth_difficult=_joined([truth.difficult for truth in truths], np.bool_),
            picture=np.repeat(self.order, [len(part) for part in found]),
            index=_joined([np.arange(len(part)) for part in found], np.int64),
            label=_joined([part.labels for part in found], np.int64),
            xywh=_xywh(found),
            score=_joined([part.scores for part in found if part.scores is not None], np.float64),
        )
        for values in vars(columns).values():
            values.flags.writeable = False
        return columns


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(part.astype(dtype) for part in parts)])


def _xywh(parts: Sequence[Detections]) -> NDArray[np.float64]:
    xyxy = np.concatenate([np.zeros((0, 4)), *(part.boxes_xyxy.astype(np.float64) for part in parts)])
    return np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
