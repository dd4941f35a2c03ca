"""The model card: everything a model file says about itself, besides its weights.

It travels as one JSON text, in the header of a `.safetensors` file and in the metadata of an `.onnx` file, and is
enough to feed the model and to read its output without any other source.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, ModelFileError, MultiboxError, did_you_mean
from multibox.spec.anchors import AnchorSpec, anchors_digest
from multibox.spec.classes import ClassMap
from multibox.spec.postprocess import PostprocessSpec, Variances
from multibox.spec.preprocess import Preprocess

__all__ = ["METADATA_KEY", "ModelCard", "read_safetensors_card"]

METADATA_KEY = "multibox"  # the key of the JSON text in a file's metadata
FORMAT_VERSION = 1
BROKEN = "get the file again or export it anew"
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself


@dataclass(frozen=True)
class ModelCard:
    """What is known about one model.

    Args:
        name: how the model is called in listings.
        builder: registered builder of the network, and
        arguments: its keyword arguments; together they rebuild the network.
        class_map: the classes, in the order of the outputs (background not counted).
        preprocess: from picture to input.
        postprocess: from output to detections; the defaults for evaluation.
        anchors: default box specification.
        variances: scale of the offsets.
        feature_sizes_hw: (height, width) of each map at the input size.
        anchors_sha256: digest of the default boxes, checked whenever they are made again.
        summary: levels, parameters, multiply-adds (see `multibox.models.inspect`).
        licence: SPDX expression of the weights.
        source: where the weights come from.
        training: recipe, data fingerprint and the like, when multibox trained it.
        metrics: measured results, each with its protocol.
    """

    name: str
    builder: str
    arguments: dict[str, Any]
    class_map: ClassMap
    preprocess: Preprocess
    postprocess: PostprocessSpec
    anchors: AnchorSpec
    variances: Variances
    feature_sizes_hw: tuple[tuple[int, int], ...]
    anchors_sha256: str
    summary: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    source: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, names in ((str, _TEXTS), (dict, _TABLES)):
            for name in names:
                if not isinstance(getattr(self, name), kind):
                    raise ContractError(f"{name} must be a {kind.__name__}, got {type(getattr(self, name)).__name__}")
        if not all(math.isfinite(value) and value > 0 for value in self.variances):
            raise ContractError(f"variances must be positive, got {self.variances}")
        if len(self.feature_sizes_hw) != len(self.anchors.levels):
            maps = len(self.feature_sizes_hw)
            raise ContractError(f"{len(self.anchors.levels)} anchor levels but {maps} feature maps")
        limit_h, limit_w = self.preprocess.size_hw
        for height, width in self.feature_sizes_hw:
            if not (1 <= height <= limit_h and 1 <= width <= limit_w):
                raise ContractError(f"a feature map of {height} × {width} for an input of {limit_h} × {limit_w}")

    def anchors_cxcywh(self) -> NDArray[np.float32]:
        """Default boxes [A, 4], made from the specification and checked against the stored digest."""
        boxes = self.anchors.generate(self.feature_sizes_hw, self.preprocess.size_hw)
        if anchors_digest(boxes) != self.anchors_sha256:
            raise ModelFileError(
                self.name, "its default boxes differ from those it was made with", "use the version that wrote the file"
            )
        return boxes

    @property
    def box_count(self) -> int:
        """A: default boxes of the first stage."""
        cells = (height * width for height, width in self.feature_sizes_hw)
        return sum(count * boxes for count, boxes in zip(cells, self.anchors.boxes_per_cell, strict=True))

    @property
    def outputs_per_box(self) -> int:
        """K: class scores of a box, with background when the activation is softmax."""
        return len(self.class_map) + (self.postprocess.activation == "softmax")

    def require_shapes(self, source: str, found: Mapping[str, tuple[Any, ...]]) -> None:
        """Compare the shapes of a network's input and outputs with this card, so that no class or box can shift.

        Args:
            source: the file, for messages.
            found: by the names images, offsets and logits, with anything for the batch.

        Raises:
            ModelFileError: they contradict the card; the message shows both.
        """
        expected = {
            "images": (3, *self.preprocess.size_hw),
            "offsets": (self.box_count, 4),
            "logits": (self.box_count, self.outputs_per_box),
        }
        for name, shape in expected.items():
            if tuple(found[name][1:]) != shape:
                reason = f"its {name} are {list(found[name][1:])}, its metadata say {list(shape)}"
                raise ModelFileError(source, reason, BROKEN)

    def to_json(self) -> str:
        """One line of JSON with sorted keys, so that equal cards are equal bytes."""
        data: dict[str, Any] = {"format": FORMAT_VERSION}
        for item in fields(self):
            value = getattr(self, item.name)
            data[item.name] = value.to_dict() if hasattr(value, "to_dict") else value
        try:
            return json.dumps(data, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise ContractError(f"the card of {self.name} holds what JSON cannot: {error}") from None

    @classmethod
    def from_json(cls, text: str, *, source: str) -> ModelCard:
        """Inverse of `to_json`.

        Args:
            text: the JSON text.
            source: the file it was found in, for messages.

        Raises:
            ModelFileError: not a card, a card from a newer version, or one whose parts contradict each other.
        """
        try:
            data = json.loads(text)
            version = data.pop("format")
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            raise ModelFileError(source, "its multibox metadata is damaged", BROKEN) from None
        if version != FORMAT_VERSION:
            reason = f"it has metadata format {version!r:.20}, this multibox reads {FORMAT_VERSION}"
            raise ModelFileError(source, reason, "upgrade multibox")
        known = {item.name: item for item in fields(cls)}
        for key in data:
            if key not in known:
                raise ModelFileError(source, f"unknown metadata key {key!r:.60}; {did_you_mean(key, known)}", BROKEN)
        for key, item in known.items():
            if key not in data and item.default is item.default_factory is MISSING:
                raise ModelFileError(source, f"its multibox metadata lacks {key!r}", BROKEN)
        try:
            return cls(**{key: _parsed(key, value) for key, value in data.items()})
        except ContractError as error:
            raise ModelFileError(
                source, f"its multibox metadata is damaged ({_one_line(str(error))})", BROKEN
            ) from None


def _parsed(key: str, value: Any) -> Any:
    """One part of the card. Parts check their values; what else Python says of nonsense becomes the same error."""
    try:
        return _PARSERS[key](value) if key in _PARSERS else value
    except KeyError as error:
        raise ContractError(f"{key} lacks {error}") from None
    except (MultiboxError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ContractError(f"{key}: {error}") from None


_TEXTS = ("name", "builder", "anchors_sha256", "licence", "source")
_TABLES = ("arguments", "summary", "training", "metrics")


def _one_line(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit] + " …"


def _sizes(values: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(h), int(w)) for h, w in values)


def _postprocess(values: Mapping[str, Any]) -> PostprocessSpec:
    spec = PostprocessSpec.from_dict(values)
    for key in spec.to_dict():
        values[key]  # a default in place of what the file does not say would be a guess
    return spec


def _variances(values: Any) -> Variances:
    a, b, c, d = (float(v) for v in values)
    return a, b, c, d


_PARSERS: Mapping[str, Any] = {
    "class_map": ClassMap.from_dict,
    "preprocess": Preprocess.from_dict,
    "postprocess": _postprocess,
    "anchors": AnchorSpec.from_dict,
    "variances": _variances,
    "feature_sizes_hw": _sizes,
}


def read_safetensors_card(path: Path) -> ModelCard:
    """The card in the header of a `.safetensors` file, read without any tensor.

    Raises:
        ModelFileError: missing, damaged, or not written by multibox.
    """
    damaged = "get the file again"
    try:
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= LARGEST_HEADER:
                raise ModelFileError(str(path), "it is not a safetensors file", damaged)
            text = file.read(length)
    except FileNotFoundError:
        raise ModelFileError(str(path), "no such file", "check the path, or see `multibox list`") from None
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
        raise ModelFileError(str(path), reason, "check the path and its permissions") from None
    if len(text) < length:
        raise ModelFileError(str(path), "it ends within its header, or is not a safetensors file", damaged)
    try:
        metadata = json.loads(text).get("__metadata__", {})
        card = metadata.get(METADATA_KEY)
    except (ValueError, AttributeError, RecursionError):
        raise ModelFileError(str(path), "its header is damaged, or it is not a safetensors file", damaged) from None
    if not isinstance(card, str):
        raise ModelFileError(
            str(path), "a safetensors file without multibox metadata", "convert foreign weights with `multibox import`"
        )
    return ModelCard.from_json(card, source=str(path))
