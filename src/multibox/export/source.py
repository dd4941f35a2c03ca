"""What is exported: a shipped model, a weights file, or a network to be built, at the input size that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from multibox.catalogue import CATALOGUE, resolve_model
from multibox.errors import OptionError, did_you_mean
from multibox.models.network import DetectionNetwork
from multibox.models.registry import create_model, list_models
from multibox.spec.card import ModelCard
from multibox.spec.classes import ClassMap
from multibox.weights.store import load_detector, make_card

__all__ = ["open_source", "resized"]

SEED = 0  # of the random weights of a network that is named by its builder


def open_source(model: str | Path, *, size_hw: tuple[int, int] | None = None) -> tuple[DetectionNetwork, ModelCard]:
    """A detector in evaluation mode with its card.

    Args:
        model: a shipped model's name, a `.safetensors` file, or a builder's name (which gives random weights).
        size_hw: input (height, width); the model's own when left out.

    Raises:
        ModelFileError: no such file, or not one of ours.
        OptionError: neither a model nor a builder, or a builder without an input size to choose.
    """
    text, path = str(model), Path(model)
    builders = list_models()
    if text in builders and not path.is_file():
        torch.manual_seed(SEED)
        detector = create_model(text, **({} if size_hw is None else {"size_hw": list(size_hw)})).eval()
        names = ClassMap(tuple(f"class {i}" for i in range(detector.spec.num_classes)))
        return detector, make_card(detector, names, name=text, source="random weights")
    if text not in CATALOGUE and not path.suffix and len(path.parts) == 1 and not path.exists():
        hint = did_you_mean(text, {*builders, *CATALOGUE})
        remedy = hint if hint.endswith("?") else f"{hint}; or give the path of a .safetensors file"
        raise OptionError(f"unknown model {text!r}; {remedy}")
    detector, card = load_detector(resolve_model(model, suffixes=(".safetensors",)))
    if size_hw is None or size_hw == card.preprocess.size_hw:
        return detector, card
    return resized(detector, card, size_hw)


def resized(
    detector: DetectionNetwork, card: ModelCard, size_hw: tuple[int, int]
) -> tuple[DetectionNetwork, ModelCard]:
    """The same weights for another input size; default boxes follow, and measured results are dropped.

    Raises:
        OptionError: the network's builder has no `size_hw`.
        ContractError: too small for the network.
    """
    again = create_model(card.builder, **{**card.arguments, "size_hw": list(size_hw)})
    again.load_state_dict(detector.state_dict())
    again.spec = replace(
        again.spec,
        anchors=card.anchors,
        preprocess=replace(card.preprocess, size_hw=size_hw),
        postprocess=card.postprocess,
        variances=card.variances,
    )
    again.eval()
    made = make_card(
        again, card.class_map, name=card.name, licence=card.licence, source=card.source, training=card.training
    )
    return again, made
