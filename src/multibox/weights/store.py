"""Detectors in `.safetensors` files, with everything needed to use them in the header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from multibox.errors import ContractError, ModelFileError, MultiboxError
from multibox.files import atomic_write
from multibox.models.inspect import summarise
from multibox.models.network import DetectionNetwork
from multibox.models.registry import create_model
from multibox.spec.anchors import anchors_digest
from multibox.spec.card import METADATA_KEY, ModelCard, read_safetensors_card
from multibox.spec.classes import ClassMap

__all__ = ["load_detector", "make_card", "save_detector"]

StorageType = Literal["float32", "float16"]
# Values from which a kernel is rounded under "float16". Rounding smaller ones too (early layers, depthwise kernels,
# normalisation) moves boxes of the shipped SSDLite by more than 0.1 px at 300 × 300, which tests/runtime measures.
LARGE_KERNEL = 160_000


def make_card(
    detector: DetectionNetwork,
    class_map: ClassMap,
    *,
    name: str,
    licence: str = "",
    source: str = "",
    training: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> ModelCard:
    """The card of a detector made by `create_model`.

    Raises:
        ContractError: the class count differs from the network's, or the detector has no builder.
    """
    spec = detector.spec
    if detector.builder is None or detector.arguments is None:
        raise ContractError("this detector was not made by create_model, so a file could not rebuild it")
    if len(class_map) != spec.num_classes:
        raise ContractError(f"{len(class_map)} class names for a network with {spec.num_classes} classes")
    return ModelCard(
        name=name,
        builder=detector.builder,
        arguments=detector.arguments,
        class_map=class_map,
        preprocess=spec.preprocess,
        postprocess=spec.postprocess,
        anchors=spec.anchors,
        variances=spec.variances,
        feature_sizes_hw=tuple(detector.feature_sizes_hw()),
        anchors_sha256=anchors_digest(detector.anchors_cxcywh().cpu().numpy()),
        summary=summarise(detector),
        licence=licence,
        source=source,
        training=training or {},
        metrics=metrics or {},
    )


def save_detector(path: Path, detector: DetectionNetwork, card: ModelCard, *, storage: StorageType = "float32") -> None:
    """Write weights and card; the file appears whole or not at all, and equal input gives equal bytes.

    Args:
        path: ends in `.safetensors`.
        detector: its parameters and buffers are written.
        card: from `make_card`.
        storage: "float16" rounds the largest kernels only (see `LARGE_KERNEL`): nearly all of a VGG, a third of an
            SSDLite. Everything comes back as float32.

    Raises:
        ContractError: another suffix or storage.
        OSError: it cannot be written; what had the name before is untouched.
    """
    from safetensors.torch import save

    if path.suffix != ".safetensors":
        raise ContractError(f"weights are stored as .safetensors, got {path.name!r}")
    if storage not in get_args(StorageType):
        raise ContractError(f"storage must be one of {get_args(StorageType)}, got {storage!r}")
    tensors = {}
    for key, value in detector.state_dict().items():
        stored = value.detach().cpu().contiguous()
        tensors[key] = stored.half() if storage == "float16" and stored.numel() >= LARGE_KERNEL else stored
    # One metadata entry only: the order of several is not fixed by the format.
    content = save(tensors, metadata={METADATA_KEY: card.to_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)


def load_detector(path: Path, *, device: str | torch.device = "cpu") -> tuple[DetectionNetwork, ModelCard]:
    """Rebuild a detector, in evaluation mode, from a file written by `save_detector`.

    Raises:
        ModelFileError: not such a file, damaged, or its tensors do not fit the network its card names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = read_safetensors_card(path)
    try:
        detector = create_model(card.builder, **card.arguments)
    except (MultiboxError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(str(path), f"its network cannot be built ({error})", "get the file again") from None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(str(path), f"its tensors cannot be read ({error})", "get the file again") from None
    expected = detector.state_dict()
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} is {list(tensors[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ModelFileError(str(path), f"its tensors do not fit {card.builder} ({shown})", "get the file again")
    spec = detector.spec
    mine = (spec.num_classes, spec.postprocess.activation, spec.anchors.boxes_per_cell)
    if mine != (len(card.class_map), card.postprocess.activation, card.anchors.boxes_per_cell):
        reason = (
            f"its metadata name {len(card.class_map)} classes, {card.postprocess.activation} scores and "
            f"{card.anchors.boxes_per_cell} boxes a cell, its network has {mine[0]}, {mine[1]} and {mine[2]}"
        )
        raise ModelFileError(str(path), reason, "get the file again")
    # The card has the last word on how the network is fed and read: training may have changed what the builder says.
    detector.spec = replace(
        spec,
        anchors=card.anchors,
        preprocess=card.preprocess,
        postprocess=card.postprocess,
        variances=card.variances,
    )
    detector.load_state_dict({key: value.to(expected[key].dtype) for key, value in tensors.items()})
    detector.to(device).eval()
    # Uses the anchors once, so that a changed rule is noticed at loading and not as shifted boxes.
    if anchors_digest(detector.anchors_cxcywh().cpu().numpy()) != card.anchors_sha256:
        raise ModelFileError(
            str(path), "its default boxes differ from those it was made with", "use the version that wrote the file"
        )
    return detector, card
