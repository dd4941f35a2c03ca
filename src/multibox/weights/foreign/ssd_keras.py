"""Import of SSD300 and SSD512 of pierluigiferrari's ssd_keras (`.h5`, weights or whole models), without Keras."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multibox.errors import ModelFileError
from multibox.models.vgg import ScaleTable
from multibox.quiet import import_quietly
from multibox.spec.classes import VOC_CLASSES, ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess
from multibox.weights.foreign.chainercv import BLOCKS
from multibox.weights.foreign.names import COCO_IN_ORDER, class_names
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.vgg import CONVOLUTIONS, FC6, FC7, VggNames, vgg_anchors, write_vgg
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["read", "recognise"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MARKS = (b"conv4_3_norm_mbox_conf", b"fc7_mbox_loc")
PLACES = {**{place: f"conv{block}" for place, block in zip(CONVOLUTIONS, BLOCKS, strict=True)}, FC6: "fc6", FC7: "fc7"}
TAPS = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2", "conv10_2")
NORM = "conv4_3_norm"
EXTRA = re.compile(r"conv([6-9]|10)_([12])")
HEAD = re.compile(r"(.+)_mbox_(loc|conf)")
NAMES = VggNames(
    trunk=PLACES.__getitem__, norm=NORM, extra="extras.{number}", offsets="loc.{}", logits="conf.{}", title="ssd_keras"
)


def recognise(path: Path) -> str | None:
    """An HDF5 file that names the layers of such a network."""
    if path.suffix.lower() not in (".h5", ".hdf5") or not path.is_file():
        return None
    content = path.read_bytes()
    if not content.startswith(SIGNATURE) or not all(mark in content for mark in MARKS):
        return None
    return f"the layers {MARKS[0].decode()} and {MARKS[1].decode()}"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a file. The first convolution takes BGR there, and RGB here."""
    tensors = _tensors(path)
    levels = 7 if "conf.6.weight" in tensors else 6
    writer = GraphWriter(tensors, f"{NAMES.title}'s SSD on VGG16")
    write_vgg(writer, NAMES, levels=levels)
    classes = writer.outputs(4) - 1
    table: ScaleTable = "voc" if classes == len(VOC_CLASSES) else "coco"
    side = 300 if levels == 6 else 512
    network = writer.network(
        anchors=vgg_anchors(levels, table, clip="none"),
        preprocess=Preprocess((side, side), mean=NAMES.mean, rounding=True),
        postprocess=PostprocessSpec("softmax", nms_iou=0.45, top_k=400, clip="after_nms"),
    )
    names = class_names(classes, class_map, VOC_CLASSES, COCO_IN_ORDER)
    said = f"default boxes for {table.upper()} were taken, because the weights have {classes} classes"
    return Imported(network, names, path.stem, f"ssd_keras from {path.name}", notes=(said,))


def _tensors(path: Path) -> dict[str, Tensor]:
    """The arrays under this package's names for the layers, in torch's layout.

    Raises:
        MissingDependencyError: h5py is not installed.
        ModelFileError: it cannot be read.
    """
    h5py = import_quietly("h5py", purpose=f"reading {path.name}", extra="keras")
    found: dict[str, Tensor] = {}
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            for layer in (_text(name) for name in root.attrs["layer_names"]):
                arrays = [np.array(root[layer][_text(name)]) for name in root[layer].attrs["weight_names"]]
                if arrays and not layer.endswith("_priorbox"):
                    found.update(_named(layer, arrays))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        reason = f"not a usable file of ssd_keras ({error})"
        raise ModelFileError(str(path), reason, "get the file again, or save it with model.save_weights") from None
    return found


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _named(layer: str, arrays: list[Any]) -> dict[str, Tensor]:
    if layer == NORM:
        return {f"{NORM}.weight": torch.from_numpy(arrays[0].astype(np.float32))}
    if len(arrays) != 2 or arrays[0].ndim != 4:
        return {f"{layer}.{i}": torch.from_numpy(array) for i, array in enumerate(arrays)}  # to be refused by name
    kernel = arrays[0].transpose(3, 2, 0, 1)
    if layer == PLACES[0]:
        kernel = kernel[:, ::-1]
    ours = layer
    if head := HEAD.fullmatch(layer):
        ours = f"{head[2]}.{TAPS.index(head[1]) if head[1] in TAPS else head[1]}"
    elif extra := EXTRA.fullmatch(layer):
        ours = f"extras.{2 * (int(extra[1]) - 6) + int(extra[2]) - 1}"
    pair = {"weight": kernel, "bias": arrays[1]}
    return {f"{ours}.{kind}": torch.from_numpy(np.array(value, np.float32, order="C")) for kind, value in pair.items()}
