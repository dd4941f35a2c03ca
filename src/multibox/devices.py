"""Which device torch computes on: what "auto" means, and what there is where a device is refused."""

from __future__ import annotations

from typing import Any

from multibox.errors import OptionError, first_line

__all__ = ["AUTO", "available_devices", "describe_device", "resolve_device"]

AUTO = "auto"
TOLERANCE = 1e-3  # of a number near 1; float32 rounds at 1e-7, a wrong operation is off by far more


def resolve_device(device: str = AUTO) -> Any:
    """The `torch.device` that a name stands for, with its index where there are several.

    Args:
        device: "auto" (the first of CUDA, MPS where it computes right, CPU), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        OptionError: no such device here; the message names those that there are.
    """
    import torch

    name = device.strip().lower()
    if name == AUTO:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else _without_cuda()
    if name.isdigit():
        raise OptionError(f"device {device!r}: did you mean cuda:{name}? Here there is {_listed()}")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"device {device!r} cannot be used: {first_line(error)}; here there is {_listed()}") from None
    return torch.device("cuda", torch.cuda.current_device()) if str(chosen) == "cuda" else chosen


def available_devices() -> list[str]:
    """Names of what torch can compute on here, the CPU last."""
    import torch

    found = [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def describe_device(device: Any) -> str:
    """A device in words: its name, and for a GPU its maker's name."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _without_cuda() -> Any:
    import torch

    right = torch.backends.mps.is_available() and computes_right(torch.device("mps"))
    return torch.device("mps" if right else "cpu")


def computes_right(device: Any) -> bool:
    """Whether a device gives the CPU's outputs and gradients for the layers that SSDLite is made of.

    MPS has returned wrong numbers for strided depthwise convolutions and for channels-last maps in several releases.
    """
    import torch
    from torch import Tensor, nn

    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 4, 1),
    )
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    images = torch.randn((2, 3, 20, 20), generator=generator)

    def outputs(place: Any) -> list[Tensor]:
        layers.to(place).to(memory_format=torch.channels_last)
        result = layers(images.to(place).to(memory_format=torch.channels_last))
        gradients = torch.autograd.grad(result.square().mean(), [*layers.parameters()])
        return [value.detach().cpu() for value in (result, *gradients)]

    try:
        expected, found = outputs(torch.device("cpu")), outputs(device)
    except (RuntimeError, NotImplementedError):
        return False
    return all(
        torch.allclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)
        for mine, theirs in zip(found, expected, strict=True)
    )


def _listed() -> str:
    *others, last = available_devices()
    return f"{', '.join(others)} and {last}" if others else f"{last} only"
