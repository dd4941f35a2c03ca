"""Small layers shared by the networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvNormAct", "L2Norm", "SameConv2d"]


class L2Norm(nn.Module):
    """Scale every position's channel vector to unit length, times a learnt factor per channel.

    conv4_3 has much larger activations than deeper maps; the paper (section 3.1) normalises it with an initial factor
    of 20. Computed in float32 whatever the input, because the squares and the epsilon do not fit half precision.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape and dtype; an all-zero position stays zero."""
        return (F.normalize(x.float(), dim=1) * self.weight.float()[:, None, None]).to(x.dtype)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, which depends on the input's size.

    Along an axis of n pixels the total padding is max((ceil(n / stride) − 1) · stride + k − n, 0), the smaller half
    before and the larger after: a 3×3 stride-2 convolution pads (0, 1) on an even and (1, 1) on an odd axis.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=bias)

    def _pad(self, pixels: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max((-(-pixels // stride) - 1) * stride + kernel - pixels, 0)
        return total // 2, total - total // 2

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        top, bottom = self._pad(input.shape[2], 0)
        left, right = self._pad(input.shape[3], 1)
        if top == bottom and left == right:
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ConvNormAct(nn.Module):
    """SAME convolution, then batch normalisation (or a bias in its place), then ReLU6 (or nothing).

    Args:
        norm: False for weights whose normalisation has been folded into the convolution.
        act: False for linear bottleneck outputs.
    """

    # The epsilon is stored in the COCO-trained graph; the momentum is that of torchvision's SSDLite.
    NORM_EPSILON = 1e-3
    NORM_MOMENTUM = 0.03

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, kernel, stride=stride, groups=groups, bias=not norm)
        self.norm: nn.Module = (
            nn.BatchNorm2d(outputs, eps=self.NORM_EPSILON, momentum=self.NORM_MOMENTUM) if norm else nn.Identity()
        )
        self.act: nn.Module = nn.ReLU6(inplace=True) if act else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out
