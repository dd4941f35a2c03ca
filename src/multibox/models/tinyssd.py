"""TinySSD, the small detector of Dive into Deep Learning (chapter on single shot multibox detection)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from multibox.models.features import FeatureNetwork
from multibox.models.heads import MultiboxHead
from multibox.models.network import DetectionNetwork, NetworkSpec
from multibox.models.registry import register_model
from multibox.spec.anchors import tinyssd_anchors
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess

__all__ = ["TinySSDFeatures", "tinyssd256"]

BASE_CHANNELS = (3, 16, 32, 64)
LEVEL_CHANNELS = (64, 128, 128, 128, 128)


class TinySSDFeatures(FeatureNetwork):
    """Three halving blocks, three more as levels, and a global maximum as the last level."""

    channels = LEVEL_CHANNELS
    level_names = ("blk_0", "blk_1", "blk_2", "blk_3", "blk_4")

    def __init__(self) -> None:
        super().__init__()
        base = [_halve(a, b) for a, b in pairwise(BASE_CHANNELS)]
        halvings = [_halve(a, b) for a, b in pairwise(LEVEL_CHANNELS[:-1])]
        self.blocks = nn.ModuleList([nn.Sequential(*base), *halvings, GlobalMaxPool()])

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> five maps, the last one 1×1."""
        maps = []
        x = images
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class GlobalMaxPool(nn.Module):
    """The maximum of each channel, as a 1×1 map; unlike torch's adaptive pooling it exports with every torch."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 1, 1]."""
        return x.amax(dim=(2, 3), keepdim=True)


def _halve(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


@register_model
def tinyssd256(*, num_classes: int = 1, size_hw: tuple[int, int] = (256, 256)) -> DetectionNetwork:
    """TinySSD: 32×32 … 1×1 maps, 5444 default boxes at 256×256.

    The book feeds raw values 0 … 255; here they are scaled to [0, 1], which the first normalisation undoes.

    Args:
        num_classes: C, without background.
        size_hw: input (height, width); default boxes follow.
    """
    features = TinySSDFeatures()
    spec = NetworkSpec(
        num_classes=num_classes,
        anchors=tinyssd_anchors(),
        preprocess=Preprocess((int(size_hw[0]), int(size_hw[1])), scale=(1 / 255,) * 3),
        postprocess=PostprocessSpec(
            activation="softmax", score_threshold=0.01, nms_iou=0.5, top_k=400, max_detections=200
        ),
    )
    head = MultiboxHead(features.channels, spec.anchors.boxes_per_cell, spec.outputs_per_box)
    return DetectionNetwork(features, [head], spec)
