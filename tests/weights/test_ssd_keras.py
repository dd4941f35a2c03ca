"""Files of ssd_keras, made here from the tensors of another port of the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
h5py = pytest.importorskip("h5py", reason="the keras extra is not installed")

import foreign_networks as foreign
from test_torch_ports import COCO_512, VOC_300, numbered, vgg_priors

from multibox.errors import ContractError, ModelFileError
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.table import recognised

BLOCKS = ["1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3"]
PLACES = dict(zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), BLOCKS, strict=True))
TAPS = ["conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2", "conv10_2"]
Made = tuple[dict[str, Any], Any]


def port(levels: int) -> Any:
    return foreign.vgg_port("vgg.{}", "L2Norm", numbered("extras.{number}"), "loc.{}", "conf.{}", levels=levels)


def keras_name(key: str) -> str:
    part, _, number = key.partition(".")
    if part == "vgg":
        return {31: "fc6", 33: "fc7"}.get(int(number)) or f"conv{PLACES[int(number)]}"
    if part == "extras":
        return f"conv{6 + int(number) // 2}_{1 + int(number) % 2}"
    return "conv4_3_norm" if part == "L2Norm" else f"{TAPS[int(number)]}_mbox_{part}"


def write(path: Path, tensors: dict[str, Any], *, whole: bool = False) -> Path:
    layers: dict[str, list[Any]] = {"input_1": []}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        array = value.numpy()
        layers.setdefault(keras_name(layer), []).append(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
        assert kind in ("weight", "bias")
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = root.create_group(name)
            names = [f"{name}/{kind}:0" for kind in ("kernel", "bias")][: len(arrays)]
            group.attrs["weight_names"] = [one.encode() for one in names]
            for one, array in zip(names, arrays, strict=True):
                group[one] = array
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "outputs", "whole"), [(6, 21, False), (7, 4, True)])
def test_the_numbers_are_the_same_network_s(levels: int, outputs: int, whole: bool, tmp_path: Path) -> None:
    tensors, forward = port(levels)
    made = tensors(outputs)
    path = write(tmp_path / "ssd.h5", made, whole=whole)
    row, _ = recognised(path)  # type: ignore[misc]
    assert row.name == "ssd-keras"
    imported = row.read(path)
    network = imported.network
    assert (imported.class_map.names[0] == "aeroplane") is (outputs == 21)
    priors = vgg_priors(VOC_300, clamp=False) if levels == 6 else vgg_priors(COCO_512, clamp=False)
    torch.testing.assert_close(network.anchors_cxcywh(), priors, rtol=0, atol=1e-6)
    images = torch.randn(1, 3, *network.spec.preprocess.size_hw).double()
    with torch.inference_mode():
        ours = network.double()(images)[0]
        offsets, logits = forward({key: value.double() for key, value in made.items()}, images.flip(1))  # as BGR
    torch.testing.assert_close(ours.offsets, offsets, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.logits, logits, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = port(6)[0](4)
    path, row = tmp_path / "ssd.h5", recognised(write(tmp_path / "ssd.h5", made))[0]  # type: ignore[index]
    with pytest.raises(ContractError, match="1 class names for weights with 3 classes"):
        row.read(path, ClassMap(("one",)))
    for change, message in (
        ({"extras.3.bias": None, "extras.3.weight": None}, r"no tensor 'extras\.3\.weight'"),
        ({"vgg.7.weight": made["vgg.7.weight"][:, :-1]}, "takes no"),
        ({"conf.2.weight": made["conf.2.weight"][:-1]}, "heads"),
    ):
        changed = {key: value for key, value in {**made, **change}.items() if value is not None}
        with pytest.raises(ContractError, match=message):
            row.read(write(path, changed))
    write(path, made)
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = [*file.attrs["layer_names"].astype("S"), b"more"]
        group = file.create_group("more")
        group.attrs["weight_names"] = [b"more/gamma:0"]
        group["more/gamma:0"] = np.zeros(3)
    with pytest.raises(ContractError, match=r"more\.0 is unknown"):
        row.read(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelFileError, match="not a usable file of ssd_keras"):
        row.read(path)
