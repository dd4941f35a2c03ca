"""The network: features, an optional neck, heads, and what is needed to read their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multibox.core.structures import Raw
from multibox.errors import ContractError
from multibox.models.features import FeatureNetwork
from multibox.models.heads import MultiboxHead
from multibox.spec.anchors import AnchorSpec
from multibox.spec.postprocess import DEFAULT_VARIANCES, PostprocessSpec, Variances
from multibox.spec.preprocess import Preprocess

__all__ = ["DetectionNetwork", "NetworkSpec"]

Neck = Callable[[Sequence[Tensor]], Sequence[Sequence[Tensor]]]


@dataclass(frozen=True)
class NetworkSpec:
    """How to feed a detector and how to read its output.

    Args:
        num_classes: C, without background.
        anchors: default boxes of the first stage.
        preprocess: what happens to a picture first; its size is the input size the detector was built for.
        postprocess: defaults for evaluation, and the activation (softmax with background, or sigmoid without).
        variances: scale of the offsets.
    """

    num_classes: int
    anchors: AnchorSpec
    preprocess: Preprocess
    postprocess: PostprocessSpec
    variances: Variances = DEFAULT_VARIANCES

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ContractError(f"num_classes must be at least 1 (background is not counted), got {self.num_classes}")

    @property
    def outputs_per_box(self) -> int:
        """K: class scores of one box, with background when the activation is softmax."""
        return self.num_classes + (self.postprocess.activation == "softmax")


class DetectionNetwork(nn.Module):
    """A network that turns pictures into raw predictions; it owns neither loss nor decoder and never sees a target.

    Args:
        features: the backbone with its extra levels.
        heads: one head per stage; a plain SSD has one.
        spec: how to read the output.
        neck: a module that turns the feature maps into one list of maps per stage; without it every stage reads the
            features themselves.
    """

    builder: str | None = None
    arguments: dict[str, Any] | None = None

    def __init__(
        self,
        features: FeatureNetwork,
        heads: Sequence[MultiboxHead],
        spec: NetworkSpec,
        *,
        neck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.neck = neck
        self.heads = nn.ModuleList(heads)
        self.spec = spec
        self._sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._anchors: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def forward(self, images: Tensor) -> Raw:
        """[B, 3, H, W] preprocessed pictures -> a tuple of stages of offsets [B, A, 4] and logits [B, A, K]."""
        maps = self.features(images)
        per_stage = [maps] * len(self.heads) if self.neck is None else self.neck(maps)
        return tuple(head(stage_maps) for head, stage_maps in zip(self.heads, per_stage, strict=True))

    def feature_sizes_hw(self, size_hw: tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """Measured (height, width) of every map the first head reads, for an input size.

        Measured by a run without data on torch's meta device; nothing is computed.
        """
        size = size_hw or self.spec.preprocess.size_hw
        if size not in self._sizes:
            self._sizes[size] = [(m.shape[2], m.shape[3]) for m in self._meta_maps(size)]
        return self._sizes[size]

    def _meta_maps(self, size_hw: tuple[int, int]) -> Sequence[Tensor]:
        trunk = nn.ModuleList([self.features] if self.neck is None else [self.features, self.neck])
        state = {k: v.to("meta") for k, v in (*trunk.named_parameters(), *trunk.named_buffers())}
        # Two pictures, because batch normalisation in training mode refuses a single value per channel.
        images = torch.empty(2, 3, *size_hw, device="meta", dtype=next(self.parameters()).dtype)
        try:
            maps: Sequence[Tensor] = torch.func.functional_call(
                _First(trunk), {f"trunk.{k}": v for k, v in state.items()}, images
            )
        except RuntimeError as error:
            raise ContractError(
                f"an input of {size_hw} (height, width) is too small for this network: {error}"
            ) from None
        return maps

    def anchors_cxcywh(self, size_hw: tuple[int, int] | None = None) -> Tensor:
        """Default boxes [A, 4] in the unit frame for an input size, on the detector's device."""
        size = size_hw or self.spec.preprocess.size_hw
        key = (size, next(self.parameters()).device)
        if key not in self._anchors:
            boxes = self.spec.anchors.generate(self.feature_sizes_hw(size), size)
            self._anchors[key] = torch.from_numpy(boxes).to(key[1])
        return self._anchors[key]


class _First(nn.Module):
    """Features and neck up to the maps of the first head."""

    def __init__(self, trunk: nn.ModuleList) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.trunk[0](images)
        return maps if len(self.trunk) == 1 else self.trunk[1](maps)[0]
