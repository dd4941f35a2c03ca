"""SSD and SSDLite on a classification network of torchvision or timm, by its name and the layers to read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multibox.errors import MissingDependencyError, OptionError, did_you_mean
from multibox.models.features import FeatureNetwork
from multibox.models.heads import MultiboxHead, conv3x3_branch, depthwise_branch
from multibox.models.network import DetectionNetwork, NetworkSpec
from multibox.models.registry import register_model
from multibox.spec.anchors import ssd_anchors
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import imagenet_preprocess

__all__ = [
    "BackboneFeatures",
    "ssd300_resnet34",
    "ssd300_resnet50",
    "ssd512_resnet34",
    "ssd512_resnet50",
    "ssd_backbone",
    "ssdlite320_mobilenetv3_large",
]

Taps = Sequence[str] | Sequence[int]
Kind = Literal["ssd", "ssdlite"]

PROBE = 256  # pixels of the input with which strides are measured
STRIDES = (16, 32)  # read where no taps are given
EXTRA_CHANNELS = (512, 256, 256, 256, 128)
SCALES = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9)  # sides of the default boxes of six levels, as in SSD300 on VOC
LAST_SCALE = 1.075
TIMM = "timm/"


class BackboneFeatures(FeatureNetwork):
    """A classification network without its classifier, read at some layers, and extra levels of half the size each.

    Args:
        name: of torchvision ("resnet50"), or of timm with "timm/" before it ("timm/mobilenetv3_large_100").
        taps: names of torchvision's layers (of `torchvision.models.feature_extraction.get_graph_node_names`), or
            numbers of timm's levels; by default the last layers of stride 16 and 32.
        levels: of all maps; those after the taps are extra.
        separable: extra levels of depthwise convolutions, as in SSDLite.
        fine: by default, read stride 8 as well.
        stride_1: names of torchvision's stages whose stride is taken out, so that their maps stay as large.
    """

    def __init__(
        self,
        name: str,
        taps: Taps | None = None,
        *,
        levels: int = 6,
        separable: bool = False,
        fine: bool = False,
        stride_1: Sequence[str] = (),
    ) -> None:
        super().__init__()
        strides = (8, *STRIDES) if fine else STRIDES
        make = _of_timm if name.startswith(TIMM) else _of_torchvision
        self.trunk, names = make(name, taps, strides, stride_1)
        with torch.no_grad():
            maps = _maps(self.trunk.eval(), torch.zeros(1, 3, PROBE, PROBE))
        self.trunk.train()
        if levels < len(maps):
            raise OptionError(f"levels={levels}, but {len(maps)} layers are read")
        widths = [m.shape[1] for m in maps]
        self.extras = nn.ModuleList()
        for width in EXTRA_CHANNELS[: levels - len(maps)]:
            self.extras.append(_extra(widths[-1], width, separable=separable))
            widths.append(width)
        if len(widths) < levels:
            raise OptionError(f"levels={levels}: at most {len(maps) + len(EXTRA_CHANNELS)} with {len(maps)} layers")
        self.channels = tuple(widths)
        self.level_names = (*names, *(f"extra_{number}" for number in range(1, 1 + len(self.extras))))

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one map per level."""
        maps = _maps(self.trunk, images)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


def _maps(trunk: nn.Module, images: Tensor) -> list[Tensor]:
    found: Any = trunk(images)
    return list(found.values()) if isinstance(found, dict) else list(found)


def _of_torchvision(
    name: str, taps: Taps | None, strides: Sequence[int], stride_1: Sequence[str]
) -> tuple[nn.Module, list[str]]:
    from torchvision.models import get_model, list_models
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    known = list_models(module=__import__("torchvision.models", fromlist=["models"]))
    if name not in known:
        raise OptionError(f"backbone={name!r}: torchvision has no such network; {did_you_mean(name, known)}")
    network = get_model(name, weights=None).eval()
    for stage in stride_1:
        for module in network.get_submodule(stage).modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that differ between training and evaluation, of dropout alone
        nodes = get_graph_node_names(network)[1]
        if taps is None:
            every = create_feature_extractor(network, nodes)
            with torch.no_grad():
                found = every(torch.zeros(1, 3, PROBE, PROBE))
            maps = {key: m.shape for key, m in found.items() if isinstance(m, Tensor) and m.ndim == 4}
            last = {PROBE // shape[2]: key for key, shape in maps.items() if shape[2] == shape[3]}  # channels first
            missing = [stride for stride in strides if stride not in last]
            if missing:
                raise OptionError(f"backbone={name}: no map of stride {missing[0]}; give taps, names of its layers")
            names = [last[stride] for stride in strides]
        else:
            names = [str(tap) for tap in taps]
        try:
            return create_feature_extractor(network, names), names
        except ValueError as error:
            raise OptionError(f"backbone={name}: {error}") from None


def _of_timm(
    name: str, taps: Taps | None, strides: Sequence[int], stride_1: Sequence[str]
) -> tuple[nn.Module, list[str]]:
    try:
        import timm
    except ImportError:
        raise MissingDependencyError("timm", f"backbone={name}", "backbones") from None
    if stride_1:
        raise OptionError("stride_1 is for torchvision's networks")
    name = name.removeprefix(TIMM)
    if not timm.is_model(name):
        raise OptionError(f"backbone={name!r}: timm has no such network; {did_you_mean(name, timm.list_models())}")
    found: Any = timm.create_model(name, pretrained=False, features_only=True).feature_info
    wanted = [int(tap) for tap in taps] if taps is not None else []
    if taps is None:
        reductions = found.reduction()
        missing = [stride for stride in strides if stride not in reductions]
        if missing:
            raise OptionError(f"backbone={TIMM}{name}: no map of stride {missing[0]}; give taps, numbers of its levels")
        wanted = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides]
    trunk = timm.create_model(name, pretrained=False, features_only=True, out_indices=tuple(wanted))
    info: Any = trunk.feature_info
    return trunk, [one["module"] for one in info.get_dicts()]


def _extra(inputs: int, outputs: int, *, separable: bool) -> nn.Module:
    """Half as many channels by 1×1, then 3×3 with stride 2; normalised, as in the ports of SSD to ResNet."""
    squeeze = outputs // 2
    if separable:
        second = [_conv(squeeze, squeeze, 3, stride=2, groups=squeeze), _conv(squeeze, outputs, 1)]
    else:
        second = [_conv(squeeze, outputs, 3, stride=2)]
    return nn.Sequential(_conv(inputs, squeeze, 1), *second)


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _detector(
    features: BackboneFeatures, *, num_classes: int, size_hw: Sequence[int], kind: Kind, scales: Sequence[float]
) -> DetectionNetwork:
    levels = len(features.channels)
    if kind not in ("ssd", "ssdlite"):
        raise OptionError(f"kind={kind!r} is unknown; known: ssd, ssdlite")
    if len(scales) != levels + 1:
        raise OptionError(f"{len(scales)} scales for {levels} levels; give one more than levels")
    ratios = [(2.0,) if number in (0, levels - 1) else (2.0, 3.0) for number in range(levels)]
    spec = NetworkSpec(
        num_classes=num_classes,
        anchors=ssd_anchors(scales, ratios),
        preprocess=imagenet_preprocess(size_hw),
        postprocess=PostprocessSpec(
            activation="softmax", score_threshold=0.01, nms_iou=0.45, top_k=400, max_detections=200, clip="after_nms"
        ),
    )
    branch = depthwise_branch if kind == "ssdlite" else conv3x3_branch
    head = MultiboxHead(features.channels, spec.anchors.boxes_per_cell, spec.outputs_per_box, branch=branch)
    return DetectionNetwork(features, [head], spec)


@register_model
def ssd_backbone(
    *,
    backbone: str = "resnet18",
    taps: Taps | None = None,
    kind: Kind = "ssd",
    levels: int = 6,
    fine: bool = False,
    scales: Sequence[float] | None = None,
    num_classes: int = 20,
    size_hw: tuple[int, int] = (320, 320),
) -> DetectionNetwork:
    """SSD on any classification network: maps of stride 16 and 32, then extra ones of half the size each.

    Args:
        backbone: a network of torchvision ("resnet50"), or of timm with "timm/" before it.
        taps: names of torchvision's layers, or numbers of timm's levels, to read instead; finest first.
        kind: "ssd" for plain convolutions after the backbone, "ssdlite" for depthwise ones.
        levels: of all maps.
        fine: read stride 8 as well.
        scales: levels + 1 fractions of the input side; those of SSD300, spread over the levels, when left out.
        num_classes: C, without background.
        size_hw: input (height, width); default boxes follow.
    """
    features = BackboneFeatures(backbone, taps, levels=levels, separable=kind == "ssdlite", fine=fine)
    return _detector(
        features, num_classes=num_classes, size_hw=size_hw, kind=kind, scales=scales or _spread_scales(levels)
    )


def _spread_scales(levels: int) -> list[float]:
    """SSD300's scales for six levels; for another number, as many between the same ends."""
    if levels == len(SCALES):
        return [*SCALES, LAST_SCALE]
    low, high = SCALES[0], SCALES[-1]
    step = (high - low) / max(1, levels - 1)
    return [low + step * number for number in range(levels + 1)]


def _on_resnet(name: str, num_classes: int, size_hw: Sequence[int], levels: int) -> DetectionNetwork:
    """The trunk ends with its third stage, whose stride is taken out: maps of stride 8, then of half the size each."""
    features = BackboneFeatures(name, ["layer3"], levels=levels, stride_1=["layer3"])
    return _detector(features, num_classes=num_classes, size_hw=size_hw, kind="ssd", scales=_spread_scales(levels))


@register_model
def ssd300_resnet34(*, num_classes: int = 20, size_hw: tuple[int, int] = (300, 300)) -> DetectionNetwork:
    """SSD300 on ResNet-34: 38×38 … 2×2 maps. The stride of the third stage is taken out, as in NVIDIA's and MLPerf's.

    Args:
        num_classes: C, without background.
        size_hw: input (height, width); default boxes follow.
    """
    return _on_resnet("resnet34", num_classes, size_hw, levels=6)


@register_model
def ssd300_resnet50(*, num_classes: int = 20, size_hw: tuple[int, int] = (300, 300)) -> DetectionNetwork:
    """SSD300 on ResNet-50. Arguments as for `ssd300_resnet34`."""
    return _on_resnet("resnet50", num_classes, size_hw, levels=6)


@register_model
def ssd512_resnet34(*, num_classes: int = 20, size_hw: tuple[int, int] = (512, 512)) -> DetectionNetwork:
    """SSD512 on ResNet-34: 64×64 … 2×2 maps. Arguments as for `ssd300_resnet34`."""
    return _on_resnet("resnet34", num_classes, size_hw, levels=6)


@register_model
def ssd512_resnet50(*, num_classes: int = 20, size_hw: tuple[int, int] = (512, 512)) -> DetectionNetwork:
    """SSD512 on ResNet-50: 64×64 … 2×2 maps. Arguments as for `ssd300_resnet34`."""
    return _on_resnet("resnet50", num_classes, size_hw, levels=6)


@register_model
def ssdlite320_mobilenetv3_large(*, num_classes: int = 20, size_hw: tuple[int, int] = (320, 320)) -> DetectionNetwork:
    """SSDLite320 on MobileNetV3-Large: 20×20 … 1×1 maps, read where torchvision's detector reads them.

    Args:
        num_classes: C, without background.
        size_hw: input (height, width); default boxes follow.
    """
    features = BackboneFeatures("mobilenet_v3_large", separable=True)
    return _detector(features, num_classes=num_classes, size_hw=size_hw, kind="ssdlite", scales=_spread_scales(6))
