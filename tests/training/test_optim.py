"""Learning rates, groups, freezing and the running average, against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from torch import nn

from multibox.errors import OptionError
from multibox.models import create_model
from multibox.models.layers import L2Norm
from multibox.training.optim import (
    averaged_weights,
    backbone_stages,
    freeze,
    freeze_norms,
    learning_rate,
    make_optimizer,
    set_training,
)
from multibox.training.options import OptimOptions


def rates(options: OptimOptions, steps_per_epoch: int) -> list[float]:
    """All learning rates of a run, by a loop over epochs and steps."""
    found, total, warm = [], options.epochs * steps_per_epoch, options.warmup * steps_per_epoch
    for _ in range(options.epochs):
        for _ in range(steps_per_epoch):
            step = len(found)
            if step < warm:
                rate = options.lr0 * (0.001 + 0.999 * min(1.0, (step + 1) / max(1.0, warm)))
            elif options.schedule == "constant":
                rate = options.lr0
            elif options.schedule == "steps":
                rate = options.lr0
                for part in options.steps:
                    if step >= part * total:
                        rate /= 10
            else:
                angle = math.pi * (step - warm) / (total - warm)
                rate = options.lr0 * (options.final_factor + (1 - options.final_factor) * (0.5 + 0.5 * math.cos(angle)))
            found.append(rate)
    return found


@pytest.mark.parametrize("warmup", [0, 0.3, 1, 2.5])
@pytest.mark.parametrize("schedule", ["cosine", "steps", "constant"])
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_the_schedule_is_that_of_plain_loops(schedule: Any, warmup: float, steps_per_epoch: int) -> None:
    options = OptimOptions(epochs=6, lr0=0.3, warmup=warmup, schedule=schedule, final_factor=0.05, steps="0.5,0.8")
    found = [learning_rate(options, step=step, steps_per_epoch=steps_per_epoch) for step in range(6 * steps_per_epoch)]
    assert found == pytest.approx(rates(options, steps_per_epoch), rel=1e-12)
    assert all(0 < rate <= 0.3 for rate in found)


@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.floats(0, 0.99),
    st.sampled_from(["cosine", "steps", "constant"]),
    st.floats(0, 1),
)
def test_rates_rise_then_fall(epochs: int, per_epoch: int, warm: float, schedule: Any, final: float) -> None:
    options = OptimOptions(epochs=epochs, warmup=warm * epochs, schedule=schedule, final_factor=final, lr0=1.0)
    found = [learning_rate(options, step=step, steps_per_epoch=per_epoch) for step in range(epochs * per_epoch)]
    peak = sum(step < options.warmup * per_epoch for step in range(len(found)))
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert max(found) <= 1.0
    assert min(found) > 0 or final == 0


def test_the_papers_steps() -> None:
    options = OptimOptions(epochs=120, schedule="steps", warmup=0, lr0=1e-3)
    found = [learning_rate(options, step=step, steps_per_epoch=1000) for step in (0, 80039, 80041, 99959, 99961)]
    assert found == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


# ------------------------------------------------------------------------------------------------ groups


def kind_of(detector: nn.Module, wanted: nn.Parameter) -> tuple[str, str]:
    """(backbone or head, kernel, bias or norm) of a parameter, by looking at the module that holds it."""
    for path, module in detector.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter is wanted:
                norm = isinstance(module, nn.BatchNorm2d | L2Norm)
                kind = "norm" if norm else "bias" if name == "bias" else "kernel"
                return "backbone" if path.startswith("features") else "head", kind
    raise AssertionError


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("builder", ["tinyssd256", "ssdlite300_mobilenetv2", "ssd300_vgg16"])
def test_every_parameter_has_its_rate_and_decay(builder: str, optimizer: Any) -> None:
    detector = create_model(builder)
    options = OptimOptions(optimizer=optimizer, weight_decay=0.3, backbone_lr=0.25, bias_lr=2.0, lr0=0.1, momentum=0.8)
    made = make_optimizer(detector, options)
    seen = []
    for group in made.param_groups:
        for parameter in group["params"]:
            seen.append(parameter)
            part, kind = kind_of(detector, parameter)
            assert group["weight_decay"] == (0.3 if kind == "kernel" else 0.0)
            assert group["factor"] == (0.25 if part == "backbone" else 1.0) * (2.0 if kind == "bias" else 1.0)
            assert group["lr"] == pytest.approx(0.1 * group["factor"])
            assert group["momentum"] == 0.8 if optimizer == "sgd" else group["betas"] == (0.8, 0.999)
    assert len(seen) == len({id(p) for p in seen}) == len(list(detector.parameters()))


def test_there_is_a_scale_without_decay() -> None:
    detector = create_model("ssd300_vgg16")
    scales = [module.weight for module in detector.modules() if isinstance(module, L2Norm)]
    assert scales
    for group in make_optimizer(detector, OptimOptions(weight_decay=0.5)).param_groups:
        for parameter in group["params"]:
            if any(parameter is scale for scale in scales):
                assert group["weight_decay"] == 0


def test_equal_detectors_have_equal_groups() -> None:
    sizes = [
        [[tuple(p.shape) for p in group["params"]] for group in make_optimizer(detector, OptimOptions()).param_groups]
        for detector in (create_model("tinyssd256"), create_model("tinyssd256"))
    ]
    assert sizes[0] == sizes[1]


# ------------------------------------------------------------------------------------------------ freezing


@pytest.mark.parametrize("builder", ["tinyssd256", "ssdlite300_mobilenetv2", "ssd300_vgg16"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_first_stages_are_frozen(builder: str, count: int) -> None:
    detector = create_model(builder)
    names = freeze(detector, count)
    stages = backbone_stages(detector)
    assert names == [name for name, _ in stages[:count]]
    for number, (_, stage) in enumerate(stages):
        assert all(p.requires_grad == (number >= count) for p in stage.parameters())
    assert all(p.requires_grad for p in detector.heads.parameters())
    frozen = {id(p) for _, stage in stages[:count] for p in stage.parameters()}
    learnt = {id(p) for group in make_optimizer(detector, OptimOptions()).param_groups for p in group["params"]}
    assert learnt == {id(p) for p in detector.parameters()} - frozen


def test_stages_are_in_the_order_of_the_network() -> None:
    detector = create_model("ssdlite300_mobilenetv2", size_hw=[96, 96])
    called: list[str] = []
    for name, stage in backbone_stages(detector):
        stage.register_forward_hook(lambda *_, name=name: called.append(name))
    detector.eval()(torch.zeros(1, 3, 96, 96))
    assert called == [name for name, _ in backbone_stages(detector)]


def test_more_stages_than_there_are_is_refused() -> None:
    detector = create_model("tinyssd256")
    count = len(backbone_stages(detector))
    with pytest.raises(OptionError, match=f"freeze={count + 1}: the backbone has {count} stages"):
        freeze(detector, count + 1)


def test_nothing_left_to_learn_is_refused() -> None:
    detector = create_model("tinyssd256")
    detector.requires_grad_(False)
    with pytest.raises(OptionError, match="nothing is left to train; freeze less"):
        make_optimizer(detector, OptimOptions())


@pytest.mark.parametrize("norm", [False, True])
def test_frozen_parts_stay_as_they_are_in_training(norm: bool) -> None:
    detector = create_model("ssdlite300_mobilenetv2", size_hw=[96, 96], num_classes=2)
    freeze(detector, 3)
    if norm:
        freeze_norms(detector)
    set_training(detector, freeze_norm=norm)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    optimizer = make_optimizer(detector, OptimOptions(weight_decay=0.1))
    stage = detector(torch.randn(2, 3, 96, 96))[0]
    (stage.offsets.square().mean() + stage.logits.square().mean()).backward()
    optimizer.step()
    frozen = tuple(f"features.{name}." for name, _ in backbone_stages(detector)[:3])
    norms = tuple(f"{path}." for path, module in detector.named_modules() if isinstance(module, nn.BatchNorm2d))
    for key, value in detector.state_dict().items():
        kept = key.startswith(frozen) or (norm and key.startswith(norms))
        assert torch.equal(value, before[key]) == kept, key


# ------------------------------------------------------------------------------------------------ average


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_the_average_is_that_of_a_loop(decay: float) -> None:
    torch.manual_seed(0)
    detector = create_model("ssdlite300_mobilenetv2", size_hw=[96, 96])
    averaged = averaged_weights(detector, decay)
    expected = {key: value.double().clone() for key, value in detector.state_dict().items()}
    for step in range(1, 12):
        with torch.no_grad():
            for value in detector.state_dict().values():
                value.add_(torch.randint(1, 3, value.shape)) if not value.is_floating_point() else value.mul_(0.9).add_(
                    torch.randn_like(value)
                )
        averaged.update_parameters(detector)
        share = min(decay, (1 + step) / (10 + step))
        for key, value in detector.state_dict().items():
            if value.is_floating_point():
                expected[key] = share * expected[key] + (1 - share) * value.double()
            else:
                expected[key] = value.double()
    for key, value in averaged.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-5)
        if decay == 0:
            assert torch.equal(value, detector.state_dict()[key])


def test_the_average_begins_with_the_weights_and_is_no_alias_of_them() -> None:
    detector = create_model("tinyssd256", size_hw=[64, 64])
    averaged = averaged_weights(detector, 0.5)
    assert not averaged.module.training
    for mine, theirs in zip(averaged.module.state_dict().values(), detector.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
