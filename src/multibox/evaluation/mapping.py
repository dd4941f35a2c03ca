"""From the classes of a model to those of a data set, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multibox.errors import ClassMapError
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections

__all__ = ["ALIASES", "ClassMapping", "map_classes"]

ALIASES: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split(", "))
    for names in (
        "airplane, aeroplane",
        "cell phone, mobile phone, cellular phone",
        "couch, sofa",
        "dining table, kitchen & dining room table",
        "donut, doughnut",
        "frisbee, flying disc",
        "hair drier, hair dryer, hairdryer, blow dryer",
        "microwave, microwave oven",
        "motorcycle, motorbike",
        "refrigerator, fridge",
        "remote, remote control",
        "skis, ski",
        "traffic light, traffic signal, stoplight",
        "tv, tvmonitor, television, tv monitor, monitor/tv",
    )
)
"""Names of one class in COCO, VOC, Open Images and other lists. Case, spaces, hyphens and underscores never matter."""


@dataclass(frozen=True)
class ClassMapping:
    """Where each class of `source` (a model) goes in `target` (a data set): an index, or None for nowhere."""

    source: ClassMap
    target: ClassMap
    targets: tuple[int | None, ...]

    @property
    def mapped(self) -> tuple[tuple[str, str], ...]:
        """(model class, data class) of each model class that has a place, in the model's order."""
        return tuple(
            (name, self.target.names[place])
            for name, place in zip(self.source.names, self.targets, strict=True)
            if place is not None
        )

    @property
    def unmapped_source(self) -> tuple[str, ...]:
        """Model classes that the data set does not have; their detections are dropped."""
        return tuple(n for n, place in zip(self.source.names, self.targets, strict=True) if place is None)

    def apply(self, detections: Detections) -> tuple[Detections, dict[str, int]]:
        """The detections in the data set's classes, and how many were dropped by model class.

        Raises:
            ClassMapError: the detections are not in the model's classes.
        """
        self.source.require_same(detections.class_map, mine="the mapping", theirs="the detections")
        lookup = np.array([-1 if place is None else place for place in self.targets], np.int64)
        labels = lookup[detections.labels]
        kept = labels >= 0
        dropped = Counter(detections.class_map.names[label] for label in detections.labels[~kept])
        result = Detections(
            detections.boxes_xyxy[kept],
            labels[kept],
            None if detections.scores is None else detections.scores[kept],
            self.target,
            detections.picture_size_hw,
            detections.path,
            detections.source,
        )
        return result, dict(dropped)


def map_classes(
    source: ClassMap, target: ClassMap, *, aliases: Mapping[str, str | None] | None = None, strict: bool = True
) -> ClassMapping:
    """Find the place of every model class among the data set's classes.

    A class goes where `aliases` says (None: nowhere), else to the class of exactly the same name, else to the one
    that `ALIASES` or another way of writing makes the same. Two model classes never end up in one data class by
    guessing: their detections would be counted as duplicates of each other, so this is refused unless `aliases` says
    so for all of them; then they are merged. Likewise where a model class fits two data classes.

    Args:
        source: the model's classes.
        target: the data set's.
        aliases: places by name, before any other rule.
        strict: refuse an ambiguity; with False, each name that takes part in one goes only to exactly the same name.

    Raises:
        ClassMapError: an ambiguity, with the way to settle it; or an unknown name in `aliases`.
    """
    chosen = dict(aliases or {})
    for name, goal in chosen.items():
        source.index(name)
        if goal is not None:
            target.index(goal)
    by_meaning: dict[str, list[str]] = {}
    for name in target.names:
        by_meaning.setdefault(_meaning(name), []).append(name)
    goals: dict[str, str | None] = {}
    for name in source.names:
        goals[name] = chosen[name] if name in chosen else _goal(name, target, by_meaning, strict)
    for goal, count in Counter(goal for goal in goals.values() if goal is not None).items():
        names = [name for name in source.names if goals[name] == goal]
        if count > 1 and not strict:
            goals.update((name, None) for name in names if name not in chosen and name != goal)
        elif count > 1 and not all(name in chosen for name in names):
            raise ClassMapError(
                f"the model classes {', '.join(map(repr, names))} all mean the data class {goal!r}; say in aliases for "
                f"each of them whether it goes there ({goal!r}) or nowhere (None)"
            )
    places = (goals[name] for name in source.names)
    return ClassMapping(source, target, tuple(None if goal is None else target.index(goal) for goal in places))


def _goal(name: str, target: ClassMap, by_meaning: Mapping[str, list[str]], strict: bool) -> str | None:
    if name in target.names:
        return name
    fitting = by_meaning.get(_meaning(name), [])
    if len(fitting) > 1 and not strict:
        return None
    if len(fitting) > 1:
        raise ClassMapError(
            f"the model class {name!r} fits the data classes {', '.join(map(repr, fitting))}; say in aliases which"
        )
    return fitting[0] if fitting else None


def _plain(name: str) -> str:
    """Letters, digits and signs that carry meaning, without case and without what only separates words."""
    return "".join(char for char in name.casefold() if not char.isspace() and char not in "-_.'")


_MEANINGS = {_plain(name): min(group) for group in ALIASES for name in group}


def _meaning(name: str) -> str:
    """One word for all names of a class."""
    plain = _plain(name)
    return _MEANINGS.get(plain, plain)
