"""What can be asked of one picture's prediction."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from multibox.errors import OptionError
from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec

__all__ = ["DISPLAY_THRESHOLD", "PictureOptions", "require_count", "require_fraction"]

# The score from which a box is shown to a person. A choice, not part of the model: evaluation keeps scores down to the
# model's own threshold (0.01).
DISPLAY_THRESHOLD = 0.5


@dataclass(frozen=True)
class PictureOptions:
    """What can be asked of one picture's prediction; checked on construction.

    Args:
        conf: only scores above it are reported; 0.5 when left out. Evaluation goes down to
            `card.postprocess.score_threshold`.
        iou: overlap above which the lower-scored of two boxes is dropped; the model's own when left out.
        max_det: most objects in a picture; the model's own when left out.
        classes: names or indexes to keep; all when left out.
        agnostic_nms: let boxes of different classes suppress each other.

    Raises:
        OptionError: a value out of range or of the wrong kind.
    """

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: Iterable[str | int] | str | int | None = None
    agnostic_nms: bool = False

    def __post_init__(self) -> None:
        require_fraction(self, "conf", top="only scores above it are reported, and none is above 1")
        require_fraction(self, "iou")
        require_count(self, "max_det")
        if self.classes is not None and not isinstance(self.classes, str | numbers.Integral):
            object.__setattr__(self, "classes", tuple(self.classes))  # type: ignore[arg-type]  # not a number

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


def require_fraction(options: Any, name: str, *, top: str | None = None, needed: bool = False) -> None:
    """Check that a field is a number from 0 to 1, or None unless it is needed, and make it a float.

    `top` says why 1 itself is refused, where it is.
    """
    value: Any = getattr(options, name)
    if value is None and not needed:
        return
    limit = "to 1" if top is None else "below 1"
    if isinstance(value, bool | str) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise OptionError(f"{name} must be a number from 0 {limit}, got {value!r}")
    if top is not None and value == 1:
        raise OptionError(f"{name} must be below 1: {top}")
    object.__setattr__(options, name, float(value))


def require_count(options: Any, name: str, *, least: int = 1, needed: bool = False) -> None:
    """Check that a field is a whole number from `least`, or None unless it is needed, and make it an int."""
    value: Any = getattr(options, name)
    if value is None and not needed:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise OptionError(f"{name} must be a whole number from {least}, got {value!r}")
    object.__setattr__(options, name, int(value))
