"""Run a detector over a data set and lay truth and predictions side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from multibox.data import Dataset, ImageRecord
from multibox.errors import ClassMapError, ContractError, ImageError, counted
from multibox.evaluation.mapping import ClassMapping, map_classes
from multibox.evaluation.records import EvaluationSet, Truth
from multibox.inference.predictor import Predictor
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections
from multibox.spec.options import PictureOptions

__all__ = ["EVALUATION_MAX_DET", "EVALUATION_THRESHOLD", "Share", "Validation", "validate", "validate_shared"]

EVALUATION_THRESHOLD = 0.01  # scores an evaluation keeps (paper section 3.1)
EVALUATION_MAX_DET = 100  # COCO's limit of detections in a picture

Progress = Callable[[range], Iterable[int]]


@dataclass(frozen=True)
class Validation:
    """What came of a model on a data set.

    Attributes:
        data: truth and predictions in the classes that both know; what the metrics read.
        mapping: how the model's classes were found among the data set's.
        problems: pictures that could not be read; they are in no number.
        notes: everything else that was not as declared, a sentence each.
        settings: thresholds the predictions were made with.
        seconds: time of the predictions, decoding included.
    """

    data: EvaluationSet
    mapping: ClassMapping
    problems: tuple[ImageError, ...]
    notes: tuple[str, ...]
    settings: dict[str, Any]
    seconds: float


class Share(Protocol):
    """One process among those that divide the pictures of a data set."""

    @property
    def rank(self) -> int:
        """0 … world − 1; process 0 has the result."""
        ...

    @property
    def world(self) -> int:
        """How many there are."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in all of them, in the order of ranks."""
        ...


@dataclass(frozen=True)
class _Alone:
    rank: int = 0
    world: int = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


def validate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    conf: float = EVALUATION_THRESHOLD,
    iou: float | None = None,
    max_det: int = EVALUATION_MAX_DET,
    agnostic_nms: bool = False,
    classes: Iterable[str | int] | None = None,
    aliases: Mapping[str, str | None] | None = None,
    progress: Progress = iter,
    name: str = "",
) -> Validation:
    """Predict every picture of a data set.

    Classes are matched by name, with the explicit alias table of `multibox.evaluation`. Only classes that both sides
    know take part: the model's others are not predicted at all, the data set's others are left out of truth and
    means, and both are said in `notes`.

    Args:
        predictor: a `Detector` with any engine, or whatever else predicts.
        dataset: from `multibox.data.read_dataset`.
        conf: scores above it are kept.
        iou: of non-maximum suppression; the model's own when left out.
        max_det: most detections in a picture, over the classes that take part.
        agnostic_nms: as in `Detector.stream`.
        classes: of the data set, names or indexes; all when left out.
        aliases: data set class (None: nowhere) for a model class, where names alone do not settle it.
        progress: wraps the range of this process's pictures, for a progress bar.
        name: what is evaluated on what, for titles.

    Raises:
        ClassMapError: no class in common.
        ContractError: no picture that can be read.
    """
    asked = PictureOptions(conf=conf, iou=iou, max_det=max_det, agnostic_nms=agnostic_nms)
    result = validate_shared(
        predictor, dataset, asked, _Alone(), classes=classes, aliases=aliases, progress=progress, name=name
    )
    assert result is not None
    if not len(result.data):
        raise ContractError(f"none of the {len(dataset)} pictures of {name or 'the data set'} can be read")
    return result


def validate_shared(
    predictor: Predictor,
    dataset: Dataset,
    options: PictureOptions,
    share: Share,
    *,
    classes: Iterable[str | int] | None = None,
    aliases: Mapping[str, str | None] | None = None,
    progress: Progress = iter,
    name: str = "",
) -> Validation | None:
    """As `validate`, by several processes that each predict a part of the pictures; None but in process 0.

    Args:
        predictor: of this process; the others have the same model.
        dataset: whole, in every process.
        options: asked of every picture; its classes are chosen here.
        share: this process among the others.
        classes: as in `validate`, and so
        aliases: ,
        progress: and
        name: are.
    """
    if not len(dataset):
        raise ContractError("the data set has no pictures; check its path and split")
    shared = _shared_classes(predictor.card.class_map, dataset.class_map, classes, aliases)
    mapping = map_classes(predictor.card.class_map, shared, aliases=_within(aliases, shared))
    places = [place for place, goal in enumerate(mapping.targets) if goal is not None]
    everywhere = len(places) == len(mapping.targets)
    started = time.perf_counter()
    numbers = range(share.rank, len(dataset), share.world)
    outcomes = predictor.outcomes(
        [dataset.picture_path(number) for number in numbers],
        replace(options, classes=None if everywhere else tuple(places)),
    )
    found: list[tuple[int, Detections | ImageError]] = []
    for number, outcome in zip(progress(numbers), outcomes, strict=True):
        if isinstance(outcome, Detections):  # without the pixels, which would pile up
            mapped, _ = mapping.apply(outcome)
            outcome = replace(mapped, path=str(dataset.picture_path(number)), source=None)
        found.append((number, outcome))
    everything = sorted((row for part in share.gather(found) for row in part), key=lambda row: row[0])
    if share.rank:
        return None
    seconds = time.perf_counter() - started
    return _settled(everything, dataset, shared, mapping, _settings(predictor, options), seconds, name)


def _settings(predictor: Predictor, options: PictureOptions) -> dict[str, Any]:
    return {
        "conf": options.conf,
        "iou": predictor.card.postprocess.nms_iou if options.iou is None else options.iou,
        "max_det": options.max_det,
        "agnostic_nms": options.agnostic_nms,
        **predictor.runs_on,
    }


def _settled(
    found: list[tuple[int, Detections | ImageError]],
    dataset: Dataset,
    shared: ClassMap,
    mapping: ClassMapping,
    settings: dict[str, Any],
    seconds: float,
    name: str,
) -> Validation:
    """Truth beside the predictions of every picture that could be read."""
    image_id, renumbered = _image_ids(dataset)
    new_label = np.full(len(dataset.class_map), -1)
    new_label[[dataset.class_map.index(n) for n in shared.names]] = np.arange(len(shared))
    counts = {"unknown classes": 0, "swapped corners": 0, "other sizes": 0}
    problems = tuple(outcome for _, outcome in found if isinstance(outcome, ImageError))
    predictions = {number: outcome for number, outcome in found if isinstance(outcome, Detections)}
    truths = [
        _truth(dataset[number], seen, shared, new_label, counts, image_id=image_id[number])
        for number, seen in predictions.items()
    ]
    notes = (*renumbered, *_notes(mapping, dataset, shared, counts))
    data = EvaluationSet(shared, truths, [replace(seen, class_map=shared) for seen in predictions.values()], name)
    return Validation(data, mapping, problems, notes, settings, seconds)


def _within(aliases: Mapping[str, str | None] | None, data: ClassMap) -> dict[str, str | None]:
    """The aliases with those that lead out of some classes leading nowhere."""
    return {model: goal if goal in data.names else None for model, goal in (aliases or {}).items()}


def _shared_classes(
    model: ClassMap,
    data: ClassMap,
    classes: Iterable[str | int] | None,
    aliases: Mapping[str, str | None] | None,
) -> ClassMap:
    """The data set's classes that the model knows (and that were asked for), in the data set's order."""
    asked = range(len(data)) if classes is None else sorted(data.select(classes))
    wanted = ClassMap(tuple(data.names[i] for i in asked), tuple(data.ids[i] for i in asked))
    for goal in (aliases or {}).values():
        if goal is not None:
            data.index(goal)
    reached = {
        goal for goal in map_classes(model, wanted, aliases=_within(aliases, wanted)).targets if goal is not None
    }
    shared = sorted(asked[goal] for goal in reached)
    if not shared:
        raise ClassMapError(
            f"no class in common: the model knows {', '.join(model.names[:8])}…, the data set "
            f"{', '.join(data.names[:8])}…; rename the data set's classes, or train on them"
        )
    return ClassMap(tuple(data.names[i] for i in shared), tuple(data.ids[i] for i in shared))


def _truth(
    record: ImageRecord,
    found: Detections,
    classes: ClassMap,
    new_label: np.ndarray[Any, np.dtype[np.int64]],
    counts: dict[str, int],
    *,
    image_id: int | str,
) -> Truth:
    """The record's objects in the shared classes, in the frame of the picture as it was read."""
    labels = new_label[record.labels]
    ordered = (record.boxes_xyxy[:, :2] <= record.boxes_xyxy[:, 2:]).all(axis=1)
    counts["unknown classes"] += int((labels < 0).sum())
    counts["swapped corners"] += int((~ordered).sum())
    counts["other sizes"] += record.size_hw is not None and tuple(record.size_hw) != found.picture_size_hw
    keep = (labels >= 0) & ordered
    objects = Detections(record.boxes_xyxy[keep], labels[keep], None, classes, found.picture_size_hw, found.path)
    return Truth(
        objects,
        crowd=record.crowd[keep],
        difficult=record.difficult[keep],
        area=record.area[keep],
        image_id=image_id,
    )


def _image_ids(dataset: Dataset) -> tuple[list[int | str], tuple[str, ...]]:
    """An id for each picture, its own where that tells pictures apart, and what is to be said where it does not."""
    pairs = [(record.image_id, record.split) for record in (dataset[index] for index in range(len(dataset)))]
    own: list[int | str] = [image_id for image_id, _ in pairs]
    if len(set(own)) == len(own):
        return own, ()
    by_split: list[int | str] = [f"{split}/{image_id}" for image_id, split in pairs]
    repeated = "image ids occur more than once in the data set; here "
    if len(set(by_split)) == len(by_split):
        return by_split, (repeated + "they stand with their split before them",)
    return list(range(len(own))), (repeated + "pictures are numbered from 0 in the order of the data set",)


def _notes(mapping: ClassMapping, dataset: Dataset, shared: ClassMap, counts: dict[str, int]) -> tuple[str, ...]:
    data = dataset.class_map
    notes = []
    lost = dataset.findings.loss()
    if lost:
        notes.append(f"{lost} of the data set could not be read and are in no number; `multibox check` names them")
    renamed = [f"{ours} → {theirs}" for ours, theirs in mapping.mapped if ours != theirs]
    if renamed:
        notes.append(f"classes under another name: {', '.join(renamed)}")
    left_out = [name for name in data.names if name not in shared.names]
    if left_out:
        notes.append(
            f"left out of every number, {counted(len(left_out), 'class', 'classes')} of the data set with "
            f"{counted(counts['unknown classes'], 'object')}: {_short(left_out)}"
        )
    if mapping.unmapped_source:
        unused = mapping.unmapped_source
        notes.append(
            f"not in the data set and not predicted, {counted(len(unused), 'class', 'classes')} of the model: "
            f"{_short(unused)}"
        )
    if counts["swapped corners"]:
        notes.append(
            f"left out: {counted(counts['swapped corners'], 'box', 'boxes')} with swapped corners; "
            "`multibox check` names them"
        )
    if counts["other sizes"]:
        notes.append(
            f"not of the declared size: {counted(counts['other sizes'], 'picture')}, whose boxes were taken as they "
            "stand; `multibox check` names them"
        )
    return tuple(notes)


def _short(names: Iterable[str], limit: int = 8) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (", …" if len(listed) > limit else "")
