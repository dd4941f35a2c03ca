"""Prediction heads: at every cell of every map, four offsets and the class scores of each default box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from multibox.core.structures import Stage
from multibox.models.layers import ConvNormAct, SameConv2d

__all__ = ["BranchFactory", "MultiboxHead", "conv3x3_branch", "depthwise_branch"]

BranchFactory = Callable[[int, int], nn.Module]
"""Channels of a map and of its predictions -> what computes one from the other; a 1×1 or 3×3 convolution comes last."""

FOREGROUND_PRIOR = 0.01  # initial probability of a class under sigmoid, so that early loss is not all background


def conv3x3_branch(inputs: int, outputs: int) -> nn.Module:
    """A 3×3 convolution, as in SSD (paper section 2.1); starts as in the released configuration."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.xavier_uniform_(layer.weight)
    _zero_bias(layer)
    return layer


def depthwise_branch(inputs: int, outputs: int) -> nn.Module:
    """A 3×3 depthwise convolution, then a 1×1, as in SSDLite (MobileNetV2, section 6.2)."""
    last = SameConv2d(inputs, outputs, 1)
    branch = nn.Sequential(ConvNormAct(inputs, inputs, 3, groups=inputs), last)
    nn.init.normal_(last.weight, std=0.03)  # TensorFlow's truncated normal for SSDLite predictors
    _zero_bias(last)
    return branch


def _zero_bias(layer: nn.Conv2d) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class MultiboxHead(nn.Module):
    """One stage of predictions over a list of feature maps.

    For each map two branches, one with 4 outputs for each box at a cell and one with `outputs_per_box` class scores;
    channels are box-major (channel = box · K + k). Rows of the result run by level, row, column, box.

    Args:
        channels: channels of each map.
        boxes_per_cell: default boxes at a cell of each map.
        outputs_per_box: C + 1 for softmax (background first), C for sigmoid.
        branch: makes each of them: `conv3x3_branch`, `depthwise_branch`, or another.
        sigmoid: start class biases at the foreground prior.
    """

    def __init__(
        self,
        channels: Sequence[int],
        boxes_per_cell: Sequence[int],
        outputs_per_box: int,
        *,
        branch: BranchFactory = conv3x3_branch,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        self.outputs_per_box = outputs_per_box
        pairs = list(zip(channels, boxes_per_cell, strict=True))
        self.offsets = nn.ModuleList(branch(c, boxes * 4) for c, boxes in pairs)
        self.logits = nn.ModuleList(branch(c, boxes * outputs_per_box) for c, boxes in pairs)
        if sigmoid:
            for layer in self.class_layers():
                assert layer.bias is not None
                nn.init.constant_(layer.bias, -math.log((1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR))

    def class_layers(self) -> list[nn.Conv2d]:
        """The last layer of each level's class branch, whose outputs are the logits."""
        return [[m for m in branch.modules() if isinstance(m, nn.Conv2d)][-1] for branch in self.logits]

    def forward(self, maps: Sequence[Tensor]) -> Stage:
        """One [B, channels[k], h_k, w_k] per level -> offsets [B, A, 4] and logits [B, A, K]."""
        offsets = [_rows(branch(m), 4) for branch, m in zip(self.offsets, maps, strict=True)]
        logits = [_rows(branch(m), self.outputs_per_box) for branch, m in zip(self.logits, maps, strict=True)]
        return Stage(torch.cat(offsets, dim=1), torch.cat(logits, dim=1))


def _rows(x: Tensor, width: int) -> Tensor:
    """[B, boxes · width, h, w] -> [B, h · w · boxes, width]."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
