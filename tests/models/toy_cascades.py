"""Two small cascades for tests. Importing this module registers them, so that `create_model` builds them.

Every test can import it (`tests/conftest.py`); a process of its own needs this folder on its path.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multibox.core.matching import MatchOptions
from multibox.models.features import FeatureNetwork, Neck
from multibox.models.heads import MultiboxHead
from multibox.models.network import DetectionNetwork, NetworkSpec, StageSpec
from multibox.models.registry import register_model
from multibox.spec.anchors import ssd_anchors
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess

__all__ = ["toy_cascade", "toy_gated_cascade"]

WIDTH = 8
GATE = 0.45
OFFSET_SPREAD, LOGIT_SPREAD = 1.5, 4.0  # of the outputs of the untrained heads, roughly


class ToyFeatures(FeatureNetwork):
    """Maps with strides 8, 16 and 32."""

    channels = (WIDTH, WIDTH, WIDTH)
    level_names = ("stride_8", "stride_16", "stride_32")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_halve(3), _halve(WIDTH))
        self.levels = nn.ModuleList(_halve(WIDTH) for _ in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        x = self.stem(images)
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class TopDown(Neck):
    """The first stage reads the maps as they are, the second one each map with the next coarser one added."""

    channels = (ToyFeatures.channels, ToyFeatures.channels)
    level_names = tuple(f"{name}_mixed" for name in ToyFeatures.level_names)

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in ToyFeatures.channels)

    def forward(self, maps: Sequence[Tensor]) -> list[list[Tensor]]:
        refined = [self.mixed[-1](maps[-1])]
        for conv, level in zip(self.mixed[-2::-1], maps[-2::-1], strict=True):  # type: ignore[arg-type]
            above = nn.functional.interpolate(refined[0], size=level.shape[2:], mode="nearest")
            refined.insert(0, conv(level + above))
        return [list(maps), refined]


@register_model
def toy_cascade(*, num_classes: int = 3, size_hw: tuple[int, int] = (64, 64)) -> DetectionNetwork:
    """Two stages that tell the same classes; the second is matched more strictly."""
    stages = (StageSpec(), StageSpec(matching=MatchOptions(positive_threshold=0.6, negative_threshold=0.6)))
    return _build(num_classes, size_hw, stages, neck=None)


@register_model
def toy_gated_cascade(*, num_classes: int = 3, size_hw: tuple[int, int] = (64, 64)) -> DetectionNetwork:
    """A first stage that tells objects from background and rejects default boxes, then a stage that tells classes."""
    stages = (StageSpec(num_classes=1, gate=GATE), StageSpec())
    return _build(num_classes, size_hw, stages, neck=TopDown)


def _build(
    num_classes: int, size_hw: Sequence[int], stages: tuple[StageSpec, ...], *, neck: type[Neck] | None
) -> DetectionNetwork:
    spec = NetworkSpec(
        num_classes=num_classes,
        anchors=ssd_anchors((0.2, 0.4, 0.6, 0.8), [(), (), ()]),
        preprocess=Preprocess((int(size_hw[0]), int(size_hw[1])), mean=(127.5,) * 3, scale=(1 / 64,) * 3),
        postprocess=PostprocessSpec(
            activation="softmax", score_threshold=0.05, nms_iou=0.45, top_k=400, max_detections=100
        ),
        stages=stages,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)  # always the same network: what a test saw, the next one sees
        features = ToyFeatures()
        heads = [
            MultiboxHead(features.channels, spec.anchors.boxes_per_cell, outputs) for outputs in spec.stage_outputs
        ]
        for head in heads:
            _spread(head.offsets, OFFSET_SPREAD)
            _spread(head.logits, LOGIT_SPREAD)
        return DetectionNetwork(features, heads, spec, neck=None if neck is None else neck())


def _halve(inputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, WIDTH, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # keeps the spread of the values from layer to layer
    return nn.Sequential(conv, nn.BatchNorm2d(WIDTH), nn.ReLU())


def _spread(branches: nn.ModuleList, spread: float) -> None:
    """Weights so large that the outputs of an untrained head differ from cell to cell."""
    for branch in branches:
        nn.init.normal_(branch.weight, std=spread * (2 / (9 * WIDTH)) ** 0.5)
