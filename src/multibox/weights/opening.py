"""Opening a network by name: shipped models, our own files, foreign weights, and networks that are built anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from multibox.catalogue import CATALOGUE, resolve_model
from multibox.errors import OptionError
from multibox.models.network import DetectionNetwork
from multibox.models.registry import create_model, list_models
from multibox.spec.card import ModelCard
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.table import recognised
from multibox.weights.store import load_detector, make_card

__all__ = ["is_builder", "open_model"]

NATIVE = ".safetensors"
SEED = 0  # of the random weights of a network that is named by its builder


def is_builder(name_or_path: str | Path) -> bool:
    """Whether a network is built anew under this name; a file of the same name goes before."""
    return str(name_or_path) in list_models() and not Path(name_or_path).is_file()


def open_model(
    name_or_path: str | Path,
    *,
    seed: int | None = SEED,
    size_hw: Sequence[int] | None = None,
    **builder_arguments: Any,
) -> tuple[DetectionNetwork, ModelCard]:
    """A network in evaluation mode with its card.

    Args:
        name_or_path: a shipped model's name, a `.safetensors` file, a file or folder of foreign weights that an
            importer recognises, or a builder's name (see `multibox list`), whose weights are random.
        seed: of random weights; None draws them from torch's own generator.
        size_hw: input (height, width) in place of the model's or the builder's own.
        builder_arguments: of a builder, JSON values; they are kept in the card. A model with weights takes none.

    Raises:
        ModelFileError: no such model or file, or one that cannot be read.
        OptionError: an argument that the builder or the model does not take.
        ContractError: foreign weights that do not fit, or an input too small for the network.
    """
    if is_builder(name_or_path):
        size = {} if size_hw is None else {"size_hw": list(size_hw)}
        return _built(str(name_or_path), seed, {**builder_arguments, **size})
    network, card = _with_weights(name_or_path)
    if builder_arguments:
        given = ", ".join(builder_arguments)
        raise OptionError(
            f"{name_or_path} has weights, which settle {given}; leave that out, or name a network to be built "
            "(see `multibox list`)"
        )
    if size_hw is None or tuple(size_hw) == card.preprocess.size_hw:
        return network, card
    return _resized(network, card, (int(size_hw[0]), int(size_hw[1])))


def _built(builder: str, seed: int | None, arguments: dict[str, Any]) -> tuple[DetectionNetwork, ModelCard]:
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = create_model(builder, **arguments).eval()
    names = ClassMap(tuple(f"class {i}" for i in range(network.spec.num_classes)))
    return network, make_card(network, names, name=builder, source="random weights")


def _with_weights(name_or_path: str | Path) -> tuple[DetectionNetwork, ModelCard]:
    path = Path(name_or_path).expanduser()
    native = path.suffix.lower() in (NATIVE, ".onnx") or str(name_or_path) in CATALOGUE
    found = recognised(path) if not native and path.exists() else None
    if found is None:
        return load_detector(resolve_model(name_or_path, suffixes=(NATIVE,), builders=list_models()))
    read = found[0].read(path)
    return read.network, make_card(
        read.network, read.class_map, name=read.name, source=read.source, licence=read.licence
    )


def _resized(
    network: DetectionNetwork, card: ModelCard, size_hw: tuple[int, int]
) -> tuple[DetectionNetwork, ModelCard]:
    """The same weights for another input size; default boxes follow, and measured results are dropped.

    Raises:
        OptionError: the network's builder has no `size_hw`.
        ContractError: too small for the network.
    """
    again = create_model(card.builder, **{**card.arguments, "size_hw": list(size_hw)})
    again.load_state_dict(network.state_dict())
    again.spec = replace(network.spec, preprocess=replace(card.preprocess, size_hw=size_hw))
    again.eval()
    made = make_card(
        again, card.class_map, name=card.name, licence=card.licence, source=card.source, training=card.training
    )
    return again, made
