"""What a prediction may be asked."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from multibox.errors import OptionError

if TYPE_CHECKING:
    from multibox.spec.classes import ClassMap
    from multibox.spec.postprocess import PostprocessSpec

__all__ = ["DISPLAY_THRESHOLD", "Options"]

# The score from which a box is shown to a person. A choice, not part of the model: evaluation keeps scores down to the
# model's own threshold (0.01).
DISPLAY_THRESHOLD = 0.5

SMALLEST_TILE = 32  # pixels


@dataclass(frozen=True)
class Options:
    """What a prediction may be asked; checked on construction.

    Args:
        conf: only scores above it are reported; 0.5 when left out. Evaluation goes down to
            `card.postprocess.score_threshold`.
        iou: overlap above which the lower-scored of two boxes is dropped; the model's own when left out.
        max_det: most objects in a picture; the model's own when left out.
        classes: names or indexes to keep; all when left out.
        agnostic_nms: let boxes of different classes suppress each other.
        batch: pictures given to the network at once.
        workers: threads that work on later pictures (or on tiles) meanwhile; as many as the engine has, up to 8, when
            left out. 1: one after the other, each picture drawn only when the results before it have been taken.
        tile: side in pixels of the tiles that larger pictures are looked at in, besides as a whole; no tiles when left
            out. With tiles a picture is worked on alone, and its tiles at once.
        tile_overlap: of neighbouring tiles, as a fraction of their side. Objects up to this size are seen whole.

    Raises:
        OptionError: a value out of range or of the wrong kind.
    """

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: Iterable[str | int] | str | int | None = None
    agnostic_nms: bool = False
    batch: int = 1
    workers: int | None = None
    tile: int | None = None
    tile_overlap: float = 0.2

    def __post_init__(self) -> None:
        for name, high in (("conf", "below 1"), ("iou", "to 1"), ("tile_overlap", "below 1")):
            value: Any = getattr(self, name)
            if value is None and name != "tile_overlap":
                continue
            if isinstance(value, bool | str) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
                raise OptionError(f"{name} must be a number from 0 {high}, got {value!r}")
            if name == "conf" and value == 1:
                raise OptionError("conf must be below 1: only scores above it are reported, and none is above 1")
            if name == "tile_overlap" and value == 1:
                raise OptionError("tile_overlap must be below 1: tiles that share everything get nowhere")
            object.__setattr__(self, name, float(value))
        for name, least in (("max_det", 1), ("batch", 1), ("workers", 1), ("tile", SMALLEST_TILE)):
            value = getattr(self, name)
            if value is None and name != "batch":
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
                raise OptionError(f"{name} must be a whole number from {least}, got {value!r}")
            object.__setattr__(self, name, int(value))

    def selected(self, class_map: ClassMap) -> tuple[int, ...] | None:
        """Indexes of the wanted classes; None for all."""
        if self.classes is None:
            return None
        if isinstance(self.classes, numbers.Integral):
            return class_map.select([int(self.classes)])
        return class_map.select(self.classes)  # type: ignore[arg-type]  # numbers.Integral hides that int is gone

    def applied_to(self, default: PostprocessSpec) -> PostprocessSpec:
        """The model's own post-processing with what was asked for in its place."""
        return replace(
            default,
            score_threshold=DISPLAY_THRESHOLD if self.conf is None else self.conf,
            nms_iou=default.nms_iou if self.iou is None else self.iou,
            max_detections=default.max_detections if self.max_det is None else self.max_det,
            class_agnostic=bool(self.agnostic_nms) or default.class_agnostic,
        )
