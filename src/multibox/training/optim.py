"""Parameter groups, learning rates, the running average of weights, and what is frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from multibox.errors import OptionError
from multibox.models.layers import L2Norm
from multibox.models.network import DetectionNetwork
from multibox.training.options import OptimOptions

__all__ = [
    "averaged_weights",
    "backbone_stages",
    "freeze",
    "freeze_norms",
    "learning_rate",
    "make_optimizer",
    "set_training",
]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, L2Norm)
Tensors = tuple[Tensor, ...] | list[Tensor]
STEP_FACTOR = 0.1  # the paper divides the learning rate by ten
WARMUP_START = 0.001  # part of lr0 at the first step


def backbone_stages(detector: DetectionNetwork) -> list[tuple[str, nn.Module]]:
    """The backbone's parts from the input on, with their names: its children, lists of them taken apart."""
    stages: list[tuple[str, nn.Module]] = []
    for name, child in detector.features.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            stages += [(f"{name}.{number}", part) for number, part in child.named_children()]
        else:
            stages.append((name, child))
    return [(name, part) for name, part in stages if any(True for _ in part.parameters())]


def freeze(detector: DetectionNetwork, count: int, *, trained: bool = True) -> list[str]:
    """Stop the first `count` stages of the backbone from learning; their names.

    Args:
        detector: whose layers are changed.
        count: of stages.
        trained: whether the backbone has learnt before; without, nothing is stopped.

    Raises:
        OptionError: the backbone has fewer.
    """
    stages = backbone_stages(detector)
    if count > len(stages):
        raise OptionError(f"freeze={count}: the backbone has {len(stages)} stages ({stages[0][0]} … {stages[-1][0]})")
    stopped = stages[: count if trained else 0]
    for _, stage in stopped:
        stage.requires_grad_(False)
    return [name for name, _ in stopped]


def freeze_norms(detector: DetectionNetwork) -> None:
    """Stop the factors of batch normalisation from learning; `set_training` keeps the statistics."""
    for module in detector.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)


def set_training(detector: DetectionNetwork, *, freeze_norm: bool) -> None:
    """Training mode, but for frozen stages and, if asked, all normalisation, which keep their statistics."""
    detector.train()
    for module in detector.modules():
        own = list(module.parameters(recurse=False))
        frozen = own and not any(p.requires_grad for p in own)
        if isinstance(module, NORMS) and (freeze_norm or frozen):
            module.eval()


def _kinds(detector: DetectionNetwork) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(part, kind, parameter) of everything that learns; kind is kernel, bias or norm."""
    seen: set[int] = set()
    for path, module in detector.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            kind = "norm" if isinstance(module, NORMS) else "bias" if name.endswith("bias") else "kernel"
            yield "backbone" if path.split(".")[0] == "features" else "head", kind, parameter


def make_optimizer(detector: DetectionNetwork, options: OptimOptions) -> torch.optim.Optimizer:
    """SGD or AdamW with a group for each learning rate and weight decay; `factor` of a group multiplies the schedule.

    Biases and normalisation have no weight decay, as in Caffe's configuration.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part, kind, parameter in _kinds(detector):
        factor = options.backbone_lr if part == "backbone" else 1.0
        factor *= options.bias_lr if kind == "bias" else 1.0
        decay = options.weight_decay if kind == "kernel" else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    if not groups:
        raise OptionError("nothing is left to train; freeze less")
    listed = [
        {"params": parameters, "factor": factor, "weight_decay": decay, "lr": options.lr0 * factor}
        for (factor, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(listed, lr=options.lr0, betas=(options.momentum, 0.999))
    return torch.optim.SGD(listed, lr=options.lr0, momentum=options.momentum)


def learning_rate(options: OptimOptions, *, step: int, steps_per_epoch: int) -> float:
    """Learning rate (before a group's factor) of update `step`, counted from 0; a function of the step alone."""
    total = options.epochs * steps_per_epoch
    warmup = options.warmup * steps_per_epoch
    if step < warmup:
        share = (step + 1) / max(1.0, warmup)
        return options.lr0 * min(1.0, WARMUP_START + (1 - WARMUP_START) * share)
    if options.schedule == "cosine":
        done = (step - warmup) / max(1.0, total - warmup)
        falling = (1 + math.cos(math.pi * min(1.0, done))) / 2
        return options.lr0 * (options.final_factor + (1 - options.final_factor) * falling)
    if options.schedule == "steps":
        return options.lr0 * STEP_FACTOR ** sum(step >= part * total for part in options.steps)
    return options.lr0


def averaged_weights(detector: DetectionNetwork, decay: float) -> AveragedModel:
    """A copy of a detector whose weights and buffers are the running average d · average + (1 − d) · weights.

    d is `decay`, but (1 + t) / (10 + t) while that is smaller, so that the first weights are soon forgotten; t counts
    the calls of `update_parameters`. With a decay of 0 the copy has the weights of the last call.
    """

    def move(average: Tensors, weights: Tensors, updates: Tensor | int) -> None:
        if not average[0].is_floating_point():  # counters
            for mine, new in zip(average, weights, strict=True):
                mine.copy_(new)
            return
        warm = (1 + int(updates)) / (10 + int(updates))
        get_ema_multi_avg_fn(min(decay, warm))(average, weights, updates)  # type: ignore[no-untyped-call]

    averaged = AveragedModel(detector, multi_avg_fn=move, use_buffers=True)
    averaged.n_averaged += 1  # the copy is the first average, else the first update would replace it
    return averaged.eval()
