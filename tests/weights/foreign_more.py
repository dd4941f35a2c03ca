"""Further networks of other projects as plain functions; see `foreign_networks`."""

from __future__ import annotations

import torch
from foreign_networks import Random, Tensors, by_level, conv, norm
from torch import Tensor
from torch.nn import functional as F

R34_STAGES = (("model.layer1.4", 3, 64, 1), ("model.layer1.5", 4, 128, 2), ("model.layer2.0", 6, 256, 1))
R34_EXTRAS = ((256, 256, 512), (512, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256))
R34_BOXES = (4, 6, 6, 6, 4, 4)

# ------------------------------------------------------------------------------------------------ MLPerf's ResNet-34


def mlperf_tensors(outputs: int) -> Tensors:
    r = Random()
    r.conv("model.layer1.0", 3, 64, 7, bias=False)
    r.norm("model.layer1.1", 64)
    inputs = 64
    for stage, blocks, width, _ in R34_STAGES:
        for block in range(blocks):
            name = f"{stage}.{block}"
            r.conv(f"{name}.conv1", inputs, width, 3, bias=False)
            r.norm(f"{name}.bn1", width)
            r.conv(f"{name}.conv2", width, width, 3, bias=False)
            r.norm(f"{name}.bn2", width)
            r.tensors[f"{name}.bn2.weight"] *= 0.3  # so that the sums stay in range
            if inputs != width:
                r.conv(f"{name}.downsample.0", inputs, width, 1, bias=False)
                r.norm(f"{name}.downsample.1", width)
            inputs = width
    for number, (inputs, middle, wide) in enumerate(R34_EXTRAS):
        r.conv(f"additional_blocks.{number}.0", inputs, middle, 1)
        r.conv(f"additional_blocks.{number}.2", middle, wide, 3)
    for level, (wide, boxes) in enumerate(zip((256, 512, 512, 256, 256, 256), R34_BOXES, strict=True)):
        r.conv(f"loc.{level}", wide, boxes * 4, 3)
        r.conv(f"conf.{level}", wide, boxes * outputs, 3)
    return r.tensors


def mlperf_forward(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows run by level, box, cell. At 1200, heads have stride 3 and the fourth pair of extra layers stride 2."""
    large = x.shape[-1] == 1200
    x = F.relu(norm(t, "model.layer1.1", conv(t, "model.layer1.0", x, stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks, _, first in R34_STAGES:
        for block in range(blocks):
            name, stride = f"{stage}.{block}", first if block == 0 else 1
            y = F.relu(norm(t, f"{name}.bn1", conv(t, f"{name}.conv1", x, stride=stride, padding=1)))
            y = norm(t, f"{name}.bn2", conv(t, f"{name}.conv2", y, padding=1))
            if f"{name}.downsample.0.weight" in t:
                x = norm(t, f"{name}.downsample.1", conv(t, f"{name}.downsample.0", x, stride=stride))
            x = F.relu(x + y)
    maps = [x]
    for number in range(5):
        x = F.relu(conv(t, f"additional_blocks.{number}.0", x))
        window = {"stride": 2, "padding": 1} if number < 3 else {"stride": 2 if large and number == 3 else 1}
        x = F.relu(conv(t, f"additional_blocks.{number}.2", x, **window))
        maps.append(x)
    outputs = len(t["conf.0.bias"]) // 4
    found = []
    for name, width in (("loc", 4), ("conf", outputs)):
        parts = [conv(t, f"{name}.{level}", one, padding=1, stride=3 if large else 1) for level, one in enumerate(maps)]
        found.append(torch.cat([part.reshape(len(part), width, -1) for part in parts], dim=2).transpose(1, 2))
    return found[0], found[1]


# ------------------------------------------------------------------------------------------------ mmdetection's SSDLite

MMDET_STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
MMDET_EXTRAS = ((1280, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128))
MMDET_MAPS = (96, 1280, 512, 256, 256, 128)


def mmdet_norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    """With an epsilon of 0.001 in place of 0.00001."""
    return norm({**t, f"{name}.running_var": t[f"{name}.running_var"] + 1e-3 - 1e-5}, name, x)


def mmdet_lite_tensors(outputs: int) -> Tensors:
    r = Random()

    def unit(name: str, inputs: int, channels: int, kernel: int, groups: int = 1) -> None:
        r.conv(f"{name}.conv", inputs, channels, kernel, groups=groups, bias=False)
        r.norm(f"{name}.bn", channels)

    unit("backbone.conv1", 3, 32, 3)
    inputs = 32
    for layer, (wide, blocks, _) in enumerate(MMDET_STAGES, 1):
        for block in range(blocks):
            name, hidden = f"backbone.layer{layer}.{block}", inputs * (1 if layer == 1 else 6)
            if layer > 1:
                unit(f"{name}.expand_conv", inputs, hidden, 1)
            unit(f"{name}.depthwise_conv", hidden, hidden, 3, groups=hidden)
            unit(f"{name}.linear_conv", hidden, wide, 1)
            inputs = wide
    unit("backbone.conv2", 320, 1280, 1)
    for number, (inputs, hidden, wide) in enumerate(MMDET_EXTRAS):
        unit(f"neck.extra_layers.{number}.0", inputs, hidden, 1)
        unit(f"neck.extra_layers.{number}.1.depthwise_conv", hidden, hidden, 3, groups=hidden)
        unit(f"neck.extra_layers.{number}.1.pointwise_conv", hidden, wide, 1)
    for level, wide in enumerate(MMDET_MAPS):
        for name, width in (("reg_convs", 4), ("cls_convs", outputs)):
            unit(f"bbox_head.{name}.{level}.0", wide, wide, 3, groups=wide)
            r.conv(f"bbox_head.{name}.{level}.1", wide, 6 * width, 1)
    return r.tensors


def mmdet_lite_forward(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    def unit(name: str, x: Tensor, **window: int) -> Tensor:
        return mmdet_norm(t, f"{name}.bn", conv(t, f"{name}.conv", x, **window))

    x, maps = F.relu6(unit("backbone.conv1", x, stride=2, padding=1)), []
    for layer, (_, blocks, first) in enumerate(MMDET_STAGES, 1):
        for block in range(blocks):
            name, start = f"backbone.layer{layer}.{block}", x
            if layer > 1:
                x = F.relu6(unit(f"{name}.expand_conv", x))
            x = F.relu6(unit(f"{name}.depthwise_conv", x, stride=first if block == 0 else 1, padding=1))
            x = unit(f"{name}.linear_conv", x)
            if x.shape == start.shape and block:
                x = x + start
        if layer == 5:
            maps.append(x)
    x = F.relu6(unit("backbone.conv2", x))
    maps.append(x)
    for number in range(4):
        name = f"neck.extra_layers.{number}"
        x = F.relu6(unit(f"{name}.0", x))
        x = F.relu6(unit(f"{name}.1.depthwise_conv", x, stride=2, padding=1))
        x = F.relu6(unit(f"{name}.1.pointwise_conv", x))
        maps.append(x)

    def predict(level: int, x: Tensor, kind: str) -> Tensor:
        name = f"bbox_head.{kind}.{level}"
        return conv(t, f"{name}.1", F.relu6(unit(f"{name}.0", x, padding=1)))

    outputs = len(t["bbox_head.cls_convs.0.1.bias"]) // 6
    return (
        by_level(maps, lambda level, x: predict(level, x, "reg_convs"), 4),
        by_level(maps, lambda level, x: predict(level, x, "cls_convs"), outputs),
    )
