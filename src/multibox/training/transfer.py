"""The detector a run starts from: a model file with its class head refitted to other classes, or a builder at random.

Nothing happens silently: `Start.table` says of every part of the network whether it was loaded, carried over by class
name, initialised, or left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multibox.errors import OptionError
from multibox.evaluation import map_classes
from multibox.models.network import DetectionNetwork
from multibox.models.registry import arguments_of, create_model
from multibox.spec.anchors import AnchorSpec
from multibox.spec.classes import ClassMap
from multibox.spec.preprocess import Preprocess
from multibox.weights.foreign.trunks import read_trunk
from multibox.weights.opening import is_builder, open_model

__all__ = ["Part", "Start", "start_from"]


TRUNK_ARGUMENTS = ("trunk_norm",)
"""Arguments of builders that decide which layers the trunk has."""
NEW = ("extras.", "conv4_3_norm.", "conv5_3_norm.", "to_fc7.1.")
"""Layers of a feature network that a backbone need not have: extra levels, and what detectors alone have."""
COUNTER = "num_batches_tracked"  # which old files of weights do not have


class Part(NamedTuple):
    """What became of one part of the network."""

    part: str
    tensors: int
    values: int
    fate: str


@dataclass(frozen=True)
class Start:
    """A detector to train.

    Attributes:
        detector: with its classes, default boxes and input size in its `spec`.
        table: what was loaded, carried, initialised, left.
        carried: class names whose rows of the head come from the source.
        source: the model it started from, and its licence, for the card.
        licence: SPDX expression of the source's weights, or "".
        trained_backbone: whether the backbone has learnt before.
    """

    detector: DetectionNetwork
    table: tuple[Part, ...]
    carried: tuple[str, ...]
    source: str
    licence: str
    trained_backbone: bool = True


def start_from(
    model: str,
    class_map: ClassMap,
    *,
    size_hw: tuple[int, int] | None = None,
    anchors: AnchorSpec | None = None,
    builder_arguments: Mapping[str, Any] | None = None,
    backbone: str = "",
) -> Start:
    """Build the detector a run starts from.

    Args:
        model: what `multibox.weights.opening.open_model` opens.
        class_map: the classes to learn.
        size_hw: input (height, width) in place of the model's.
        anchors: default boxes in place of the model's, with as many at a cell of each level.
        builder_arguments: what a builder is given besides.
        backbone: a model whose backbone a builder's starts from, by layer names and shapes; pictures are then prepared
            as that model wants them.

    Raises:
        OptionError: an argument that the model does not take, default boxes that its heads have no outputs for, or a
            backbone that is another network's or for a model that has weights.
        ModelFileError: no such model, or a model file that cannot be used.
    """
    carried: tuple[str, ...] = ()
    if is_builder(model):
        extra = dict(builder_arguments or {})
        donor = _donor(backbone) if backbone else None
        if donor is not None:
            extra = {**{key: value for key, value in donor.arguments.items() if key in arguments_of(model)}, **extra}
        detector, card = open_model(model, seed=None, size_hw=size_hw, num_classes=len(class_map), **extra)
        table = [Part(name, *_count(part), "initialised") for name, part in _parts(detector)]
        source, licence = f"{model}, random weights", card.licence
        if donor is not None:
            table[:1] = donor.give(detector)
            source, licence = f"{model} on the backbone of {donor.name}", donor.licence
    else:
        if backbone:
            raise OptionError(f"{model} has a backbone of its own; leave backbone={backbone} out, or name a builder")
        old, card = open_model(model, size_hw=size_hw, **builder_arguments or {})
        detector = create_model(card.builder, **{**card.arguments, "num_classes": len(class_map)})
        detector.spec = replace(old.spec, num_classes=len(class_map))
        table, carried = _transfer(old, detector, card.class_map, class_map)
        source, licence = card.name, card.licence
    if anchors is not None:
        wanted, given = detector.spec.anchors.boxes_per_cell, anchors.boxes_per_cell
        if wanted != given:
            raise OptionError(f"default boxes per cell {given} for heads with {wanted}; fit them to this model")
        detector.spec = replace(detector.spec, anchors=anchors)
    trained = bool(backbone) or not is_builder(model)
    return Start(detector, tuple(table), carried, source, licence, trained_backbone=trained)


@dataclass(frozen=True)
class _Donor:
    """Weights for a backbone: their names are those of a feature network's layers."""

    tensors: Mapping[str, Tensor]
    preprocess: Preprocess
    name: str
    licence: str
    arguments: Mapping[str, Any]

    def give(self, detector: DetectionNetwork) -> list[Part]:
        """Copy every layer of the same name, and the preparation of pictures; what became of the backbone.

        Raises:
            OptionError: layers of the trunk that differ or do not exist.
        """
        mine = detector.features.state_dict()
        fitting = {k: v for k, v in self.tensors.items() if k in mine and mine[k].shape == v.shape}
        wrong = [key for key in mine if key not in fitting and not key.startswith(NEW) and not key.endswith(COUNTER)]
        if wrong:
            raise OptionError(f"backbone={self.name}: its layers are not those of {detector.builder} ({wrong[0]})")
        detector.features.load_state_dict({**mine, **fitting})
        size_hw = detector.spec.preprocess.size_hw
        detector.spec = replace(detector.spec, preprocess=replace(self.preprocess, size_hw=size_hw))
        parts = [Part("backbone", len(fitting), sum(v.numel() for v in fitting.values()), f"from {self.name}")]
        new = [key for key in mine if key not in fitting]
        if new:
            layers = list(dict.fromkeys(key.rpartition(".")[0] for key in new))
            fate = f"initialised: {', '.join(layers[:3])}{' …' if len(layers) > 3 else ''}"
            parts.append(Part("backbone", len(new), sum(mine[key].numel() for key in new), fate))
        return parts


def _donor(backbone: str) -> _Donor:
    trunk = read_trunk(backbone)
    if trunk is not None:
        return _Donor(trunk.tensors, trunk.preprocess, trunk.name, trunk.licence, {})
    network, card = open_model(backbone)
    arguments = {key: value for key, value in card.arguments.items() if key in TRUNK_ARGUMENTS}
    return _Donor(network.features.state_dict(), card.preprocess, card.name, card.licence, arguments)


def _transfer(
    old: DetectionNetwork, new: DetectionNetwork, old_classes: ClassMap, new_classes: ClassMap
) -> tuple[list[Part], tuple[str, ...]]:
    """Copy what fits, by class name where the class head is concerned."""
    if old_classes.names == new_classes.names:
        new.load_state_dict(old.state_dict())
        return [Part(name, *_count(part), "loaded") for name, part in _parts(new)], new_classes.names
    targets = map_classes(old_classes, new_classes, strict=False).targets
    rows = {goal: row for row, goal in enumerate(targets) if goal is not None}
    final = {id(p) for layer in _class_layers(new) for p in layer.parameters(recurse=False)}
    fresh = {key for key, value in new.named_parameters() if id(value) in final}
    state = {key: value for key, value in old.state_dict().items() if key not in fresh}
    new.load_state_dict({**{key: new.state_dict()[key] for key in fresh}, **state})
    background = new.spec.outputs_per_box - len(new_classes)  # the first row under softmax
    shifted = {0: 0} if background else {}
    shifted |= {goal + background: row + background for goal, row in rows.items()}
    for before, after in zip(_class_layers(old), _class_layers(new), strict=True):
        _carry(before, after, shifted, old.spec.outputs_per_box, new.spec.outputs_per_box)
    carried = tuple(name for i, name in enumerate(new_classes.names) if i in rows)
    table = [Part(name, *_count(part, without=final), "loaded") for name, part in _parts(new)]
    layers = _class_layers(new)
    per_class = sum(layer.weight.numel() + layer.out_channels for layer in layers) // new.spec.outputs_per_box
    for count, fate in (
        (background, "loaded (background)"),
        (len(carried), "carried by class name: " + ", ".join(carried)),
        (
            len(new_classes) - len(carried),
            "initialised: " + ", ".join(n for n in new_classes.names if n not in carried),
        ),
        (len(old_classes) - len(rows), "left behind: classes that the data has not"),
    ):
        if count:
            table.append(Part(f"{count} rows of the class head", 2 * len(layers), count * per_class, fate))
    return table, carried


def _carry(before: nn.Conv2d, after: nn.Conv2d, rows: dict[int, int], old_width: int, new_width: int) -> None:
    """Copy rows of a box-major class layer: `rows` maps a row of a box's `new_width` to one of its `old_width`."""
    with torch.no_grad():
        for name in ("weight", "bias"):
            source: Tensor = getattr(before, name)
            goal: Tensor = getattr(after, name)
            source_rows = source.view(-1, old_width, *source.shape[1:])
            goal_rows = goal.view(-1, new_width, *goal.shape[1:])
            for new_row, old_row in rows.items():
                goal_rows[:, new_row] = source_rows[:, old_row]


def _class_layers(detector: DetectionNetwork) -> list[nn.Conv2d]:
    """The last layer of every class branch that tells the classes of the network; a gating head has one of its own."""
    heads = zip(detector.heads, detector.spec.stages, strict=True)
    return [layer for head, stage in heads if stage.num_classes is None for layer in head.class_layers()]  # type: ignore[operator]


def _parts(detector: DetectionNetwork) -> Iterator[tuple[str, nn.Module]]:
    yield "backbone and extra levels", detector.features
    if detector.neck is not None:
        yield "neck", detector.neck
    yield "heads", detector.heads


def _count(part: nn.Module, *, without: set[int] = frozenset()) -> tuple[int, int]:  # type: ignore[assignment]
    kept = [p for p in part.parameters() if id(p) not in without]
    return len(kept), sum(p.numel() for p in kept)
