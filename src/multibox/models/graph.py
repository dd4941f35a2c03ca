"""A network that is described layer by layer, as a Caffe prototxt does, and kept so in its card.

Every layer is a dictionary of JSON values with a `name`, an `op` of `OPERATIONS` and the names of its `inputs`; its
output has its own name, and "image" is the input of the network. What else a layer needs stands at its operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multibox.errors import ContractError
from multibox.models.features import FeatureNetwork
from multibox.models.heads import MultiboxHead
from multibox.models.layers import L2Norm, SameConv2d
from multibox.models.network import DetectionNetwork, NetworkSpec
from multibox.models.registry import register_model
from multibox.spec.anchors import AnchorSpec
from multibox.spec.postprocess import DEFAULT_VARIANCES, PostprocessSpec
from multibox.spec.preprocess import Preprocess

__all__ = ["GraphFeatures", "graph_ssd"]

Layer = Mapping[str, Any]
IMAGE = "image"


class _Add(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for more in inputs[1:]:
            total = total + more
        return total


class _Multiply(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one * other


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class _Concat(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)


class _Blocks(nn.Module):
    """Blocks of places side by side, from `pad` places before the map's edge on; a block has its places' channels."""

    def __init__(self, size: int, pad: int) -> None:
        super().__init__()
        self.size, self.pad = size, pad

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for places in x.shape[:1:-1]:
            blocks = (places + 2 * self.pad - self.size) // self.size + 1
            pads += [self.pad, blocks * self.size - places - self.pad]
        return F.pixel_unshuffle(F.pad(x, pads), self.size)


class _Scale(nn.Module):
    """A factor and a shift for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def _conv(layer: Layer, channels: Sequence[int]) -> tuple[nn.Module, int]:
    outputs, kernel, stride = int(layer["channels"]), tuple(layer["kernel"]), tuple(layer.get("stride", (1, 1)))
    groups, bias = int(layer.get("groups", 1)), bool(layer.get("bias", True))
    made: nn.Conv2d
    if layer.get("same", False):
        made = SameConv2d(channels[0], outputs, kernel, stride=stride, groups=groups, bias=bias)
    else:
        pad, dilation = tuple(layer.get("pad", (0, 0))), tuple(layer.get("dilation", (1, 1)))
        made = nn.Conv2d(
            channels[0], outputs, kernel, stride=stride, padding=pad, dilation=dilation, groups=groups, bias=bias
        )
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    if made.bias is not None:
        nn.init.zeros_(made.bias)
    return made, outputs


def _norm(layer: Layer, channels: Sequence[int]) -> tuple[nn.Module, int]:
    return nn.BatchNorm2d(channels[0], eps=float(layer["eps"]), affine=bool(layer["affine"])), channels[0]


def _pool(layer: Layer, channels: Sequence[int]) -> tuple[nn.Module, int]:
    kind: type[nn.MaxPool2d | nn.AvgPool2d] = nn.MaxPool2d if layer["op"] == "max_pool" else nn.AvgPool2d
    kernel, stride, pad = (tuple(layer[key]) for key in ("kernel", "stride", "pad"))
    return kind(kernel, stride=stride, padding=pad, ceil_mode=layer.get("ceil", True)), channels[0]


OPERATIONS: dict[str, Callable[[Layer, Sequence[int]], tuple[nn.Module, int]]] = {
    "conv": _conv,  # (height, width) of kernel, stride, pad, dilation, or TensorFlow's same; channels, groups, bias
    "norm": _norm,  # batch normalisation: eps, affine
    "scale": lambda _, channels: (_Scale(channels[0]), channels[0]),
    "l2norm": lambda _, channels: (L2Norm(channels[0]), channels[0]),
    "relu": lambda _, channels: (nn.ReLU(), channels[0]),
    "relu6": lambda _, channels: (nn.ReLU6(), channels[0]),
    "hardswish": lambda _, channels: (nn.Hardswish(), channels[0]),
    "hardsigmoid": lambda _, channels: (nn.Hardsigmoid(), channels[0]),
    "mean": lambda _, channels: (_Mean(), channels[0]),  # over all places, which leaves one
    "multiply": lambda _, channels: (_Multiply(), max(channels)),
    "max_pool": _pool,  # kernel, stride, pad; sizes are rounded up unless ceil is false
    "avg_pool": _pool,
    "add": lambda _, channels: (_Add(), channels[0]),
    "blocks": lambda layer, channels: (_Blocks(layer["size"], layer["pad"]), channels[0] * layer["size"] ** 2),
    "concat": lambda _, channels: (_Concat(), sum(channels)),
}


def key_of(name: str) -> str:
    """The name of a layer as a part of a state dict's key."""
    return name.replace(".", "_").replace("/", "_")


def _built(layer: Layer, channels: Mapping[str, int]) -> tuple[nn.Module, int]:
    if layer["op"] not in OPERATIONS:
        raise ContractError(f"layer {layer['name']}: unknown operation {layer['op']!r}")
    missing = [name for name in layer["inputs"] if name not in channels]
    if missing:
        raise ContractError(f"layer {layer['name']} takes {missing[0]!r}, which no layer before it gives")
    return OPERATIONS[layer["op"]](layer, [channels[name] for name in layer["inputs"]])


class GraphFeatures(FeatureNetwork):
    """Layers in the order in which they are computed, and the maps among their outputs that heads read.

    Args:
        layers: see the module.
        maps: names of outputs, finest first.

    Raises:
        ContractError: an unknown operation, an input or a map that no layer gives.
    """

    def __init__(self, layers: Sequence[Layer], maps: Sequence[str]) -> None:
        super().__init__()
        channels = {IMAGE: 3}
        self.layers = nn.ModuleDict()
        self.inputs: list[tuple[str, str, tuple[str, ...]]] = []
        for layer in layers:
            name = str(layer["name"])
            if key_of(name) in self.layers:
                raise ContractError(f"two layers are called {name}, or nearly so")
            module, channels[name] = _built(layer, channels)
            self.layers[key_of(name)] = module
            self.inputs.append((name, key_of(name), tuple(layer["inputs"])))
        missing = [name for name in maps if name not in channels]
        if missing:
            raise ContractError(f"the map {missing[0]!r} is given by no layer")
        self.level_names = tuple(maps)
        self.channels = tuple(channels[name] for name in maps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the maps."""
        values = {IMAGE: images}
        for name, key, inputs in self.inputs:
            values[name] = self.layers[key](*(values[of] for of in inputs))
        return [values[name] for name in self.level_names]


class GraphHead(MultiboxHead):
    """A head whose branches are described layer by layer; the last of each is a convolution of box-major channels.

    Args:
        channels: channels of each map.
        boxes_per_cell: default boxes at a cell of each map.
        outputs_per_box: C + 1 for softmax, C for sigmoid.
        branches: for each map the layers of `offsets` and of `logits`, each of which takes the one before.
        sigmoid: start class biases at the foreground prior.
    """

    def __init__(
        self,
        channels: Sequence[int],
        boxes_per_cell: Sequence[int],
        outputs_per_box: int,
        *,
        branches: Sequence[Mapping[str, Sequence[Layer]]],
        sigmoid: bool,
    ) -> None:
        described = [branch[kind] for kind in ("offsets", "logits") for branch in branches]
        waiting = iter(described)  # in the order in which the base class asks for them

        def branch(inputs: int, outputs: int) -> nn.Module:
            layers = list(next(waiting))
            layers[-1] = {**layers[-1], "channels": outputs}
            modules, count = nn.Sequential(), {IMAGE: inputs}
            for layer in layers:
                module, count[IMAGE] = _built({**layer, "inputs": [IMAGE]}, count)
                modules.add_module(key_of(layer["name"]), module)
            return modules

        super().__init__(channels, boxes_per_cell, outputs_per_box, branch=branch, sigmoid=sigmoid)


@register_model
def graph_ssd(
    *,
    layers: Sequence[Layer],
    heads: Sequence[Mapping[str, Any]],
    anchors: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    postprocess: Mapping[str, Any],
    num_classes: int = 20,
    size_hw: Sequence[int] | None = None,
    variances: Sequence[float] = DEFAULT_VARIANCES,
) -> DetectionNetwork:
    """An SSD that is described layer by layer; what the importer of Caffe's networks builds.

    Args:
        layers: of the features, in the order in which they are computed; see `multibox.models.graph`.
        heads: for each level its `map`, and the layers of `offsets` and `logits` in the same form, the last a
            convolution whose number of channels follows from boxes and classes.
        anchors, preprocess, postprocess: the JSON forms of these specifications.
        num_classes: C, without background.
        size_hw: input (height, width) in place of that of `preprocess`.
        variances: scale of the offsets.

    Raises:
        ContractError: layers that do not fit each other.
    """
    spec = NetworkSpec(
        num_classes=num_classes,
        anchors=AnchorSpec.from_dict(anchors),
        preprocess=Preprocess.from_dict({**preprocess, **({} if size_hw is None else {"size_hw": list(size_hw)})}),
        postprocess=PostprocessSpec.from_dict(postprocess),
        variances=tuple(variances),  # type: ignore[arg-type]
    )
    features = GraphFeatures(layers, [str(head["map"]) for head in heads])
    head = GraphHead(
        features.channels,
        spec.anchors.boxes_per_cell,
        spec.outputs_per_box,
        branches=heads,
        sigmoid=spec.postprocess.activation == "sigmoid",
    )
    return DetectionNetwork(features, [head], spec)
