"""Import of ChainerCV's SSD300 and SSD512 on VGG16, saved as `.npz`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multibox.errors import ModelFileError
from multibox.spec.classes import VOC_CLASSES, ClassMap
from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.preprocess import Preprocess
from multibox.weights.foreign.names import class_names
from multibox.weights.foreign.table import Imported
from multibox.weights.foreign.vgg import CONVOLUTIONS, FC6, FC7, VggNames, vgg_anchors, write_vgg
from multibox.weights.foreign.writer import GraphWriter

__all__ = ["read", "recognise"]

EVIDENCE = ("extractor/norm4/scale", "multibox/loc/0/W", "multibox/conf/5/W")
TRAINER = "updater/model:main/model/"  # before every name in the snapshot of a whole training
SUFFIXES = {"/W": ".weight", "/b": ".bias", "/scale": ".weight"}
XYWH_OF_YXHW = [1, 0, 3, 2]  # ChainerCV has (y, x, height, width) everywhere
BLOCKS = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
PLACES = {**dict(zip(CONVOLUTIONS, BLOCKS, strict=True)), FC6: "6", FC7: "7"}
NAMES = VggNames(
    trunk=lambda place: f"extractor/conv{PLACES[place]}",
    norm="extractor/norm4",
    extra="extractor/conv{block}_{part}",
    offsets="multibox/loc/{}",
    logits="multibox/conf/{}",
    title="ChainerCV's SSD",
)


def recognise(path: Path) -> str | None:
    """A `.npz` file with the arrays of such a network."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy").removeprefix(TRAINER) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return None
    return f"the arrays {EVIDENCE[0]} and {EVIDENCE[1]}" if names >= set(EVIDENCE) else None


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a file."""
    tensors = _tensors(path)
    levels = 7 if f"{NAMES.logits.format(6)}.weight" in tensors else 6
    writer = GraphWriter(tensors, f"{NAMES.title} on VGG16")
    write_vgg(writer, NAMES, levels=levels)
    side = 300 if levels == 6 else 512
    network = writer.network(
        anchors=vgg_anchors(levels, "voc", clip="none"),
        preprocess=Preprocess((side, side), mean=NAMES.mean),
        postprocess=PostprocessSpec("softmax", nms_iou=0.45, top_k=None, clip="after_nms"),
    )
    names = class_names(network.spec.num_classes, class_map, VOC_CLASSES)
    said = "default boxes for VOC were taken, the only ones that ChainerCV has"
    return Imported(network, names, path.stem, f"{NAMES.title} from {path.name}", notes=(said,))


def _tensors(path: Path) -> dict[str, Tensor]:
    """The arrays of a file, with offsets in our order."""
    found: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                name = key.removeprefix(TRAINER)
                suffix = next((end for end in SUFFIXES if name.endswith(end)), None)
                if suffix is None or (TRAINER in "".join(arrays.files) and not key.startswith(TRAINER)):
                    continue
                values = np.array(arrays[key], np.float32)
                if name.startswith("multibox/loc/") and len(values) % 4 == 0:
                    values = values.reshape(-1, 4, *values.shape[1:])[:, XYWH_OF_YXHW].reshape(values.shape)
                found[name.removesuffix(suffix) + SUFFIXES[suffix]] = torch.from_numpy(values)
    except FileNotFoundError:
        raise ModelFileError(str(path), "no such file", "check the path") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ModelFileError(str(path), f"not a file of plain arrays ({error})", "get the file again") from None
    return found
