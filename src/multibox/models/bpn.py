"""Cascades on a pyramid: RefineDet (Zhang et al., 2018) and the Bidirectional Pyramid Network (arXiv 1803.08208).

The text of the second paper was not at hand. From its abstract and its figure come the bidirectional pyramid, the
levels of stride 8 to 64, and that each of three rows refines the boxes of the row before under a stricter overlap.
Reconstructed are the class scores of every stage and their mean, the layers, the default boxes (those of RefineDet) and
the loss (the plain sum over the stages); the overlaps are 0.5, 0.6 and 0.7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from multibox.core.matching import MatchOptions
from multibox.errors import OptionError
from multibox.models.features import FeatureNetwork
from multibox.models.heads import BranchFactory, MultiboxHead, conv3x3_branch, depthwise_branch
from multibox.models.mobile import MOBILENET_V2, BlockRow, MobileFeatures
from multibox.models.network import DetectionNetwork, NetworkSpec, StageSpec
from multibox.models.pyramid import PLAIN, SEPARABLE, SEPARABLE_WIDTH, WIDTH, Pyramid, PyramidLayers
from multibox.models.registry import register_model
from multibox.models.ssdlite import LITE0, efficientnet_lite_preprocess, mobilenet_preprocess
from multibox.models.vgg import IMAGENET_MEAN_RGB, Extra, VGGFeatures
from multibox.spec.anchors import AnchorSpec
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess

__all__ = [
    "bpn300_mobilenetv2",
    "bpn320_efficientnet_lite0",
    "bpn320_vgg16",
    "bpn512_vgg16",
    "refinedet320_vgg16",
    "refinedet512_vgg16",
]

IOUS = (0.5, 0.6, 0.7)
GATE = 0.01  # RefineDet, section 3.4: a default box is dropped when it is background with a probability above 0.99
SIZES_320 = (0.1, 0.2, 0.4, 0.8)  # four strides: 32, 64, 128, 256 of 320 pixels
SIZES_512 = (0.0625, 0.125, 0.25, 0.5)  # the same of 512 pixels
RATIOS = (2.0,)
CONV6 = (Extra(256, 512, stride=2, padding=1),)
NORMS = (10.0, 8.0)  # initial factors of the L2 normalisations


def _anchors(sizes: Sequence[float], ratios: Sequence[float]) -> AnchorSpec:
    """At each cell of a level a square, then two boxes of its area for each ratio; even division, no clipping."""
    roots = [math.sqrt(ratio) for ratio in ratios]
    return AnchorSpec(
        tuple(
            ((size, size), *(pair for r in roots for pair in ((size * r, size / r), (size / r, size * r))))
            for size in sizes
        )
    )


def _cascade(
    features: FeatureNetwork,
    *,
    num_classes: int,
    preprocess: Preprocess,
    postprocess: PostprocessSpec,
    stages: Sequence[StageSpec],
    anchors: AnchorSpec,
    layers: PyramidLayers,
    width: int,
    branch: BranchFactory,
) -> DetectionNetwork:
    spec = NetworkSpec(
        num_classes, anchors, preprocess, postprocess, stages=tuple(stages), mean_scores=stages[0].num_classes is None
    )
    neck = Pyramid(features.channels, features.level_names, width=width, layers=layers, stages=len(stages))
    sigmoid = postprocess.activation == "sigmoid"
    heads = [
        MultiboxHead(channels, anchors.boxes_per_cell, outputs, branch=branch, sigmoid=sigmoid)
        for channels, outputs in zip(neck.channels, spec.stage_outputs, strict=True)
    ]
    return DetectionNetwork(features, heads, spec, neck=neck)


def _bpn_stages(count: int, ious: Sequence[float]) -> list[StageSpec]:
    if not 1 <= count <= len(IOUS):
        raise OptionError(f"stages={count}: a bidirectional pyramid has 1 to {len(IOUS)}")
    if len(ious) < count:
        raise OptionError(f"ious={list(ious)}: one overlap for each of the {count} stages")
    return [StageSpec(matching=MatchOptions(positive_threshold=iou, negative_threshold=iou)) for iou in ious[:count]]


def _on_vgg16(
    num_classes: int, size_hw: Sequence[int], sizes: Sequence[float], stages: Sequence[StageSpec], width: int
) -> DetectionNetwork:
    return _cascade(
        VGGFeatures(CONV6, dilated=False, conv5_3=True, norms=NORMS),
        num_classes=num_classes,
        preprocess=Preprocess((int(size_hw[0]), int(size_hw[1])), mean=IMAGENET_MEAN_RGB),
        # RefineDet's released configuration.
        postprocess=PostprocessSpec(
            activation="softmax", score_threshold=0.01, nms_iou=0.45, top_k=1000, max_detections=500
        ),
        stages=stages,
        anchors=_anchors(sizes, RATIOS),
        layers=PLAIN,
        width=width,
        branch=conv3x3_branch,
    )


@register_model
def refinedet320_vgg16(*, num_classes: int = 20, size_hw: tuple[int, int] = (320, 320)) -> DetectionNetwork:
    """RefineDet320: two stages on 40×40 … 5×5 maps, 6375 default boxes at 320×320.

    The first stage tells objects from background and rejects default boxes; the second, on a top-down pyramid, refines
    what is left and tells the classes.

    Args:
        num_classes: C, without background.
        size_hw: input (height, width); default boxes follow.
    """
    return _on_vgg16(num_classes, size_hw, SIZES_320, [StageSpec(num_classes=1, gate=GATE), StageSpec()], WIDTH)


@register_model
def refinedet512_vgg16(*, num_classes: int = 20, size_hw: tuple[int, int] = (512, 512)) -> DetectionNetwork:
    """RefineDet512: 64×64 … 8×8 maps, 16320 default boxes at 512×512. Arguments as for `refinedet320_vgg16`."""
    return _on_vgg16(num_classes, size_hw, SIZES_512, [StageSpec(num_classes=1, gate=GATE), StageSpec()], WIDTH)


@register_model
def bpn320_vgg16(
    *,
    num_classes: int = 20,
    size_hw: tuple[int, int] = (320, 320),
    stages: int = 3,
    ious: Sequence[float] = IOUS,
    width: int = WIDTH,
) -> DetectionNetwork:
    """Bidirectional Pyramid Network on VGG16: three stages on 40×40 … 5×5 maps, 6375 default boxes at 320×320.

    Which parts are the paper's and which are reconstructed is said at the top of this module.

    Args:
        num_classes: C, without background.
        size_hw: input (height, width); default boxes follow.
        stages: 3, or 2 without the bottom-up row, or 1 on the features alone.
        ious: for each stage, the overlap from which a box answers for an object.
        width: channels of the pyramid.
    """
    return _on_vgg16(num_classes, size_hw, SIZES_320, _bpn_stages(stages, ious), width)


@register_model
def bpn512_vgg16(
    *,
    num_classes: int = 20,
    size_hw: tuple[int, int] = (512, 512),
    stages: int = 3,
    ious: Sequence[float] = IOUS,
    width: int = WIDTH,
) -> DetectionNetwork:
    """The same at 512×512: 64×64 … 8×8 maps, 16320 default boxes. Arguments as for `bpn320_vgg16`."""
    return _on_vgg16(num_classes, size_hw, SIZES_512, _bpn_stages(stages, ious), width)


@register_model
def bpn300_mobilenetv2(
    *,
    num_classes: int = 80,
    size_hw: tuple[int, int] = (300, 300),
    trunk_norm: bool = True,
    stages: int = 3,
    ious: Sequence[float] = IOUS,
    width: int = SEPARABLE_WIDTH,
    sizes: Sequence[float] = SIZES_320,
    ratios: Sequence[float] = RATIOS,
) -> DetectionNetwork:
    """The bidirectional pyramid on MobileNetV2: three stages on 38×38 … 5×5 maps, 5790 default boxes, sigmoid scores.

    Its trunk is that of `ssdlite300_mobilenetv2`, whose weights it can start from, read at stride 8 too.

    Args:
        num_classes: C; no background output.
        size_hw: input (height, width); default boxes follow.
        trunk_norm: batch normalisation in the trunk. False for weights it has been folded into.
        stages: 3, or 2 without the bottom-up row, or 1 on the features alone.
        ious: for each stage, the overlap from which a box answers for an object.
        width: channels of the pyramid.
        sizes: side of the square default box of each level, as a part of the shorter side of the input.
        ratios: width : height of the others; two for each.
    """
    return _on_mobile(
        MOBILENET_V2,
        mobilenet_preprocess(size_hw),
        num_classes=num_classes,
        trunk_norm=trunk_norm,
        stages=_bpn_stages(stages, ious),
        width=width,
        anchors=_anchors(sizes, ratios),
    )


@register_model
def bpn320_efficientnet_lite0(
    *,
    num_classes: int = 80,
    size_hw: tuple[int, int] = (320, 320),
    trunk_norm: bool = True,
    stages: int = 3,
    ious: Sequence[float] = IOUS,
    width: int = SEPARABLE_WIDTH,
    sizes: Sequence[float] = SIZES_320,
    ratios: Sequence[float] = RATIOS,
) -> DetectionNetwork:
    """The same on EfficientNet-Lite0: 40×40 … 5×5 maps, 6375 default boxes. Arguments as for `bpn300_mobilenetv2`."""
    return _on_mobile(
        LITE0,
        efficientnet_lite_preprocess(size_hw),
        num_classes=num_classes,
        trunk_norm=trunk_norm,
        stages=_bpn_stages(stages, ious),
        width=width,
        anchors=_anchors(sizes, ratios),
    )


def _on_mobile(
    rows: Sequence[BlockRow],
    preprocess: Preprocess,
    *,
    num_classes: int,
    trunk_norm: bool,
    stages: Sequence[StageSpec],
    width: int,
    anchors: AnchorSpec,
) -> DetectionNetwork:
    return _cascade(
        MobileFeatures(rows, norm=trunk_norm, fine=True, extras=1),
        num_classes=num_classes,
        preprocess=preprocess,
        postprocess=PostprocessSpec(
            activation="sigmoid", score_threshold=0.01, nms_iou=0.5, top_k=400, max_detections=100, clip="before_nms"
        ),
        stages=stages,
        anchors=anchors,
        layers=SEPARABLE,
        width=width,
        branch=depthwise_branch,
    )
