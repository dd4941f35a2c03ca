"""In which number format a run computes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from multibox.errors import OptionError
from multibox.models.network import DetectionNetwork
from multibox.training.config import TrainConfig

__all__ = ["described_precision", "with_precision"]


def with_precision(config: TrainConfig, device: torch.device, detector: DetectionNetwork) -> TrainConfig:
    """The configuration with amp=auto decided, so that a resumed run computes as it began.

    Raises:
        OptionError: bf16 where it computes wrongly.
    """
    broken = device.type == "cpu" and _reads_single_cells(detector)
    if config.run.amp == "bf16" and broken:
        raise OptionError(
            "amp=bf16 gives wrong gradients on processors where a depthwise convolution reads a map of 1 × 1, as in "
            "this model at this imgsz; use amp=none, or imgsz=300 or more"
        )
    if config.run.amp == "fp16" and device.type == "cpu":
        raise OptionError("amp=fp16 needs a GPU; on a CPU use amp=bf16 or none")
    if config.run.amp != "auto":
        return config
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    elif device.type != "cpu":
        fast = False
    else:
        fast = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return replace(config, run=replace(config.run, amp="bf16" if fast and not broken else "none"))


def described_precision(amp: str, device: torch.device) -> str:
    """The number formats that a run computes in, in words."""
    half = {"bf16": "bfloat16", "fp16": "float16"}.get(amp)
    if half is not None:
        return f"{half} for the network, float32 for losses, averages and validation"
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return "float32, convolutions in training with TF32's 10 bits of fraction"
    return "float32"


def _reads_single_cells(detector: DetectionNetwork) -> bool:
    """Whether a level is made from one of a single cell by depthwise convolution.

    On x86 processors torch (2.15) gives another bfloat16 weight gradient of that convolution each time, as if nothing
    had been written to its memory.
    """
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in detector.modules())
    return depthwise and sum(height * width == 1 for height, width in detector.feature_sizes_hw()) > 1
