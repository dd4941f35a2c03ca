"""SSDLite with TensorFlow's conventions: on MobileNetV2 and on EfficientNet-Lite.

Sandler et al., 2018, section 6.2; padding, tapped maps and boxes as in the TensorFlow Object Detection API.
"""

from __future__ import annotations

from collections.abc import Sequence

from multibox.models.heads import MultiboxHead, depthwise_branch
from multibox.models.mobile import MOBILENET_V2, BlockRow, MobileFeatures, efficientnet_lite
from multibox.models.network import DetectionNetwork, NetworkSpec
from multibox.models.registry import register_model
from multibox.spec.anchors import tf_anchors
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess

__all__ = [
    "LITE0",
    "LITE1",
    "LITE2",
    "efficientnet_lite_preprocess",
    "mobilenet_preprocess",
    "ssdlite300_mobilenetv2",
    "ssdlite320_efficientnet_lite0",
    "ssdlite320_efficientnet_lite1",
    "ssdlite320_efficientnet_lite2",
]

LITE0 = efficientnet_lite(width=1.0, depth=1.0)
LITE1 = efficientnet_lite(width=1.0, depth=1.1)
LITE2 = efficientnet_lite(width=1.1, depth=1.2)


def mobilenet_preprocess(size_hw: Sequence[int]) -> Preprocess:
    """How the Object Detection API prepares pictures for MobileNet trunks: -1 … 1, its own way of resizing."""
    return Preprocess(
        (int(size_hw[0]), int(size_hw[1])), coordinates="asymmetric", mean=(127.5,) * 3, scale=(2 / 255,) * 3
    )


def efficientnet_lite_preprocess(size_hw: Sequence[int]) -> Preprocess:
    """How EfficientNet-Lite was trained: 127 taken off, then divided by 128."""
    return Preprocess((int(size_hw[0]), int(size_hw[1])), mean=(127.0,) * 3, scale=(1 / 128,) * 3)


def _ssdlite(
    rows: Sequence[BlockRow], preprocess: Preprocess, *, num_classes: int, trunk_norm: bool
) -> DetectionNetwork:
    features = MobileFeatures(rows, norm=trunk_norm)
    spec = NetworkSpec(
        num_classes=num_classes,
        anchors=tf_anchors(),
        preprocess=preprocess,
        postprocess=PostprocessSpec(
            activation="sigmoid", score_threshold=0.01, nms_iou=0.6, top_k=None, max_detections=100, clip="after_nms"
        ),
    )
    head = MultiboxHead(
        features.channels, spec.anchors.boxes_per_cell, spec.outputs_per_box, branch=depthwise_branch, sigmoid=True
    )
    return DetectionNetwork(features, [head], spec)


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
    return _ssdlite(MOBILENET_V2, mobilenet_preprocess(size_hw), num_classes=num_classes, trunk_norm=trunk_norm)


@register_model
def ssdlite320_efficientnet_lite0(
    *, num_classes: int = 80, size_hw: tuple[int, int] = (320, 320), trunk_norm: bool = True
) -> DetectionNetwork:
    """SSDLite320 on EfficientNet-Lite0: 20×20 … 1×1 maps, 2034 default boxes. Arguments as of SSDLite300."""
    return _ssdlite(LITE0, efficientnet_lite_preprocess(size_hw), num_classes=num_classes, trunk_norm=trunk_norm)


@register_model
def ssdlite320_efficientnet_lite1(
    *, num_classes: int = 80, size_hw: tuple[int, int] = (320, 320), trunk_norm: bool = True
) -> DetectionNetwork:
    """SSDLite320 on EfficientNet-Lite1, which is deeper. Arguments as of SSDLite300."""
    return _ssdlite(LITE1, efficientnet_lite_preprocess(size_hw), num_classes=num_classes, trunk_norm=trunk_norm)


@register_model
def ssdlite320_efficientnet_lite2(
    *, num_classes: int = 80, size_hw: tuple[int, int] = (320, 320), trunk_norm: bool = True
) -> DetectionNetwork:
    """SSDLite320 on EfficientNet-Lite2, which is deeper and wider. Arguments as of SSDLite300."""
    return _ssdlite(LITE2, efficientnet_lite_preprocess(size_hw), num_classes=num_classes, trunk_norm=trunk_norm)
