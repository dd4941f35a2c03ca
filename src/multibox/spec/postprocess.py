"""From a network's raw predictions to detections, in NumPy: scores, box decoding, non-maximum suppression.

`multibox.core.postprocess` does the same on tensors; both follow `PostprocessSpec` to the letter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, OptionError, did_you_mean
from multibox.spec.suppression import first_kept

__all__ = [
    "DEFAULT_VARIANCES",
    "MAX_LOG_SIZE",
    "Activation",
    "BoxClip",
    "PostprocessSpec",
    "Variances",
    "class_columns",
    "decode_np",
    "postprocess_np",
    "suppress_np",
]

Activation = Literal["softmax", "sigmoid"]
BoxClip = Literal["before_nms", "after_nms"]
Variances = tuple[float, float, float, float]
FloatArray: TypeAlias = NDArray[np.floating[Any]]
Found: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]

DEFAULT_VARIANCES: Variances = (0.1, 0.1, 0.2, 0.2)
"""Divisors of the offsets x, y, w, h; not in the paper, but in the code it was released with."""

MAX_LOG_SIZE = math.log(1000 / 16)
"""A box is at most 62.5 times as wide or high as its anchor: the limit that region proposal networks use, from a
feature cell of 16 pixels to a picture of 1000. It only keeps exp() from overflowing."""

FIRST_PREFIX = 1024
"""Candidates that suppression looks at first: about five for each of the usual 200 detections."""

PREFIX_GROWTH = 4

_LEAST_LOGIT = np.float32(-88)  # the exponential of 88 is the last that float32 holds
_SCORE_SLACK = 1e-5  # relative; far above the rounding error of float32 exponentials (about 1e-7)


@dataclass(frozen=True)
class PostprocessSpec:
    """How raw predictions become detections.

    A candidate is an (anchor, class) pair whose score is above `score_threshold`. Of each class the `top_k` best
    enter suppression (None: all). From the best score down, a candidate is dropped when its IoU with a kept one
    is above `nms_iou`: a kept one of the same class, or of any class when `class_agnostic`. The best
    `max_detections` over all classes remain. Equal scores rank by lower anchor, then by lower class. Boxes are cut
    off at the picture's border before or after suppression (`clip`).

    Raises:
        OptionError: a value out of range.
    """

    activation: Activation
    score_threshold: float = 0.01
    nms_iou: float = 0.45
    top_k: int | None = 400
    max_detections: int = 200
    class_agnostic: bool = False
    clip: BoxClip = "before_nms"

    def __post_init__(self) -> None:
        _check_choice("activation", self.activation, get_args(Activation))
        _check_choice("clip", self.clip, get_args(BoxClip))
        if not _is_number(self.score_threshold) or not 0 <= self.score_threshold < 1:
            raise OptionError(f"score_threshold: expected 0 <= number < 1, got {self.score_threshold!r}")
        if not _is_number(self.nms_iou) or not 0 <= self.nms_iou <= 1:
            raise OptionError(f"nms_iou: expected 0 <= number <= 1, got {self.nms_iou!r}")
        if self.top_k is not None and not _is_count(self.top_k):
            raise OptionError(f"top_k: expected a whole number from 1, or None for no limit, got {self.top_k!r}")
        if not _is_count(self.max_detections):
            raise OptionError(f"max_detections: expected a whole number from 1, got {self.max_detections!r}")
        if not isinstance(self.class_agnostic, bool):
            raise OptionError(f"class_agnostic: expected true or false, got {self.class_agnostic!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A specification from plain values.

        Raises:
            OptionError: an unknown key, a missing activation, a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise OptionError(f"post-processing has no option {key!r}; {did_you_mean(str(key), known)}")
        if "activation" not in values:
            raise OptionError(f"post-processing needs 'activation': {' or '.join(get_args(Activation))}")
        return cls(**values)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} {value!r} is unknown; {did_you_mean(str(value), choices)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def decode_np(offsets: FloatArray, anchors_cxcywh: FloatArray, variances: Variances) -> FloatArray:
    """Boxes `unit_cxcywh [..., 4]` that `offsets [..., 4]` point to from their anchors, in float32 at least."""
    spread = np.asarray(variances, dtype=np.float32)
    offset, anchor = offsets * spread, anchors_cxcywh
    centre = anchor[..., :2] + offset[..., :2] * anchor[..., 2:]
    wh = anchor[..., 2:] * np.exp(np.minimum(offset[..., 2:], np.float32(MAX_LOG_SIZE)))
    return np.concatenate([centre, wh], axis=-1)


def postprocess_np(
    offsets: FloatArray,
    logits: FloatArray,
    anchors_cxcywh: FloatArray,
    *,
    variances: Variances,
    spec: PostprocessSpec,
    classes: Iterable[int] | None = None,
) -> Found:
    """The detections of one picture: `unit_xyxy [N, 4]` within the picture, scores `[N]` falling, labels `[N]`.

    Args:
        offsets: `[anchors, 4]`.
        logits: `[anchors, classes]`, after a background column when `spec.activation` is "softmax".
        anchors_cxcywh: `[anchors, 4]` in the unit frame.
        variances: those the network was trained with.
        spec: thresholds and limits.
        classes: the only classes to look at; all when left out.

    Raises:
        ContractError: shapes that do not agree, a value that is not finite, a class that does not exist.
    """
    _check_arrays(offsets, logits, anchors_cxcywh, spec.activation)
    offsets, logits = np.asarray(offsets, np.float32), np.asarray(logits, np.float32)
    anchors_cxcywh = np.asarray(anchors_cxcywh, np.float32)
    class_count = logits.shape[1] - (spec.activation == "softmax")
    columns = class_columns(classes, class_count)
    scores, flat = _candidates(logits, columns, spec)

    def decoded(rows: NDArray[np.int64]) -> FloatArray:
        return _corners(decode_np(offsets[rows], anchors_cxcywh[rows], variances))

    return _best_of(scores, flat, class_count, decoded, spec)


def suppress_np(
    unit_xyxy: FloatArray,
    scores: NDArray[np.float32],
    *,
    spec: PostprocessSpec,
    classes: Iterable[int] | None = None,
) -> Found:
    """As `postprocess_np`, from boxes `[anchors, 4]` and scores `[anchors, classes]` that are decoded already.

    Raises:
        ContractError: a class that does not exist.
    """
    class_count = scores.shape[1]
    columns = class_columns(classes, class_count)
    above = scores > np.float32(spec.score_threshold)
    if columns is not None:
        above &= np.isin(np.arange(class_count), columns)
    flat = np.flatnonzero(above)
    return _best_of(scores.ravel()[flat], flat, class_count, lambda rows: unit_xyxy[rows], spec)


def _best_of(
    scores: NDArray[np.float32],
    flat: NDArray[np.int64],
    class_count: int,
    boxes_of: Callable[[NDArray[np.int64]], FloatArray],
    spec: PostprocessSpec,
) -> Found:
    """What suppression keeps of candidates with scores `[N]` at places `[N]` of the [anchors, classes] matrix."""
    prefix = FIRST_PREFIX
    while True:
        # Greedy decisions about the best candidates do not depend on the ones that follow.
        order = _best_first(scores, prefix)
        anchor, label = np.divmod(flat[order], class_count)
        if spec.top_k is not None and spec.top_k < order.size:
            few = _rank_in_class(label) < spec.top_k
            order, anchor, label = order[few], anchor[few], label[few]
        unit_xyxy = boxes_of(anchor)
        if spec.clip == "before_nms":
            unit_xyxy = unit_xyxy.clip(0, 1)
        groups = None if spec.class_agnostic else label
        kept = first_kept(unit_xyxy, groups, nms_iou=spec.nms_iou, limit=spec.max_detections)
        if kept.size == spec.max_detections or prefix >= scores.size:
            return unit_xyxy[kept].clip(0, 1).astype(np.float32), scores[order[kept]], label[kept]
        prefix *= PREFIX_GROWTH


def _check_arrays(offsets: FloatArray, logits: FloatArray, anchors_cxcywh: FloatArray, activation: Activation) -> None:
    count = len(anchors_cxcywh)
    least = 2 if activation == "softmax" else 1
    for name, array, last in (("anchors_cxcywh", anchors_cxcywh, 4), ("offsets", offsets, 4)):
        if array.shape != (count, last) or count == 0:
            raise ContractError(f"{name}: expected shape [{count or 'anchors'}, {last}], got {list(array.shape)}")
    if logits.ndim != 2 or len(logits) != count or logits.shape[1] < least:
        raise ContractError(
            f"logits: expected shape [{count}, at least {least}] for {activation}, got {list(logits.shape)}"
        )
    for name, array in (("offsets", offsets), ("logits", logits)):
        if math.isfinite(np.vdot(array, array)):  # one fast pass; squares may overflow, so infinity proves nothing
            continue
        broken = array.size - np.count_nonzero(np.isfinite(array))
        if broken:
            raise ContractError(f"{broken} of {array.size} {name} are not finite; the network or its input is broken")


def class_columns(classes: Iterable[int] | None, class_count: int) -> NDArray[np.int64] | None:
    """The wanted classes in rising order, each once; None for all.

    Raises:
        ContractError: a class outside 0 … class_count − 1.
    """
    if classes is None:
        return None
    wanted = sorted(set(classes))
    unknown = [c for c in wanted if not 0 <= c < class_count]
    if unknown:
        raise ContractError(f"classes {unknown} do not exist; expected 0 to {class_count - 1}")
    return np.asarray(wanted, dtype=np.int64)


def _candidates(
    logits: NDArray[np.float32], columns: NDArray[np.int64] | None, spec: PostprocessSpec
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores above the threshold, and for each its place in the flattened [anchors, classes] matrix, rising."""
    find = _softmax_scores if spec.activation == "softmax" else _sigmoid_scores
    # The threshold in float32, the type of the scores, so that "above" means the same in every implementation.
    threshold = float(np.float32(spec.score_threshold))
    return find(logits, columns, threshold)


def _sigmoid_scores(
    logits: NDArray[np.float32], columns: NDArray[np.int64] | None, threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    class_count = logits.shape[1]
    values = logits if columns is None else logits[:, columns]
    # A little below the threshold's logit, to spare the exponential of nearly all; the score itself decides.
    low = threshold * (1 - _SCORE_SLACK)
    least = np.float32(math.log(low) - math.log1p(-low)) if low > 0 else np.float32(-np.inf)
    values_flat = values.ravel()
    flat = (values_flat > least).nonzero()[0]
    scores = np.reciprocal(1 + np.exp(-np.maximum(values_flat[flat], _LEAST_LOGIT)))
    above = scores > threshold
    if columns is None:
        return scores[above], flat[above]
    anchor, column = np.divmod(flat[above], max(1, len(columns)))
    return scores[above], anchor * class_count + columns[column]


def _softmax_scores(
    logits: NDArray[np.float32], columns: NDArray[np.int64] | None, threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    class_count = logits.shape[1] - 1
    values = logits[:, 1:] if columns is None else logits[:, columns + 1]
    # A score is at most exp(its logit - the background's), so most anchors of most pictures need no exponential.
    low = threshold * (1 - _SCORE_SLACK)
    possible = logits[:, 0] + np.float32(math.log(low) if low > 0 else -np.inf)
    rows = np.flatnonzero(values.max(axis=1, initial=-np.inf) > possible)
    with np.errstate(under="ignore"):
        exponentials = np.exp(logits[rows] - logits[rows].max(axis=1, keepdims=True))
    scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    scores = scores[:, 1:] if columns is None else scores[:, columns + 1]
    above = scores > threshold
    row, column = np.nonzero(above)
    return scores[above], rows[row] * class_count + (column if columns is None else columns[column])


def _best_first(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the `count` highest scores, falling; equal scores by lower index."""
    if count >= scores.size:
        return np.argsort(-scores, kind="stable")
    bar = np.partition(scores, scores.size - count)[scores.size - count]
    above = np.flatnonzero(scores > bar)
    level = np.flatnonzero(scores == bar)[: count - above.size]
    best = np.concatenate([above, level])
    return best[np.argsort(-scores[best], kind="stable")]


def _rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier entries have the same label."""
    by_class = np.argsort(labels, kind="stable")
    grouped = labels[by_class]
    rank = np.empty_like(labels)
    rank[by_class] = np.arange(labels.size) - np.searchsorted(grouped, grouped, side="left")
    return rank


def _corners(boxes_cxcywh: FloatArray) -> FloatArray:
    centre, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)
