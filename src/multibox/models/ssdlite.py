"""SSDLite on MobileNetV2 with TensorFlow's conventions.

Sandler et al., 2018, section 6.2; padding, tapped maps and boxes as in the TensorFlow Object Detection API.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from multibox.models.features import FeatureNetwork
from multibox.models.heads import MultiboxHead, depthwise_branch
from multibox.models.layers import ConvNormAct
from multibox.models.network import DetectionNetwork, NetworkSpec
from multibox.models.registry import register_model
from multibox.spec.anchors import tf_anchors
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess

__all__ = ["FINE_TAPPED_BLOCK", "TAPPED_BLOCK", "MobileNetV2Features", "ssdlite300_mobilenetv2", "ssdlite_preprocess"]

STEM_CHANNELS = 32
# (channels, blocks, stride of the first block): MobileNetV2's table 2. The first row has no expansion.
BLOCK_ROWS = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
EXPANSION = 6
TAPPED_BLOCK = 13  # the first map is this block's expanded input (C4, stride 16)
FINE_TAPPED_BLOCK = 6  # its expanded input has stride 8, which SSDLite does not read
LAST_CHANNELS = 1280
EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))  # (squeeze, outputs), each with stride 2


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1 (linear), with a skip where shapes allow."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int, norm: bool) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand: nn.Module = ConvNormAct(inputs, hidden, 1, norm=norm) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNormAct(hidden, hidden, 3, stride=stride, groups=hidden, norm=norm)
        self.project = ConvNormAct(hidden, outputs, 1, norm=norm, act=False)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its expanded input."""
        expanded = self.expand(x)
        out = self.project(self.depthwise(expanded))
        return (x + out if self.skip else out), expanded


class MobileNetV2Features(FeatureNetwork):
    """MobileNetV2 and extra levels: strides 16, 32, 64, 128, 256 and 512 (rounded up) unless told otherwise.

    Args:
        norm: batch normalisation in the trunk; False for weights it has been folded into.
        taps: the blocks whose expanded input is a map.
        extras: how many extra levels follow the trunk.
    """

    def __init__(self, *, norm: bool = True, taps: Sequence[int] = (TAPPED_BLOCK,), extras: int = len(EXTRAS)) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, STEM_CHANNELS, 3, stride=2, norm=norm)
        self.blocks = nn.ModuleList()
        inputs = STEM_CHANNELS
        for outputs, count, first_stride in BLOCK_ROWS:
            for i in range(count):
                block = InvertedResidual(
                    inputs,
                    outputs,
                    stride=first_stride if i == 0 else 1,
                    expansion=EXPANSION if len(self.blocks) else 1,
                    norm=norm,
                )
                self.blocks.append(block)
                inputs = outputs
        self.taps = tuple(taps)
        tapped = [int(self.blocks[tap].depthwise.conv.in_channels) for tap in taps]  # type: ignore[union-attr, arg-type]
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
        self.channels = (*tapped, LAST_CHANNELS, *(outputs for _, outputs in EXTRAS[:extras]))
        self.level_names = (
            *(f"expanded_conv_{tap}" for tap in taps),
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


def ssdlite_preprocess(size_hw: Sequence[int]) -> Preprocess:
    """How the Object Detection API prepares pictures for MobileNet trunks: -1 … 1, its own way of resizing."""
    return Preprocess(
        (int(size_hw[0]), int(size_hw[1])), coordinates="asymmetric", mean=(127.5,) * 3, scale=(2 / 255,) * 3
    )


@register_model
def ssdlite300_mobilenetv2(
    *, num_classes: int = 80, size_hw: tuple[int, int] = (300, 300), trunk_norm: bool = True
) -> DetectionNetwork:
    """SSDLite300 on MobileNetV2: 19×19 … 1×1 maps, 1917 default boxes at 300×300, sigmoid scores.

    Args:
        num_classes: C; no background output.
        size_hw: input (height, width); default boxes follow.
        trunk_norm: batch normalisation in the trunk. False for weights it has been folded into, as in the COCO
            weights, whose original statistics no longer exist; the heads always have it.
    """
    features = MobileNetV2Features(norm=trunk_norm)
    spec = NetworkSpec(
        num_classes=num_classes,
        anchors=tf_anchors(),
        preprocess=ssdlite_preprocess(size_hw),
        postprocess=PostprocessSpec(
            activation="sigmoid", score_threshold=0.01, nms_iou=0.6, top_k=None, max_detections=100, clip="before_nms"
        ),
    )
    head = MultiboxHead(
        features.channels, spec.anchors.boxes_per_cell, spec.outputs_per_box, branch=depthwise_branch, sigmoid=True
    )
    return DetectionNetwork(features, [head], spec)
