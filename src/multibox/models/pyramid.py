"""Pyramids of features: each level told what the coarser ones see, then what the finer ones see.

The top-down row is that of RefineDet (Zhang et al., 2018, section 3.1: "transfer connection block"). With the bottom-up
row behind it the neck is the bidirectional pyramid of Wu et al. (arXiv 1803.08208). That paper's text was not at hand:
which rows there are, and which row each stage of the cascade reads, follows its figure; the layers inside a row are
RefineDet's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from multibox.models.features import Neck
from multibox.models.layers import ConvNormAct

__all__ = ["PLAIN", "SEPARABLE", "SEPARABLE_WIDTH", "WIDTH", "Pyramid", "PyramidLayers"]

WIDTH = 256  # channels of RefineDet's pyramid
SEPARABLE_WIDTH = 128


@dataclass(frozen=True)
class PyramidLayers:
    """What a pyramid is made of; each makes a module from numbers of channels.

    Args:
        lateral: (channels of a map, of the pyramid): from a row to the next, before the sum.
        up: (channels of the pyramid): twice the height and width, before the sum.
        down: (channels of the pyramid): half of them, rounded up, before the sum.
        act: the activation of the sum.
        smooth: (channels of the pyramid): after the sum.
    """

    lateral: Callable[[int, int], nn.Module]
    up: Callable[[int], nn.Module]
    down: Callable[[int], nn.Module]
    act: Callable[[], nn.Module]
    smooth: Callable[[int], nn.Module]


def _conv3x3(inputs: int, outputs: int, *, stride: int = 1, act: bool = True) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.ReLU()) if act else conv


def _deconvolution(width: int) -> nn.Module:
    layer = nn.ConvTranspose2d(width, width, 2, stride=2)
    nn.init.xavier_uniform_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _separable(width: int) -> nn.Module:
    return nn.Sequential(ConvNormAct(width, width, 3, groups=width), ConvNormAct(width, width, 1))


PLAIN = PyramidLayers(
    lateral=lambda inputs, width: nn.Sequential(_conv3x3(inputs, width), _conv3x3(width, width, act=False)),
    up=_deconvolution,
    down=lambda width: _conv3x3(width, width, stride=2, act=False),
    act=nn.ReLU,
    smooth=lambda width: _conv3x3(width, width),
)
"""3×3 convolutions and a 2×2 deconvolution, as in RefineDet; for trunks like VGG16."""

SEPARABLE = PyramidLayers(
    lateral=lambda inputs, width: ConvNormAct(inputs, width, 1, act=False),
    up=lambda _: nn.Upsample(scale_factor=2, mode="nearest"),
    down=lambda width: ConvNormAct(width, width, 3, stride=2, groups=width, act=False),
    act=nn.ReLU6,
    smooth=_separable,
)
"""1×1 and depthwise 3×3 convolutions with batch normalisation, as in SSDLite; for trunks like MobileNetV2."""


class _Row(nn.Module):
    """One row of a pyramid: every map joined with the one made just before, in the order of `maps`."""

    def __init__(self, channels: Sequence[int], width: int, layers: PyramidLayers, step: Callable[[int], nn.Module]):
        super().__init__()
        self.laterals = nn.ModuleList(layers.lateral(inputs, width) for inputs in channels)
        self.steps = nn.ModuleList(step(width) for _ in channels)
        self.acts = nn.ModuleList(layers.act() for _ in channels)
        self.smooth = nn.ModuleList(layers.smooth(width) for _ in channels)

    def forward(self, maps: Sequence[Tensor], first: Tensor) -> list[Tensor]:
        """The maps of the row; `first` is the one made before them."""
        found = [first]
        for level, lateral, step, act, smooth in zip(
            maps, self.laterals, self.steps, self.acts, self.smooth, strict=True
        ):
            height, width = level.shape[2:]
            moved = step(found[-1])[:, :, :height, :width]  # an odd side is half of one more
            found.append(smooth(act(lateral(level) + moved)))
        return found


class Pyramid(Neck):
    """The maps of the features; from two stages on a top-down row; with three also a bottom-up row. A row is a stage.

    Args:
        channels: of the maps of the features.
        level_names: of them.
        width: channels of the rows.
        layers: what the rows are made of.
        stages: 1 to 3.
    """

    def __init__(
        self,
        channels: Sequence[int],
        level_names: Sequence[str],
        *,
        width: int,
        layers: PyramidLayers,
        stages: int,
    ) -> None:
        super().__init__()
        rows = tuple(width for _ in channels)
        self.channels = (tuple(channels), rows, rows)[:stages]
        prefix = ("", "top_down_", "bottom_up_")[stages - 1]
        self.level_names = tuple(f"{prefix}{name}" for name in level_names)
        if stages > 1:
            self.top = nn.Sequential(layers.lateral(channels[-1], width), layers.act(), layers.smooth(width))
            self.top_down = _Row(channels[-2::-1], width, layers, layers.up)
        if stages > 2:
            self.bottom_up = _Row(rows[1:], width, layers, layers.down)

    def forward(self, maps: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """One [B, channels[k], h_k, w_k] per level, finest first -> as many lists of them as there are stages."""
        stages: list[Sequence[Tensor]] = [maps]
        if len(self.channels) > 1:
            stages.append(self.top_down(maps[-2::-1], self.top(maps[-1]))[::-1])
        if len(self.channels) > 2:
            stages.append(self.bottom_up(stages[-1][1:], stages[-1][0]))
        return stages
