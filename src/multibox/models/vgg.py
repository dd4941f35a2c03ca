"""SSD300 and SSD512 on VGG16 (Liu et al., 2016), layer names as in the paper."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from multibox.models.features import FeatureNetwork
from multibox.models.heads import MultiboxHead
from multibox.models.layers import L2Norm
from multibox.models.network import DetectionNetwork, NetworkSpec
from multibox.models.registry import register_model
from multibox.spec.anchors import Clip, ssd_anchors, ssd_scales
from multibox.spec.postprocess import BoxClip, PostprocessSpec
from multibox.spec.preprocess import Preprocess

__all__ = ["IMAGENET_MEAN_RGB", "PIXEL_SPREAD", "Extra", "VGGFeatures", "ssd300_vgg16", "ssd512_vgg16"]

ScaleTable = Literal["voc", "coco"]
Ratios = Sequence[Sequence[float]]

# Scales as fractions of the input side (released configurations; paper section 3.1 to 3.4).
SCALES_300: dict[ScaleTable, tuple[float, ...]] = {
    "voc": ssd_scales(10, 20, 90, levels=6),
    "coco": ssd_scales(7, 15, 90, levels=6),
}
SCALES_512: dict[ScaleTable, tuple[float, ...]] = {
    "voc": ssd_scales(7, 15, 90, levels=7),
    "coco": ssd_scales(4, 10, 90, levels=7),
}
RATIOS_300: Ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
RATIOS_512: Ratios = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
STEPS_300 = (8, 16, 32, 64, 100, 300)
STEPS_512 = (8, 16, 32, 64, 128, 256, 512)
PIXEL_SPREAD = 64.0  # deviation of pixels in 0 … 255; random first weights bring it to 1, as the later ones expect it
IMAGENET_MEAN_RGB = (123.0, 117.0, 104.0)  # of the ILSVRC-trained VGG16; no division by a deviation


class Extra(NamedTuple):
    """A pair of extra layers: 1×1 to `squeeze` channels, then `kernel`×`kernel` to `outputs`."""

    squeeze: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0


EXTRAS_300 = (
    Extra(256, 512, stride=2, padding=1),
    Extra(128, 256, stride=2, padding=1),
    Extra(128, 256),
    Extra(128, 256),
)
EXTRAS_512 = (
    Extra(256, 512, stride=2, padding=1),
    *[Extra(128, 256, stride=2, padding=1)] * 3,
    Extra(128, 256, kernel=4, padding=1),
)


class VGGFeatures(FeatureNetwork):
    """VGG16 up to conv4_3 and fc7, then extra levels.

    pool3 rounds sizes up (75 -> 38), pool5 is 3×3 with stride 1, fc6 and fc7 are convolutions (fc6 with dilation 6),
    and conv4_3 is L2-normalised before its head (paper section 3.1). No batch normalisation, as in the original.

    Args:
        extras: the levels after fc7.
        dilated: False halves the map once more before fc6, which then has dilation 3 (RefineDet's fc7 of stride 32);
            each map is then half of the finer one, rounded up.
        conv5_3: give this map too, between conv4_3 and fc7.
        norms: initial factors of the L2 normalisations of conv4_3 and, where it is given, conv5_3.
    """

    def __init__(
        self,
        extras: Sequence[Extra],
        *,
        dilated: bool = True,
        conv5_3: bool = False,
        norms: Sequence[float] = (20.0,),
    ) -> None:
        super().__init__()
        self.to_conv4_3 = nn.Sequential(
            _vgg_block(1, 3, 64, 2, pool=False),
            _vgg_block(2, 64, 128, 2),
            _vgg_block(3, 128, 256, 3),
            _vgg_block(4, 256, 512, 3, ceil=True),
        )
        self.conv4_3_norm = L2Norm(512, norms[0])
        self.conv5_3_norm = L2Norm(512, norms[1]) if conv5_3 else None
        dilation = 6 if dilated else 3
        self.to_fc7 = nn.Sequential(
            _vgg_block(5, 512, 512, 3, ceil=not dilated),
            nn.Sequential(
                OrderedDict(
                    pool5=nn.MaxPool2d(3, 1, padding=1) if dilated else nn.MaxPool2d(2, 2, ceil_mode=True),
                    fc6=nn.Conv2d(512, 1024, 3, padding=dilation, dilation=dilation),
                    relu6=nn.ReLU(inplace=True),
                    fc7=nn.Conv2d(1024, 1024, 1),
                    relu7=nn.ReLU(inplace=True),
                )
            ),
        )
        self.extras = nn.ModuleList()
        inputs = 1024
        for number, extra in enumerate(extras, start=8):
            self.extras.append(_extra(number, inputs, extra))
            inputs = extra.outputs
        fine = ("conv4_3", "conv5_3") if conv5_3 else ("conv4_3",)
        self.channels = (*(512 for _ in fine), 1024, *(extra.outputs for extra in extras))
        self.level_names = (*fine, "conv7 (fc7)", *(f"conv{n}_2" for n in range(8, 8 + len(extras))))
        for module in (*self.to_conv4_3.modules(), *self.to_fc7.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        first = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        with torch.no_grad():
            first.weight /= PIXEL_SPREAD
        for module in self.extras.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> conv4_3 and conv5_3 (normalised), fc7 and the extra maps."""
        conv4_3 = self.to_conv4_3(images)
        conv5_3 = self.to_fc7[0](conv4_3)
        x = self.to_fc7[1](conv5_3)
        maps = [self.conv4_3_norm(conv4_3), x]
        if self.conv5_3_norm is not None:
            maps.insert(1, self.conv5_3_norm(conv5_3))
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        return maps


def _vgg_block(
    number: int, inputs: int, outputs: int, convs: int, *, pool: bool = True, ceil: bool = False
) -> nn.Module:
    """conv{number}_1 … conv{number}_{convs}, each with ReLU, after the pooling that ends the block before."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if pool:
        layers[f"pool{number - 1}"] = nn.MaxPool2d(2, stride=2, ceil_mode=ceil)
    for i in range(1, convs + 1):
        layers[f"conv{number}_{i}"] = nn.Conv2d(inputs if i == 1 else outputs, outputs, 3, padding=1)
        # conv4_3 is read twice (by its L2Norm and by pool4), so no ReLU may overwrite what another layer still needs;
        # a ReLU that follows its own convolution never does.
        layers[f"relu{number}_{i}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _extra(number: int, inputs: int, extra: Extra) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            {
                f"conv{number}_1": nn.Conv2d(inputs, extra.squeeze, 1),
                f"relu{number}_1": nn.ReLU(inplace=True),
                f"conv{number}_2": nn.Conv2d(
                    extra.squeeze, extra.outputs, extra.kernel, stride=extra.stride, padding=extra.padding
                ),
                f"relu{number}_2": nn.ReLU(inplace=True),
            }
        )
    )


def _ssd_vgg(
    extras: Sequence[Extra],
    *,
    num_classes: int,
    size_hw: tuple[int, int],
    nominal: int,
    scales: Sequence[float],
    ratios: Ratios,
    steps: Sequence[float],
    clip: Clip,
    clip_boxes: BoxClip,
    mean: Sequence[float],
) -> DetectionNetwork:
    features = VGGFeatures(extras)
    spec = NetworkSpec(
        num_classes=num_classes,
        anchors=ssd_anchors(scales, ratios, steps=steps, nominal_size_hw=(nominal, nominal), clip=clip),
        preprocess=Preprocess((int(size_hw[0]), int(size_hw[1])), mean=(mean[0], mean[1], mean[2])),
        # Paper section 3.1 and released configuration: confidence 0.01, NMS 0.45, 400 a class into it, 200 a picture.
        postprocess=PostprocessSpec(
            activation="softmax", score_threshold=0.01, nms_iou=0.45, top_k=400, max_detections=200, clip=clip_boxes
        ),
    )
    head = MultiboxHead(features.channels, spec.anchors.boxes_per_cell, spec.outputs_per_box)
    return DetectionNetwork(features, [head], spec)


@register_model
def ssd300_vgg16(
    *,
    num_classes: int = 20,
    size_hw: tuple[int, int] = (300, 300),
    scales: ScaleTable | Sequence[float] = "voc",
    ratios: Ratios = RATIOS_300,
    clip: Clip = "none",
    clip_boxes: BoxClip = "after_nms",
    mean: Sequence[float] = IMAGENET_MEAN_RGB,
) -> DetectionNetwork:
    """SSD300: 38×38 … 1×1 maps, 8732 default boxes at 300×300.

    Args:
        num_classes: C, without background.
        size_hw: input (height, width); default boxes follow.
        scales: "voc" or "coco" for the released tables, or seven fractions of the input side.
        ratios: per level, the ratios besides 1; two more boxes for each.
        clip: of the default boxes; the original does not clip.
        clip_boxes: when detections are limited to the picture, "after_nms" as in the original or "before_nms".
        mean: RGB mean in 0 … 255.
    """
    return _ssd_vgg(
        EXTRAS_300,
        num_classes=num_classes,
        size_hw=size_hw,
        nominal=300,
        scales=SCALES_300[scales] if isinstance(scales, str) else scales,
        ratios=ratios,
        steps=STEPS_300,
        clip=clip,
        clip_boxes=clip_boxes,
        mean=mean,
    )


@register_model
def ssd512_vgg16(
    *,
    num_classes: int = 20,
    size_hw: tuple[int, int] = (512, 512),
    scales: ScaleTable | Sequence[float] = "voc",
    ratios: Ratios = RATIOS_512,
    clip: Clip = "none",
    clip_boxes: BoxClip = "after_nms",
    mean: Sequence[float] = IMAGENET_MEAN_RGB,
) -> DetectionNetwork:
    """SSD512: 64×64 … 1×1 maps, 24564 default boxes at 512×512. Arguments as for `ssd300_vgg16`, eight scales."""
    return _ssd_vgg(
        EXTRAS_512,
        num_classes=num_classes,
        size_hw=size_hw,
        nominal=512,
        scales=SCALES_512[scales] if isinstance(scales, str) else scales,
        ratios=ratios,
        steps=STEPS_512,
        clip=clip,
        clip_boxes=clip_boxes,
        mean=mean,
    )
