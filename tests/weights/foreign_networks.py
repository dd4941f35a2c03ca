"""Other projects' networks as plain functions of their own state dicts: slow, obvious, and nothing of the importers.

Each is a pair of functions: `tensors(outputs)` makes a random state dict with that project's names and shapes, and
`forward(tensors, images)` gives its offsets [B, A, 4] and scores [B, A, outputs] in its own order of rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]
VGG = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256)]
VGG += [(17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512)]
VGG_BOXES = {6: (4, 6, 6, 6, 4, 4), 7: (4, 6, 6, 6, 6, 4, 4)}


class Random:
    """Fills a state dict."""

    def __init__(self, seed: int = 0) -> None:
        self.tensors: Tensors = {}
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * scale

    def conv(self, name: str, inputs: int, outputs: int, kernel: int, *, groups: int = 1, bias: bool = True) -> None:
        fan = inputs // groups * kernel * kernel
        self.tensors[f"{name}.weight"] = self.normal(outputs, inputs // groups, kernel, kernel, scale=(2 / fan) ** 0.5)
        if bias:
            self.tensors[f"{name}.bias"] = self.normal(outputs, scale=0.1)

    def norm(self, name: str, channels: int) -> None:
        self.tensors[f"{name}.weight"] = 1 + self.normal(channels, scale=0.1)
        self.tensors[f"{name}.bias"] = self.normal(channels, scale=0.1)
        self.tensors[f"{name}.running_mean"] = self.normal(channels, scale=0.1)
        self.tensors[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=self.generator)
        self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)


def conv(t: Tensors, name: str, x: Tensor, **window: int) -> Tensor:
    weight = t[f"{name}.weight"]
    return F.conv2d(x, weight, t.get(f"{name}.bias"), groups=x.shape[1] // weight.shape[1], **window)


def norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    mean, var = t[f"{name}.running_mean"], t[f"{name}.running_var"]
    scaled = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
    return scaled * t[f"{name}.weight"][:, None, None] + t[f"{name}.bias"][:, None, None]


def rows(x: Tensor, width: int) -> Tensor:
    """By cell, then box: the usual order."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, width)


def by_level(maps: list[Tensor], predict: Callable[[int, Tensor], Tensor], width: int) -> Tensor:
    return torch.cat([rows(predict(level, one), width) for level, one in enumerate(maps)], dim=1)


# ------------------------------------------------------------------------------------------------ VGG16


def vgg_tensors(
    trunk: str, extra: Callable[[int, int], str], offsets: str, logits: str, outputs: int, levels: int = 6
) -> Random:
    r = Random()
    for place, inputs, channels in [*VGG, (33, 1024, 1024)]:
        r.conv(trunk.format(place), inputs, channels, 1 if place == 33 else 3)
    r.conv(trunk.format(31), 512, 1024, 3)
    inputs, channels = 1024, [512, 1024]
    for pair in range(levels - 2):
        middle, wide = (256, 512) if pair == 0 else (128, 256)
        r.conv(extra(pair, 0), inputs, middle, 1)
        r.conv(extra(pair, 1), middle, wide, 4 if levels == 7 and pair == 4 else 3)
        inputs = wide
        channels.append(wide)
    for level, (wide, boxes) in enumerate(zip(channels, VGG_BOXES[levels], strict=True)):
        r.conv(offsets.format(level), wide, boxes * 4, 3)
        r.conv(logits.format(level), wide, boxes * outputs, 3)
    return r


def vgg_maps(
    t: Tensors,
    x: Tensor,
    trunk: str,
    extra: Callable[[int, int], str],
    normalise: Callable[[Tensor], Tensor],
    levels: int,
) -> list[Tensor]:
    maps = []
    for place, _, _ in VGG:
        if place in (5, 10, 24):
            x = F.max_pool2d(x, 2)
        if place == 17:
            x = F.max_pool2d(x, 2, ceil_mode=True)
        x = F.relu(conv(t, trunk.format(place), x, padding=1))
        if place == 21:
            maps.append(normalise(x))
    x = F.max_pool2d(x, 3, stride=1, padding=1)
    x = F.relu(conv(t, trunk.format(31), x, padding=6, dilation=6))
    x = F.relu(conv(t, trunk.format(33), x))
    maps.append(x)
    for pair in range(levels - 2):
        x = F.relu(conv(t, extra(pair, 0), x))
        halved = pair < (2 if levels == 6 else 4)
        window = {"stride": 2, "padding": 1} if halved else {"padding": 1 if levels == 7 else 0}
        x = F.relu(conv(t, extra(pair, 1), x, **window))
        maps.append(x)
    return maps


def l2(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) * weight[:, None, None]


def vgg_port(
    trunk: str, scale: str, extra: Callable[[int, int], str], offsets: str, logits: str, levels: int = 6
) -> tuple[Callable[[int], Tensors], Callable[[Tensors, Tensor], tuple[Tensor, Tensor]]]:
    def tensors(outputs: int) -> Tensors:
        r = vgg_tensors(trunk, extra, offsets, logits, outputs, levels)
        if scale == "source_layer_add_ons.0":
            r.norm(scale, 512)
        else:
            r.tensors[f"{scale}.weight"] = 2 + r.normal(512, scale=0.3)
        return r.tensors

    def forward(t: Tensors, images: Tensor) -> tuple[Tensor, Tensor]:
        batch_norm = f"{scale}.running_var" in t
        maps = vgg_maps(
            t, images, trunk, extra, (lambda x: norm(t, scale, x)) if batch_norm else l2(t[f"{scale}.weight"]), levels
        )
        outputs = len(t[f"{logits.format(0)}.weight"]) // 4
        heads = ((offsets, 4), (logits, outputs))
        return tuple(  # type: ignore[return-value]
            by_level(maps, lambda level, x, name=name: conv(t, name.format(level), x, padding=1), width)
            for name, width in heads
        )

    return tensors, forward


# ------------------------------------------------------------------------------------------------ pytorch-ssd


def mobilenet_v1(lite: bool) -> tuple[Callable[[int], Tensors], Callable[[Tensors, Tensor], tuple[Tensor, Tensor]]]:
    widths = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    widths += [(512, 512, 1)] * 5 + [(512, 1024, 2), (1024, 1024, 1)]
    extras = [(1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256)]

    def tensors(outputs: int) -> Tensors:
        r = Random()
        r.conv("base_net.0.0", 3, 32, 3, bias=False)
        r.norm("base_net.0.1", 32)
        for number, (inputs, channels, _) in enumerate(widths, 1):
            r.conv(f"base_net.{number}.0", inputs, inputs, 3, groups=inputs, bias=False)
            r.norm(f"base_net.{number}.1", inputs)
            r.conv(f"base_net.{number}.3", inputs, channels, 1, bias=False)
            r.norm(f"base_net.{number}.4", channels)
        for number, (inputs, middle, channels) in enumerate(extras):
            r.conv(f"extras.{number}.0", inputs, middle, 1)
            if lite:
                r.conv(f"extras.{number}.2.0", middle, middle, 3, groups=middle)
                r.conv(f"extras.{number}.2.2", middle, channels, 1)
            else:
                r.conv(f"extras.{number}.2", middle, channels, 3)
        for level, channels in enumerate((512, 1024, 512, 256, 256, 256)):
            for name, width in (("regression_headers", 4), ("classification_headers", outputs)):
                if lite and level < 5:
                    r.conv(f"{name}.{level}.0", channels, channels, 3, groups=channels)
                    r.conv(f"{name}.{level}.2", channels, 6 * width, 1)
                else:
                    r.conv(f"{name}.{level}", channels, 6 * width, 1 if lite else 3)
        return r.tensors

    def forward(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        x = F.relu(norm(t, "base_net.0.1", conv(t, "base_net.0.0", x, stride=2, padding=1)))
        for number, (_, _, stride) in enumerate(widths, 1):
            name = f"base_net.{number}"
            x = F.relu(norm(t, f"{name}.1", conv(t, f"{name}.0", x, stride=stride, padding=1)))
            x = F.relu(norm(t, f"{name}.4", conv(t, f"{name}.3", x)))
            if number in (11, 13):
                maps.append(x)
        for number in range(4):
            x = F.relu(conv(t, f"extras.{number}.0", x))
            if lite:
                x = F.relu(conv(t, f"extras.{number}.2.0", x, stride=2, padding=1))
                x = F.relu(conv(t, f"extras.{number}.2.2", x))
            else:
                x = F.relu(conv(t, f"extras.{number}.2", x, stride=2, padding=1))
            maps.append(x)

        def predict(name: str) -> Callable[[int, Tensor], Tensor]:
            def one(level: int, x: Tensor) -> Tensor:
                if lite and level < 5:
                    return conv(t, f"{name}.{level}.2", F.relu(conv(t, f"{name}.{level}.0", x, padding=1)))
                return conv(t, f"{name}.{level}", x, padding=0 if lite else 1)

            return one

        outputs = len(t["classification_headers.5.bias"]) // 6
        return by_level(maps, predict("regression_headers"), 4), by_level(
            maps, predict("classification_headers"), outputs
        )

    return tensors, forward


def _mobilenet_v2_blocks() -> Iterator[tuple[str, int, int, int, int, str]]:
    """Prefix of the tensors, inputs, hidden, outputs, stride, prefix for messages; extras included."""
    number, inputs = 1, 32
    for expansion, outputs, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for repeat in range(repeats):
            yield f"base_net.{number}.conv", inputs, inputs * expansion, outputs, stride if repeat == 0 else 1, "trunk"
            number, inputs = number + 1, outputs
    for number, (inputs, outputs, expansion) in enumerate(
        ((1280, 512, 0.2), (512, 256, 0.25), (256, 256, 0.5), (256, 64, 0.25))
    ):
        yield f"extras.{number}.conv", inputs, round(inputs * expansion), outputs, 2, "extra"


def mobilenet_v2_lite() -> tuple[Callable[[int], Tensors], Callable[[Tensors, Tensor], tuple[Tensor, Tensor]]]:
    channels = (576, 1280, 512, 256, 256, 64)

    def tensors(outputs: int) -> Tensors:
        r = Random()
        r.conv("base_net.0.0", 3, 32, 3, bias=False)
        r.norm("base_net.0.1", 32)
        for name, inputs, hidden, wide, _, _ in _mobilenet_v2_blocks():
            steps = [(hidden, hidden, 3, hidden), (hidden, wide, 1, 1)]
            if hidden != inputs:
                steps.insert(0, (inputs, hidden, 1, 1))
            for number, (one, other, kernel, groups) in enumerate(steps):
                r.conv(f"{name}.{3 * number}", one, other, kernel, groups=groups, bias=False)
                r.norm(f"{name}.{3 * number + 1}", other)
        r.conv("base_net.18.0", 320, 1280, 1, bias=False)
        r.norm("base_net.18.1", 1280)
        for level, wide in enumerate(channels):
            for name, width in (("regression_headers", 4), ("classification_headers", outputs)):
                if level == 5:
                    r.conv(f"{name}.{level}", wide, 6 * width, 1)
                    continue
                r.conv(f"{name}.{level}.0", wide, wide, 3, groups=wide)
                r.norm(f"{name}.{level}.1", wide)
                r.conv(f"{name}.{level}.3", wide, 6 * width, 1)
        return r.tensors

    def forward(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        x = F.relu6(norm(t, "base_net.0.1", conv(t, "base_net.0.0", x, stride=2, padding=1)))
        for name, inputs, hidden, wide, stride, kind in _mobilenet_v2_blocks():
            if name == "extras.0.conv":
                x = F.relu6(norm(t, "base_net.18.1", conv(t, "base_net.18.0", x)))
                maps.append(x)
            before, at = x, 0
            if hidden != inputs:
                x = F.relu6(norm(t, f"{name}.1", conv(t, f"{name}.0", x)))
                at = 3
            if name == "base_net.14.conv":
                maps.append(x)
            x = F.relu6(norm(t, f"{name}.{at + 1}", conv(t, f"{name}.{at}", x, stride=stride, padding=1)))
            x = norm(t, f"{name}.{at + 4}", conv(t, f"{name}.{at + 3}", x))
            if stride == 1 and inputs == wide:
                x = x + before
            if kind == "extra":
                maps.append(x)

        def predict(name: str) -> Callable[[int, Tensor], Tensor]:
            def one(level: int, x: Tensor) -> Tensor:
                if level == 5:
                    return conv(t, f"{name}.5", x)
                inner = F.relu6(norm(t, f"{name}.{level}.1", conv(t, f"{name}.{level}.0", x, padding=1)))
                return conv(t, f"{name}.{level}.3", inner)

            return one

        outputs = len(t["classification_headers.5.bias"]) // 6
        return by_level(maps, predict("regression_headers"), 4), by_level(
            maps, predict("classification_headers"), outputs
        )

    return tensors, forward


# ------------------------------------------------------------------------------------------------ NVIDIA's ResNet-50

RESNET = "feature_extractor.feature_extractor"
STAGES = ((4, 3, 64, 1), (5, 4, 128, 2), (6, 6, 256, 1))
NVIDIA_EXTRAS = ((1024, 256, 512), (512, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256))
NVIDIA_BOXES = (4, 6, 6, 6, 4, 4)


def nvidia_tensors(outputs: int) -> Tensors:
    r = Random()
    r.conv(f"{RESNET}.0", 3, 64, 7, bias=False)
    r.norm(f"{RESNET}.1", 64)
    inputs = 64
    for place, blocks, width, _ in STAGES:
        for block in range(blocks):
            name = f"{RESNET}.{place}.{block}"
            steps = [(1, inputs, width, 1), (2, width, width, 3), (3, width, 4 * width, 1)]
            for number, one, other, kernel in steps:
                r.conv(f"{name}.conv{number}", one, other, kernel, bias=False)
                r.norm(f"{name}.bn{number}", other)
            r.tensors[f"{name}.bn3.weight"] *= 0.3  # so that sixteen sums stay in range
            if block == 0:
                r.conv(f"{name}.downsample.0", inputs, 4 * width, 1, bias=False)
                r.norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    for number, (inputs, middle, wide) in enumerate(NVIDIA_EXTRAS):
        r.conv(f"additional_blocks.{number}.0", inputs, middle, 1, bias=False)
        r.norm(f"additional_blocks.{number}.1", middle)
        r.conv(f"additional_blocks.{number}.3", middle, wide, 3, bias=False)
        r.norm(f"additional_blocks.{number}.4", wide)
    for level, (wide, boxes) in enumerate(zip((1024, 512, 512, 256, 256, 256), NVIDIA_BOXES, strict=True)):
        r.conv(f"loc.{level}", wide, boxes * 4, 3)
        r.conv(f"conf.{level}", wide, boxes * outputs, 3)
    return r.tensors


def nvidia_forward(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows run by level, box, cell: all cells of a level's first box, then those of its second."""
    x = F.relu(norm(t, f"{RESNET}.1", conv(t, f"{RESNET}.0", x, stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for place, blocks, _, first in STAGES:
        for block in range(blocks):
            name, stride = f"{RESNET}.{place}.{block}", first if block == 0 else 1
            y = F.relu(norm(t, f"{name}.bn1", conv(t, f"{name}.conv1", x)))
            y = F.relu(norm(t, f"{name}.bn2", conv(t, f"{name}.conv2", y, stride=stride, padding=1)))
            y = norm(t, f"{name}.bn3", conv(t, f"{name}.conv3", y))
            if block == 0:
                x = norm(t, f"{name}.downsample.1", conv(t, f"{name}.downsample.0", x, stride=stride))
            x = F.relu(x + y)
    maps = [x]
    for number in range(5):
        name = f"additional_blocks.{number}"
        x = F.relu(norm(t, f"{name}.1", conv(t, f"{name}.0", x)))
        window = {"stride": 2, "padding": 1} if number < 3 else {}
        x = F.relu(norm(t, f"{name}.4", conv(t, f"{name}.3", x, **window)))
        maps.append(x)
    outputs = len(t["conf.0.bias"]) // 4
    found = []
    for name, width in (("loc", 4), ("conf", outputs)):
        parts = [conv(t, f"{name}.{level}", one, padding=1) for level, one in enumerate(maps)]
        found.append(torch.cat([part.reshape(len(part), width, -1) for part in parts], dim=2).transpose(1, 2))
    return found[0], found[1]


def priors(
    sizes: list[float], ratios: list[list[int]], maps: list[int], steps: list[int], side: int, *, clamp: bool
) -> Tensor:
    """The PyTorch ports' default boxes, [A, 4] as centre and size, by the loops of their papers."""
    found = []
    for level, cells in enumerate(maps):
        small, large = sizes[level] / side, sizes[level + 1] / side
        for row in range(cells):
            for column in range(cells):
                at = [(column + 0.5) * steps[level] / side, (row + 0.5) * steps[level] / side]
                found.append([*at, small, small])
                found.append([*at, math.sqrt(small * large), math.sqrt(small * large)])
                for ratio in ratios[level]:
                    found.append([*at, small * math.sqrt(ratio), small / math.sqrt(ratio)])
                    found.append([*at, small / math.sqrt(ratio), small * math.sqrt(ratio)])
    made = torch.tensor(found, dtype=torch.float64)
    return (made.clamp(0, 1) if clamp else made).float()
