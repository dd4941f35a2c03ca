"""The table of importers: one row for each kind of foreign weights.

A row names its module and imports nothing of it. The module has two functions: `recognise(path)` says by what a file
or folder shows itself to be of this kind, or None; `read(path, class_map)` gives an `Imported`. Another package adds
rows through the entry point group `multibox.importers`: each entry point there is an `ImporterRow`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from multibox.errors import OptionError, did_you_mean
from multibox.spec.classes import ClassMap

if TYPE_CHECKING:
    from multibox.models.network import DetectionNetwork

__all__ = ["ENTRY_POINTS", "IMPORTERS", "Imported", "ImporterRow", "importer_row", "recognised"]

ENTRY_POINTS = "multibox.importers"


class Imported(NamedTuple):
    """What an importer gives.

    Attributes:
        network: with the foreign weights, in evaluation mode.
        class_map: the classes, in the order of the outputs.
        name: how to call the model.
        source: where the weights come from.
        licence: SPDX expression of the weights, or "".
        notes: what was assumed or corrected, a sentence each.
    """

    network: DetectionNetwork
    class_map: ClassMap
    name: str
    source: str
    licence: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImporterRow:
    """One kind of foreign weights.

    Args:
        name: as in `multibox import FILE as=NAME`.
        title: what it is, for listings.
        module: with `recognise` and `read`.
    """

    name: str
    title: str
    module: str

    def recognise(self, path: Path) -> str | None:
        """By what a file or folder is of this kind; None where it is not."""
        evidence: str | None = importlib.import_module(self.module).recognise(path)
        return evidence

    def read(self, path: Path, class_map: ClassMap | None = None) -> Imported:
        """The network of a file or folder.

        Args:
            path: of the file or folder.
            class_map: names of the classes; the file's own, or made-up ones, when left out.

        Raises:
            ModelFileError: it cannot be read.
            ContractError: tensors that are missing, unknown or of another shape.
        """
        imported: Imported = importlib.import_module(self.module).read(path, class_map)
        return imported


_HERE = "multibox.weights.foreign"
IMPORTERS: dict[str, ImporterRow] = {
    row.name: row
    for row in (
        ImporterRow(
            "tfjs",
            "a TensorFlow.js graph model (folder with model.json) of the Object Detection API: SSDLite-MobileNetV2, "
            "SSD-MobileNetV1 or V2",
            f"{_HERE}.tfjs",
        ),
        ImporterRow(
            "tf-graph",
            "a frozen graph (.pb) of the Object Detection API: SSDLite-MobileNetV2, SSD-MobileNetV1 or V2",
            f"{_HERE}.graphdef",
        ),
        ImporterRow(
            "tflite",
            "a TensorFlow Lite file of the Object Detection API, in floats, halves or integers",
            f"{_HERE}.tflite",
        ),
        ImporterRow("face-api", "the SSD-MobileNetV1 manifest of face-api.js, or its folder", f"{_HERE}.face_api"),
        ImporterRow("caffe", "a Caffe SSD (.prototxt and .caffemodel)", f"{_HERE}.caffe"),
        ImporterRow(
            "pytorch-ssd",
            "a state dict of qfgaohao's and dusty-nv's pytorch-ssd: mb1-ssd, mb1-ssd-lite, mb2-ssd-lite, vgg16-ssd",
            f"{_HERE}.qfgaohao",
        ),
        ImporterRow(
            "ultra-light-face",
            "a state dict of Linzaer's Ultra-Light face detectors, RFB or slim",
            f"{_HERE}.ultra_light",
        ),
        ImporterRow("chainercv", "an .npz file of ChainerCV's SSD300 or SSD512", f"{_HERE}.chainercv"),
        ImporterRow("nvidia-ssd300", "a state dict of NVIDIA's SSD300 on ResNet-50", f"{_HERE}.nvidia"),
        ImporterRow(
            "mlperf-ssd300", "a state dict of MLPerf's SSD on ResNet-34, as it is trained at 300", f"{_HERE}.mlperf"
        ),
        ImporterRow("mlperf-ssd1200", "the same tensors, as they are run at 1200", f"{_HERE}.mlperf_1200"),
        ImporterRow("mmdet-ssdlite", "a state dict of mmdetection's SSDLite320 on MobileNetV2", f"{_HERE}.mmdet_lite"),
        ImporterRow(
            "ssd-keras", "an .h5 file of ssd_keras, 300 or 512: weights or a whole model", f"{_HERE}.ssd_keras"
        ),
        ImporterRow(
            "vgg-ports",
            "a state dict of ssd.pytorch (amdegroot), SSD (lufficc) or mmdetection on VGG16, 300 or 512",
            f"{_HERE}.vgg",
        ),
        ImporterRow(
            "torchvision-ssdlite320",
            "a state dict of torchvision's ssdlite320_mobilenet_v3_large",
            f"{_HERE}.torchvision_lite",
        ),
        ImporterRow("torchvision-ssd300", "a state dict of torchvision's ssd300_vgg16", f"{_HERE}.torchvision"),
    )
}
"""The importers of this package."""


def _rows() -> dict[str, ImporterRow]:
    added = [entry.load() for entry in entry_points(group=ENTRY_POINTS)]
    return {**{row.name: row for row in added}, **IMPORTERS}


def importer_row(name: str) -> ImporterRow:
    """The row of an importer.

    Raises:
        OptionError: no such importer.
    """
    rows = _rows()
    if name not in rows:
        raise OptionError(f"unknown kind of weights {name!r}; {did_you_mean(name, rows)}")
    return rows[name]


def recognised(path: Path) -> tuple[ImporterRow, str] | None:
    """The importer for a file or folder and what says so; None where no importer knows it.

    Raises:
        OptionError: several importers know it; the message names them.
    """
    found = [(row, evidence) for row in _rows().values() if (evidence := row.recognise(path)) is not None]
    if len(found) > 1:
        both = " and ".join(f"{row.name} ({evidence})" for row, evidence in found)
        raise OptionError(f"{path} could be {both}; convert it first: multibox import {path} as=NAME")
    return found[0] if found else None
