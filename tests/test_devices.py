"""Which device "auto" is, and what is said of one that is not there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from multibox import devices
from multibox.devices import available_devices, computes_right, describe_device, resolve_device
from multibox.errors import OptionError
from multibox.training.config import merge
from multibox.training.precision import described_precision


@pytest.fixture
def nothing_but_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("nothing_but_a_cpu")
def test_a_cpu_alone() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    assert available_devices() == ["cpu"]
    assert describe_device(resolve_device()) == "cpu"
    for name, reason in (("cuda:7", "cannot be used"), ("0", "did you mean cuda:0"), ("gpu", "cannot be used")):
        with pytest.raises(OptionError, match=f"{reason}.*there is cpu only"):
            resolve_device(name)


def test_a_gpu_comes_first_and_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"is_available": True, "device_count": 2, "current_device": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert available_devices()[:2] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("right", [True, False])
def test_mps_is_taken_where_it_computes_right(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(devices, "computes_right", lambda device: right)
    assert resolve_device("auto").type == ("mps" if right else "cpu")
    assert available_devices()[-2:] == ["mps", "cpu"]


def test_a_wrong_convolution_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert computes_right(torch.device("cpu"))
    assert not computes_right(torch.device("meta"))  # cannot give a number
    plain, calls = torch.nn.Conv2d.forward, []

    def wrong(self: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        calls.append(self)
        result = plain(self, images)
        return result * 1.01 if len(calls) > 3 and self.groups > 1 else result  # in the second network only

    monkeypatch.setattr(torch.nn.Conv2d, "forward", wrong)
    assert not computes_right(torch.device("cpu"))


def test_number_formats_in_words() -> None:
    assert described_precision("none", torch.device("cpu")) == "float32"
    assert described_precision("bf16", torch.device("cpu")).startswith("bfloat16 for the network")
    assert "TF32" in described_precision("none", torch.device("cuda:0"))


def test_float16_is_refused_where_auto_is_a_cpu() -> None:
    from multibox.models import create_model
    from multibox.training.config import TrainConfig
    from multibox.training.precision import with_precision

    config = merge(TrainConfig(), {"amp": "fp16"})
    with pytest.raises(OptionError, match="amp=fp16 needs a GPU"):
        with_precision(config, torch.device("cpu"), create_model("tinyssd256", num_classes=1, size_hw=(64, 64)))
