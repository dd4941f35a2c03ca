"""What a network is made of, measured on the network itself: maps, receptive fields, parameters, multiply-adds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from multibox.models.network import DetectionNetwork

__all__ = ["summarise"]

aten = torch.ops.aten
_POOLS = (aten.max_pool2d_with_indices.default,)
_UPSAMPLINGS = (
    aten.upsample_nearest2d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten._upsample_nearest_exact2d,
)
_GLOBAL_POOLS = (aten.amax.default, aten.mean.dim, aten.adaptive_max_pool2d.default, aten._adaptive_avg_pool2d.default)


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every tensor operation: how far each output sees into the input, and what it costs.

    A tensor's reach is (receptive field, jump) in input pixels per axis-free side: a k-wide, d-dilated window over
    positions `jump` apart adds (k − 1) · d · jump to the field; a stride multiplies the jump; upsampling divides it by
    the quotient of the sides. Where maps are joined, the field is the widest and the jump the smallest: cells of maps
    of one size lie equally far apart, and only upsampling to an odd size leaves a quotient that is not quite it.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.multiply_adds = 0
        self._whole = max(images.shape[2:])
        self._reach: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._set(images, (1.0, 1.0))

    def _set(self, tensor: Tensor, reach: tuple[float, float]) -> None:
        self._reach[tensor] = reach

    def reach(self, tensor: Tensor) -> tuple[int | None, int | None]:
        """(receptive field, stride) in pixels; None where a global pooling made it the whole picture."""
        field, jump = self._reach[tensor]
        return None if math.isinf(field) else round(field), None if math.isinf(jump) else round(jump)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sources = [self._reach[a] for a in _tensors(args) if a in self._reach]
        if sources:
            reach = (max(s[0] for s in sources), min(s[1] for s in sources))
            if func is aten.convolution.default:
                places = args[0] if args[6] else out  # each of them meets the whole kernel of one channel
                self.multiply_adds += places.numel() // out.shape[0] * args[1][0].numel()
                kernel, stride, dilation, transposed = args[1].shape[-1], args[3][0], args[5][0], args[6]
                if transposed:  # each cell sees every stride-th place of the window
                    reach = (reach[0] + ((kernel - 1) * dilation // stride) * reach[1], reach[1] / stride)
                else:
                    reach = _window(reach, kernel, stride=stride, dilation=dilation)
            elif func in _POOLS:
                reach = _window(reach, args[1][0], stride=args[2][0], dilation=1)
            elif func in _GLOBAL_POOLS:
                reach = (math.inf, math.inf)
            elif func.overloadpacket in _UPSAMPLINGS:
                seen = 0 if "nearest" in str(func) else 3 if "bicubic" in str(func) else 1  # further cells
                reach = (reach[0] + seen * reach[1], reach[1] * args[0].shape[2] / out.shape[2])
            for result in _tensors([out]):
                self._set(result, reach)
        return out


def _window(reach: tuple[float, float], kernel: int, *, stride: int, dilation: int) -> tuple[float, float]:
    field, jump = reach
    more = (kernel - 1) * dilation
    return (field + more * jump if more else field), jump * stride


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def summarise(detector: DetectionNetwork, size_hw: tuple[int, int] | None = None) -> dict[str, Any]:
    """Levels, totals, parameters and multiply-adds of a detector at an input size, as JSON values.

    Each level has: name, size_hw, channels, stride and receptive_field (pixels of the input, before cutting at its
    border; None after a global pooling), boxes_per_cell, boxes, and outputs = height × width × boxes × (K + 4), where
    K counts background for a softmax model. All of it is read off a run on torch's meta device, not typed in.
    """
    size = size_hw or detector.spec.preprocess.size_hw
    was_training = detector.training
    state = {name: t.to("meta") for name, t in (*detector.named_parameters(), *detector.named_buffers())}
    images = torch.empty(1, 3, *size, device="meta")
    maps: list[Tensor] = []
    hook = detector.heads[-1].register_forward_pre_hook(lambda _module, args: maps.extend(args[0]))
    tracer = _Tracer(images)
    try:
        detector.eval()
        with torch.no_grad(), tracer:
            raw = torch.func.functional_call(detector, state, (images,))
    finally:
        hook.remove()
        detector.train(was_training)
    levels: list[dict[str, Any]] = []
    outputs_per_box = detector.spec.outputs_per_box
    for name, level_map, boxes in zip(detector.level_names, maps, detector.spec.anchors.boxes_per_cell, strict=True):
        height, width = level_map.shape[2:]
        field, stride = tracer.reach(level_map)
        levels.append(
            {
                "name": name,
                "size_hw": [height, width],
                "channels": level_map.shape[1],
                "stride": stride,
                "receptive_field": field,
                "boxes_per_cell": boxes,
                "boxes": height * width * boxes,
                "outputs": height * width * boxes * (outputs_per_box + 4),
            }
        )
    offsets, logits = raw[-1]
    assert sum(level["boxes"] for level in levels) == offsets.shape[1]
    assert sum(level["outputs"] for level in levels) == offsets[0].numel() + logits[0].numel()
    return {
        "size_hw": list(size),
        "levels": levels,
        "boxes": offsets.shape[1],
        "outputs": offsets[0].numel() + logits[0].numel(),
        "outputs_per_box": outputs_per_box + 4,
        "parameters": sum(p.numel() for p in detector.parameters()),
        "multiply_adds": tracer.multiply_adds,
    }
