"""The one result type, for predictions and for ground truth."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multibox.errors import ContractError
from multibox.spec.classes import ClassMap
from multibox.spec.converters import RESERVED, Converters, Detection

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Detection", "Detections"]

JPEG_QUALITY = 92  # thin coloured lines smear visibly at Pillow's own 75


@dataclass(frozen=True, eq=False)
class Detections(Converters):
    """The objects of one picture. Immutable; arrays are copied and set read-only on construction.

    Args:
        boxes_xyxy: [N, 4] float32, corners (x1, y1, x2, y2) in pixels of the upright (EXIF-applied) picture.
        labels: [N] int64, indexes 0 … C−1 into `class_map`.
        scores: [N] float32 in [0, 1], or None for ground truth.
        class_map: the classes that labels refer to.
        picture_size_hw: (height, width) of the upright picture.
        path: the name of the picture, as given.
        source: what `plot` reads again when it is given no picture (a path, or the object the caller passed in).
        columns: more about every object, by name (`track_id` …): arrays [N, …] of numbers, truth values or texts. They
            go wherever their objects go: into every selection and every format that has room for them.

    Raises:
        ContractError: shapes, ranges or values that break the above; the message shows expected and actual.
    """

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32] | None
    class_map: ClassMap
    picture_size_hw: tuple[int, int]
    path: str | None = None
    source: Any = field(default=None, repr=False)
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        boxes = _frozen(self.boxes_xyxy, np.float32, "boxes_xyxy")
        if boxes.shape == (0,):  # an empty list knows no second dimension
            boxes = _frozen(np.zeros((0, 4)), np.float32, "boxes_xyxy")
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ContractError(f"boxes_xyxy must be [N, 4], got {list(boxes.shape)}")
        ordered = boxes[:, :2] <= boxes[:, 2:]
        if not _all(ordered):
            bad = np.flatnonzero(~ordered.all(axis=1))[0]
            raise ContractError(f"box {bad} is not (x1 ≤ x2, y1 ≤ y2): {boxes[bad].tolist()}")
        labels = _frozen(self.labels, np.int64, "labels")
        scores = None if self.scores is None else _frozen(self.scores, np.float32, "scores")
        for name, values in (("labels", labels), ("scores", scores)):
            if values is not None and values.shape != (len(boxes),):
                raise ContractError(f"{name} must be [{len(boxes)}] like boxes_xyxy, got {list(values.shape)}")
        if not _all((labels >= 0) & (labels < len(self.class_map))):
            raise ContractError(f"labels must be in 0…{len(self.class_map) - 1}, got {labels.min()}…{labels.max()}")
        if scores is not None and not _all((scores >= 0) & (scores <= 1)):
            raise ContractError(f"scores must be in [0, 1], got {scores.min()}…{scores.max()}")
        try:
            height, width = (operator.index(side) for side in self.picture_size_hw)
        except (TypeError, ValueError):
            height = width = 0
        if height < 1 or width < 1:
            raise ContractError(f"picture_size_hw must be positive (height, width), got {self.picture_size_hw}")
        columns = MappingProxyType({name: _column(name, values, len(boxes)) for name, values in self.columns.items()})
        for name, value in (("boxes_xyxy", boxes), ("labels", labels), ("scores", scores), ("columns", columns)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "picture_size_hw", (height, width))

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew in another process, where it is checked and immutable again."""
        values = [getattr(self, item.name) for item in fields(self)]
        return type(self), (*values[:-1], dict(self.columns))

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detection]:
        for i in range(len(self)):
            yield self._row(i)

    def __getitem__(self, index: int | slice | ArrayLike) -> Detections:
        """A subset, by slice, integer, index array or boolean mask; always a `Detections`."""
        picked: Any = index if isinstance(index, slice) else np.atleast_1d(np.asarray(index))
        if isinstance(index, list | tuple) and not index:
            picked = np.zeros(0, np.intp)
        if isinstance(picked, np.ndarray) and picked.dtype == bool and picked.shape != (len(self),):
            raise IndexError(f"a mask for these detections must be [{len(self)}], got {list(picked.shape)}")
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[picked],
            labels=self.labels[picked],
            scores=None if self.scores is None else self.scores[picked],
            columns={name: values[picked] for name, values in self.columns.items()},
        )

    def __eq__(self, other: object) -> bool:
        """Same objects and columns in the same order, classes and picture size; path and source do not count."""
        if not isinstance(other, Detections):
            return NotImplemented
        mine, theirs = dict(self.columns), dict(other.columns)
        mine |= {} if self.scores is None else {"scores": self.scores}
        theirs |= {} if other.scores is None else {"scores": other.scores}
        # Without objects there is nothing to have or not to have.
        same_columns = len(self) == len(other) == 0 or (
            mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)
        )
        return (
            same_columns
            and np.array_equal(self.boxes_xyxy, other.boxes_xyxy)
            and np.array_equal(self.labels, other.labels)
            and self.class_map == other.class_map
            and self.picture_size_hw == other.picture_size_hw
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """One line: the classes found and how many of each, most frequent first."""
        counts = sorted(((self.names.count(name), name) for name in set(self.names)), key=lambda p: (-p[0], p[1]))
        found = ", ".join(f"{count} {name}" for count, name in counts) or "nothing found"
        height, width = self.picture_size_hw
        return f"{self.path or 'picture'} ({width}×{height}): {found}"

    @property
    def names(self) -> list[str]:
        """Class name of every object."""
        return [self.class_map.names[label] for label in self.labels]

    @classmethod
    def empty(cls, class_map: ClassMap, picture_size_hw: tuple[int, int], *, path: str | None = None) -> Detections:
        """No objects."""
        none = np.zeros(0)
        return cls(np.zeros((0, 4), np.float32), none, none, class_map, picture_size_hw, path)  # type: ignore[arg-type]

    def above(self, score: float) -> Detections:
        """Only the objects with a score of at least `score`."""
        return self[self._scores_or_ones() >= np.float32(score)]

    def of_classes(self, wanted: Iterable[str | int]) -> Detections:
        """Only the objects of the given classes (names or indexes)."""
        return self[np.isin(self.labels, self.class_map.select(wanted))]

    def with_columns(self, **columns: ArrayLike) -> Detections:
        """The same objects with more columns, or others of the same name."""
        return replace(self, columns={**self.columns, **{name: np.asarray(values) for name, values in columns.items()}})

    def _row(self, i: int) -> Detection:
        x1, y1, x2, y2 = (float(v) for v in self.boxes_xyxy[i])
        score = None if self.scores is None else float(self.scores[i])
        columns = {name: values[i].tolist() for name, values in self.columns.items()}
        return Detection(self.class_map.names[self.labels[i]], int(self.labels[i]), score, (x1, y1, x2, y2), columns)

    def _scores_or_ones(self) -> NDArray[np.float32]:
        return np.ones(len(self), np.float32) if self.scores is None else self.scores

    def plot(self, picture: Any = None, *, line_width: int | None = None) -> Image:
        """The picture with its boxes drawn, as a PIL image.

        Args:
            picture: anything `multibox.pictures.read.read_picture` takes; without it the original source is read again.
            line_width: pixels; chosen from the picture's size when left out.

        Raises:
            ContractError: no picture is known, or it has another size than the detections.
        """
        from multibox.pictures.draw import draw_boxes
        from multibox.pictures.read import read_picture

        source = self.source if picture is None else picture
        if source is None:
            raise ContractError("these detections do not know their picture; pass it: plot(picture)")
        rgb = read_picture(source)
        if rgb.shape[:2] != self.picture_size_hw:
            raise ContractError(f"picture (h, w) {rgb.shape[:2]} is not the detections' {self.picture_size_hw}")
        order = np.argsort(self._scores_or_ones(), kind="stable")
        rows = [self._row(i) for i in order]
        captions = [row.name if row.score is None else f"{row.name} {row.score:.2f}" for row in rows]
        return draw_boxes(rgb, self.boxes_xyxy[order], captions, [row.label for row in rows], line_width=line_width)

    def save(self, path: str | Path, picture: Any = None) -> Path:
        """Draw the boxes and write the picture; the suffix chooses the format.

        Raises:
            ContractError: as `plot`, or no picture format is known by the suffix.
        """
        target = Path(path)
        format = _picture_format(target)
        drawn = self.plot(picture)
        target.parent.mkdir(parents=True, exist_ok=True)
        if format == "JPEG":
            drawn.save(target, format, quality=JPEG_QUALITY)
        else:
            drawn.save(target, format)
        return target


def _picture_format(path: Path) -> str:
    """Pillow's name of the format that a suffix stands for."""
    from PIL import Image

    suffix = path.suffix.lower()
    Image.preinit()
    if suffix not in Image.EXTENSION:
        Image.init()  # the rarer formats: loading them takes longer than detecting does
    format = Image.EXTENSION.get(suffix, "")
    if format not in Image.SAVE:
        raise ContractError(f"{path}: cannot write pictures of type {suffix or '(none)'}; use .png or .jpg")
    return format


def _all(holds: NDArray[np.bool_]) -> bool:
    """`holds.all()`; counting takes a fraction of the time of a reduction, which on few values is mostly its start."""
    return bool(np.count_nonzero(holds) == holds.size)


def _column(name: str, values: ArrayLike, count: int) -> NDArray[Any]:
    """A read-only copy of an extra column [count, …], with its own type."""
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
        raise ContractError(
            f"a column cannot be called {name!r}; use letters, digits and _, and not {sorted(RESERVED)}"
        )
    try:
        array = np.array(values)
    except (TypeError, ValueError) as error:
        raise ContractError(f"column {name!r} must be an array ({error})") from None
    if array.dtype.kind not in "biufU":
        raise ContractError(f"column {name!r} must hold numbers, truth values or texts, got {array.dtype}")
    if array.ndim < 1 or len(array) != count:
        raise ContractError(f"column {name!r} must be [{count}, …] like boxes_xyxy, got {list(array.shape)}")
    array.flags.writeable = False
    return array


def _frozen(values: ArrayLike, dtype: Any, name: str) -> NDArray[Any]:
    """A read-only copy. Only numbers are taken, and for integers only whole ones: nothing is parsed or cut off."""
    try:
        given = np.asarray(values)
    except (TypeError, ValueError) as error:  # ragged lists, tensors on another device
        raise ContractError(f"{name} must be an array of numbers ({error})") from None
    if given.dtype.kind not in "iuf":
        raise ContractError(f"{name} must be numbers, got {given.dtype}")
    if given.dtype == dtype:
        array = given.copy(order="K")
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            array = given.astype(dtype)
    if array.dtype.kind == "i" and given.dtype != dtype and not (array == given).all():
        raise ContractError(f"{name} must be whole numbers, got {given[array != given].ravel()[0]}")
    if array.dtype.kind == "f" and not _all(np.isfinite(array)):
        raise ContractError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} values that are not")
    array.flags.writeable = False
    return array
