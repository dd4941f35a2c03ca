"""Trunks of inverted residuals: MobileNetV2 (Sandler et al., 2018) and EfficientNet-Lite, with SSDLite's extra levels.

Padding is TensorFlow's, activations are ReLU6, and there is no squeeze-and-excitation, in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from multibox.models.features import FeatureNetwork
from multibox.models.layers import ConvNormAct

__all__ = ["EXTRAS", "MOBILENET_V2", "BlockRow", "InvertedResidual", "MobileFeatures", "efficientnet_lite"]

STEM_CHANNELS = 32
LAST_CHANNELS = 1280
EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))  # (squeeze, outputs), each with stride 2


class BlockRow(NamedTuple):
    """Blocks of one shape that follow each other; only the first has a stride."""

    channels: int
    blocks: int
    stride: int
    kernel: int = 3
    expansion: int = 6


MOBILENET_V2 = (  # table 2
    BlockRow(16, 1, 1, expansion=1),
    BlockRow(24, 2, 2),
    BlockRow(32, 3, 2),
    BlockRow(64, 4, 2),
    BlockRow(96, 3, 1),
    BlockRow(160, 3, 2),
    BlockRow(320, 1, 1),
)
EFFICIENTNET = (  # EfficientNet-B0, table 1
    BlockRow(16, 1, 1, expansion=1),
    BlockRow(24, 2, 2),
    BlockRow(40, 2, 2, kernel=5),
    BlockRow(80, 3, 2),
    BlockRow(112, 3, 1, kernel=5),
    BlockRow(192, 4, 2, kernel=5),
    BlockRow(320, 1, 1),
)
DIVISOR = 8  # of numbers of channels


def efficientnet_lite(*, width: float, depth: float) -> tuple[BlockRow, ...]:
    """EfficientNet's rows with more channels and blocks; the first and the last row keep their number of blocks.

    Args:
        width: factor of the channels, rounded to a multiple of 8 that is not more than a tenth too small.
        depth: factor of the blocks, rounded up.
    """
    rows = []
    for number, row in enumerate(EFFICIENTNET):
        wanted = row.channels * width
        channels = max(DIVISOR, int(wanted + DIVISOR / 2) // DIVISOR * DIVISOR)
        channels += DIVISOR if channels < 0.9 * wanted else 0
        inner = 0 < number < len(EFFICIENTNET) - 1
        rows.append(row._replace(channels=channels, blocks=math.ceil(row.blocks * depth) if inner else row.blocks))
    return tuple(rows)


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise, project 1×1 (linear), with a skip where shapes allow."""

    def __init__(self, inputs: int, row: BlockRow, *, stride: int, norm: bool) -> None:
        super().__init__()
        hidden = inputs * row.expansion
        self.expand: nn.Module = ConvNormAct(inputs, hidden, 1, norm=norm) if row.expansion > 1 else nn.Identity()
        self.depthwise = ConvNormAct(hidden, hidden, row.kernel, stride=stride, groups=hidden, norm=norm)
        self.project = ConvNormAct(hidden, row.channels, 1, norm=norm, act=False)
        self.skip = stride == 1 and inputs == row.channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its expanded input."""
        expanded = self.expand(x)
        out = self.project(self.depthwise(expanded))
        return (x + out if self.skip else out), expanded


class MobileFeatures(FeatureNetwork):
    """A trunk of inverted residuals and extra levels.

    The first maps are expanded inputs of blocks that halve the map: of stride 16 for SSDLite, with one of stride 8
    before it for a pyramid. Then follow the trunk's last layer (stride 32) and the extra levels (64, 128 …), each half
    of the one before, rounded up.

    Args:
        rows: the blocks.
        norm: batch normalisation in the trunk; False for weights it has been folded into.
        fine: give the map of stride 8 too.
        extras: how many extra levels follow the trunk.
    """

    def __init__(
        self, rows: Sequence[BlockRow], *, norm: bool = True, fine: bool = False, extras: int = len(EXTRAS)
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, STEM_CHANNELS, 3, stride=2, norm=norm)
        self.blocks = nn.ModuleList()
        inputs = STEM_CHANNELS
        halving: list[tuple[int, int]] = []  # blocks of stride 2, with the channels of their expanded inputs
        for row in rows:
            for i in range(row.blocks):
                stride = row.stride if i == 0 else 1
                if stride == 2:
                    halving.append((len(self.blocks), inputs * row.expansion))
                self.blocks.append(InvertedResidual(inputs, row, stride=stride, norm=norm))
                inputs = row.channels
        tapped = halving[-2:] if fine else halving[-1:]
        self.taps = tuple(number for number, _ in tapped)
        self.last = ConvNormAct(inputs, LAST_CHANNELS, 1, norm=norm)
        self.extras = nn.ModuleList()
        inputs = LAST_CHANNELS
        for squeeze, outputs in EXTRAS[:extras]:
            self.extras.append(
                nn.Sequential(
                    ConvNormAct(inputs, squeeze, 1, norm=norm),
                    ConvNormAct(squeeze, squeeze, 3, stride=2, groups=squeeze, norm=norm),
                    ConvNormAct(squeeze, outputs, 1, norm=norm),
                )
            )
            inputs = outputs
        self.channels = (*(width for _, width in tapped), LAST_CHANNELS, *(outputs for _, outputs in EXTRAS[:extras]))
        self.level_names = (
            *(f"expanded_conv_{number}" for number in self.taps),
            "Conv_1",
            *(f"layer_19_2_{number}" for number in range(2, 2 + extras)),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one map per level."""
        x = self.stem(images)
        maps = []
        for number, block in enumerate(self.blocks):
            x, expanded = block(x)
            if number in self.taps:
                maps.append(expanded)
        x = self.last(x)
        maps.append(x)
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        return maps
