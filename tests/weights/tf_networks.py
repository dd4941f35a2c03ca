"""SSDs on MobileNets as the Object Detection API names and computes them, narrow and with random weights.

`run` is written from the API's conventions alone, in float64: kernels as (height, width, in, out), SAME padding, batch
normalisation of epsilon 0.001, ReLU6, box codes (y, x, height, width), background in column 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

Arrays = dict[str, Any]
BOXES = (3, 6, 6, 6, 6, 6)


def same(x: Any, kernel: Any, stride: int, groups: int) -> Any:
    pads: list[int] = []
    for size, side in zip(x.shape[:1:-1], kernel.shape[:1:-1], strict=True):
        total = max((-(-size // stride) - 1) * stride + side - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), kernel, stride=stride, groups=groups)


class Maker:
    """Makes the tensors on its first run, and computes with them on every run."""

    def __init__(self, arrays: Arrays, rng: Any) -> None:
        self.arrays, self._rng = arrays, rng

    def _get(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.arrays:
            self.arrays[name] = make().astype(np.float32)
        return torch.from_numpy(self.arrays[name]).double()

    def unit(self, x: Any, name: str, outputs: int, k: int = 1, *, stride: int = 1, act: bool = True) -> Any:
        """A normalised convolution; outputs 0 is a depthwise one."""
        inputs = x.shape[1]
        shape = (k, k, inputs, outputs or 1)
        spread = (2 / (k * k * (inputs if outputs else 1))) ** 0.5
        kernel = self._get(
            f"{name}/{'weights' if outputs else 'depthwise_weights'}", lambda: self._rng.normal(0, spread, shape)
        )
        kernel = kernel.permute(3, 2, 0, 1) if outputs else kernel.permute(2, 3, 0, 1)
        x = same(x, kernel, stride, 1 if outputs else inputs)
        width = (outputs or inputs,)
        norm = {
            key: self._get(f"{name}/BatchNorm/{key}", lambda low=low: self._rng.uniform(low, low + 0.5, width))
            for key, low in (("gamma", 0.8), ("beta", -0.2), ("moving_mean", -0.2), ("moving_variance", 0.7))
        }
        shift = [norm[key][:, None, None] for key in ("moving_mean", "moving_variance", "gamma", "beta")]
        x = (x - shift[0]) / (shift[1] + 1e-3).sqrt() * shift[2] + shift[3]
        return x.clamp(0, 6) if act else x

    def head(self, x: Any, name: str, outputs: int) -> Any:
        spread = 0.3 / x.shape[1] ** 0.5
        kernel = self._get(f"{name}/weights", lambda: self._rng.normal(0, spread, (1, 1, x.shape[1], outputs)))
        bias = self._get(f"{name}/biases", lambda: self._rng.normal(0, 0.2, outputs))
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias).permute(0, 2, 3, 1)


def v1(net: Maker, x: Any) -> list[Any]:
    base = "FeatureExtractor/MobilenetV1"
    x, taps = net.unit(x, f"{base}/Conv2d_0", 8, 3, stride=2), []
    for number in range(1, 14):
        x = net.unit(x, f"{base}/Conv2d_{number}_depthwise", 0, 3, stride=2 if number in (2, 4, 6, 12) else 1)
        x = net.unit(x, f"{base}/Conv2d_{number}_pointwise", 8 + number)
        if number in (11, 13):
            taps.append(x)
    return taps + extras(net, x, f"{base}/Conv2d_13_pointwise")


def v2(net: Maker, x: Any) -> list[Any]:
    base = "FeatureExtractor/MobilenetV2"
    widths = [8, 8, 8, 12, 12, 12, 16, 16, 16, 16, 20, 20, 20, 24, 24, 24, 28]
    x, taps = net.unit(x, f"{base}/Conv", 10, 3, stride=2), []
    for number, width in enumerate(widths):
        name, start = f"{base}/expanded_conv" + (f"_{number}" if number else ""), x
        stride = 2 if number in (1, 3, 6, 13) else 1
        if number:
            x = net.unit(x, f"{name}/expand", 2 * x.shape[1])
        if number == 13:
            taps.append(x)
        x = net.unit(x, f"{name}/depthwise", 0, 3, stride=stride)
        x = net.unit(x, f"{name}/project", width, act=False)
        if stride == 1 and start.shape[1] == width:
            x = x + start
    x = net.unit(x, f"{base}/Conv_1", 40)
    return [*taps, x, *extras(net, x, f"{base}/layer_19")]


def extras(net: Maker, x: Any, name: str) -> list[Any]:
    taps = []
    for number, width in ((2, 16), (3, 12), (4, 12), (5, 8)):
        x = net.unit(x, f"{name}_1_Conv2d_{number}_1x1_{width // 2}", width // 2)
        x = net.unit(x, f"{name}_2_Conv2d_{number}_3x3_s2_{width}", width, 3, stride=2)
        taps.append(x)
    return taps


def run(trunk: str, image: Any, columns: int, arrays: Arrays | None = None, seed: int = 0) -> tuple[Any, Any, Arrays]:
    """Box codes [A, 4] and class scores [A, columns] before the sigmoid, and the tensors by name."""
    arrays = {} if arrays is None else arrays
    net = Maker(arrays, np.random.default_rng(seed))
    maps = (v1 if trunk == "v1" else v2)(net, image.double())
    codes, scores = [], []
    for level, (x, boxes) in enumerate(zip(maps, BOXES, strict=True)):
        codes.append(net.head(x, f"BoxPredictor_{level}/BoxEncodingPredictor", 4 * boxes).reshape(-1, 4))
        scores.append(net.head(x, f"BoxPredictor_{level}/ClassPredictor", columns * boxes).reshape(-1, columns))
    return torch.cat(codes).numpy(), torch.cat(scores).numpy(), arrays
