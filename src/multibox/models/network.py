"""The network: features, an optional neck, heads, and what is needed to read their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multibox.core.matching import DEFAULT_MATCHING, MatchOptions
from multibox.core.structures import Raw
from multibox.errors import ContractError
from multibox.models.features import FeatureNetwork, Neck
from multibox.models.heads import MultiboxHead
from multibox.spec.anchors import AnchorSpec
from multibox.spec.postprocess import DEFAULT_VARIANCES, PostprocessSpec, Variances
from multibox.spec.preprocess import Preprocess

__all__ = ["DetectionNetwork", "NetworkSpec", "StageSpec"]


@dataclass(frozen=True)
class StageSpec:
    """What one head predicts, and how it is trained.

    Args:
        num_classes: C of this head; None for the classes of the network. A head before the last may have 1, and then
            tells objects of any class from background.
        matching: which default boxes, or boxes of the stage before, answer for which objects.
        gate: least probability of an object with which a default box passes to the next stage; None rejects nothing.
            Only for a head of one class.
    """

    num_classes: int | None = None
    matching: MatchOptions = DEFAULT_MATCHING
    gate: float | None = None

    def __post_init__(self) -> None:
        if self.num_classes not in (None, 1):
            raise ContractError(f"a stage has the classes of the network (None) or 1, got {self.num_classes}")
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise ContractError(f"a gate is a probability, 0 … 1, got {self.gate}")
        if self.gate is not None and self.num_classes != 1:
            raise ContractError("a gate needs a stage of one class; give the stage num_classes=1")


@dataclass(frozen=True)
class NetworkSpec:
    """How to feed a network and how to read its output.

    Args:
        num_classes: C, without background.
        anchors: default boxes of the first stage.
        preprocess: what happens to a picture first; its size is the input size the detector was built for.
        postprocess: defaults for evaluation, and the activation (softmax with background, or sigmoid without).
        variances: scale of the offsets.
        stages: one for each head; several for a cascade.
        mean_scores: class scores are the mean of the stages that tell the classes, not those of the last one alone.
    """

    num_classes: int
    anchors: AnchorSpec
    preprocess: Preprocess
    postprocess: PostprocessSpec
    variances: Variances = DEFAULT_VARIANCES
    stages: tuple[StageSpec, ...] = (StageSpec(),)
    mean_scores: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ContractError(f"num_classes must be at least 1 (background is not counted), got {self.num_classes}")
        if not self.stages or self.stages[-1].num_classes is not None:
            raise ContractError(f"the last stage must have the classes of the network, got stages {self.stages}")

    @property
    def outputs_per_box(self) -> int:
        """K: class scores of one box in the last stage, with background when the activation is softmax."""
        return self.stage_outputs[-1]

    @property
    def stage_outputs(self) -> tuple[int, ...]:
        """Class scores of one box in each stage, with background when the activation is softmax."""
        background = self.postprocess.activation == "softmax"
        return tuple((stage.num_classes or self.num_classes) + background for stage in self.stages)

    @property
    def gates(self) -> tuple[float | None, ...]:
        """For each stage but the last, the least probability of an object with which a default box passes, or None."""
        return tuple(stage.gate for stage in self.stages[:-1])


class DetectionNetwork(nn.Module):
    """A network that turns pictures into raw predictions; it owns neither loss nor decoder and never sees a target.

    Args:
        features: the backbone with its extra levels.
        heads: one head per stage; a plain SSD has one.
        spec: how to read the output.
        neck: turns the feature maps into the maps of each stage; without it every stage reads the features themselves.

    Raises:
        ContractError: the heads are not those that `spec.stages` describes.
    """

    builder: str | None = None
    arguments: dict[str, Any] | None = None

    def __init__(
        self,
        features: FeatureNetwork,
        heads: Sequence[MultiboxHead],
        spec: NetworkSpec,
        *,
        neck: Neck | None = None,
    ) -> None:
        super().__init__()
        outputs = tuple(head.outputs_per_box for head in heads)
        if outputs != spec.stage_outputs:
            raise ContractError(f"heads with {outputs} scores of a box, but stages with {spec.stage_outputs}")
        self.features = features
        self.neck = neck
        self.heads = nn.ModuleList(heads)
        self.spec = spec
        self._sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._anchors: dict[tuple[AnchorSpec, tuple[int, int], torch.device], Tensor] = {}

    def forward(self, images: Tensor) -> Raw:
        """[B, 3, H, W] preprocessed pictures -> a tuple of stages of offsets [B, A, 4] and logits [B, A, K]."""
        maps = self.features(images)
        per_stage = [maps] * len(self.heads) if self.neck is None else self.neck(maps)
        return tuple(head(stage_maps) for head, stage_maps in zip(self.heads, per_stage, strict=True))

    @property
    def level_names(self) -> tuple[str, ...]:
        """What the literature calls each map that heads read."""
        return (self.features if self.neck is None else self.neck).level_names

    def feature_sizes_hw(self, size_hw: tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """Measured (height, width) of every map that heads read, for an input size.

        Measured by a run without data on torch's meta device; nothing is computed.

        Raises:
            ContractError: an input too small for the network, maps that are not as declared or differ between stages.
        """
        size = size_hw or self.spec.preprocess.size_hw
        if size not in self._sizes:
            self._sizes[size] = [(m.shape[2], m.shape[3]) for m in self._meta_maps(size)]
        return self._sizes[size]

    def _meta_maps(self, size_hw: tuple[int, int]) -> Sequence[Tensor]:
        trunk = _Trunk(self.features, self.neck)
        state = {k: v.to("meta") for k, v in (*trunk.named_parameters(), *trunk.named_buffers())}
        # Two pictures, because batch normalisation in training mode refuses a single value per channel.
        images = torch.empty(2, 3, *size_hw, device="meta", dtype=next(self.parameters()).dtype)
        try:
            stages: list[Sequence[Tensor]] = torch.func.functional_call(trunk, state, images)
        except RuntimeError as error:
            raise ContractError(
                f"an input of {size_hw} (height, width) is too small for this network: {error}"
            ) from None
        shapes = [[tuple(m.shape[1:]) for m in maps] for maps in stages]
        sizes = [[shape[1:] for shape in maps] for maps in shapes]
        if any(size != sizes[0] for size in sizes):
            raise ContractError(f"the maps of the stages must have the same sizes, got {sizes}")
        declared = (self.features.channels,) if self.neck is None else self.neck.channels
        if tuple(tuple(shape[0] for shape in maps) for maps in shapes) != declared:
            raise ContractError(f"maps of {declared} channels are declared, got (channels, height, width) {shapes}")
        return stages[0]

    def anchors_cxcywh(self, size_hw: tuple[int, int] | None = None) -> Tensor:
        """Default boxes [A, 4] in the unit frame for an input size, on the detector's device."""
        size = size_hw or self.spec.preprocess.size_hw
        key = (self.spec.anchors, size, next(self.parameters()).device)
        if key not in self._anchors:
            boxes = self.spec.anchors.generate(self.feature_sizes_hw(size), size)
            self._anchors[key] = torch.from_numpy(boxes).to(key[-1])
        return self._anchors[key]


class _Trunk(nn.Module):
    """What lies before the heads: the maps of every stage."""

    def __init__(self, features: FeatureNetwork, neck: Neck | None) -> None:
        super().__init__()
        self.features, self.neck = features, neck

    def forward(self, images: Tensor) -> Sequence[Sequence[Tensor]]:
        maps = self.features(images)
        if self.neck is None:
            return [maps]
        stages: Sequence[Sequence[Tensor]] = self.neck(maps)
        return stages
