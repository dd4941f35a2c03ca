"""What a feature network, and a neck behind it, promise to the rest of a detector."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["FeatureNetwork", "Neck"]


class FeatureNetwork(nn.Module):
    """Base of all backbones: a picture in, one feature map per level out, finest first.

    Heads read `channels`; map sizes are measured, never declared, so that any input size works.

    Attributes:
        channels: channels of each returned map.
        level_names: what the literature calls each map.
    """

    channels: tuple[int, ...]
    level_names: tuple[str, ...]

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one [B, channels[k], h_k, w_k] per level."""
        raise NotImplementedError


class Neck(nn.Module):
    """Base of all necks: the maps of the features in, the maps that each stage of heads reads out.

    Attributes:
        channels: for each stage the channels of each map; the sizes of the maps are the same in every stage.
        level_names: what the literature calls each map of the last stage.
    """

    channels: tuple[tuple[int, ...], ...]
    level_names: tuple[str, ...]

    def forward(self, maps: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
        """The features' maps, finest first -> for each stage one [B, channels[stage][k], h_k, w_k] per level."""
        raise NotImplementedError
