"""Prediction heads: at every cell of every map, four offsets and the class scores of each default box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from multibox.core.structures import Stage
from multibox.models.layers import ConvNormAct, SameConv2d

__all__ = ["MultiboxHead"]

HeadKind = Literal["conv3x3", "depthwise"]
FOREGROUND_PRIOR = 0.01  # initial probability of a class under sigmoid, so that early loss is not all background


class MultiboxHead(nn.Module):
    """One stage of predictions over a list of feature maps.

    For each map two branches, one with 4 outputs for each box at a cell and one with `outputs_per_box` class scores;
    channels are box-major (channel = box · K + k). Rows of the result run by level, row, column, box.

    Args:
        channels: channels of each map.
        boxes_per_cell: default boxes at a cell of each map.
        outputs_per_box: C + 1 for softmax (background first), C for sigmoid.
        kind: "conv3x3" as in SSD (paper section 2.1), or "depthwise" as in SSDLite (3×3 depthwise, then 1×1).
        sigmoid: start class biases at the foreground prior.
    """

    def __init__(
        self,
        channels: Sequence[int],
        boxes_per_cell: Sequence[int],
        outputs_per_box: int,
        *,
        kind: HeadKind = "conv3x3",
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        self.outputs_per_box = outputs_per_box
        pairs = list(zip(channels, boxes_per_cell, strict=True))
        self.offsets = nn.ModuleList(_branch(c, boxes * 4, kind) for c, boxes in pairs)
        self.logits = nn.ModuleList(_branch(c, boxes * outputs_per_box, kind) for c, boxes in pairs)
        if sigmoid:
            for branch in self.logits:
                last = branch if isinstance(branch, nn.Conv2d) else branch[-1]  # type: ignore[index]
                assert last.bias is not None
                nn.init.constant_(last.bias, -math.log((1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR))

    def forward(self, maps: Sequence[Tensor]) -> Stage:
        """One [B, channels[k], h_k, w_k] per level -> offsets [B, A, 4] and logits [B, A, K]."""
        offsets = [_rows(branch(m), 4) for branch, m in zip(self.offsets, maps, strict=True)]
        logits = [_rows(branch(m), self.outputs_per_box) for branch, m in zip(self.logits, maps, strict=True)]
        return Stage(torch.cat(offsets, dim=1), torch.cat(logits, dim=1))


def _branch(inputs: int, outputs: int, kind: HeadKind) -> nn.Module:
    if kind == "depthwise":
        last: nn.Conv2d = SameConv2d(inputs, outputs, 1)
        branch: nn.Module = nn.Sequential(ConvNormAct(inputs, inputs, 3, groups=inputs), last)
        nn.init.normal_(last.weight, std=0.03)  # TensorFlow's truncated normal for SSDLite predictors
    else:
        branch = last = nn.Conv2d(inputs, outputs, 3, padding=1)
        nn.init.xavier_uniform_(last.weight)  # as in the released SSD configuration
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return branch


def _rows(x: Tensor, width: int) -> Tensor:
    """[B, boxes · width, h, w] -> [B, h · w · boxes, width]."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
