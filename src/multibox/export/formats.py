"""The table of export formats. A row names its module and imports nothing of it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from multibox.errors import MissingDependencyError
from multibox.export.heads import HEADS

if TYPE_CHECKING:
    from multibox.export.int8 import Quantizer
    from multibox.export.layout import Layout
    from multibox.spec.card import ModelCard

__all__ = ["FORMATS", "Format", "Writer"]


class Writer(Protocol):
    """What the module of a format offers. A network and a model are values of the module's own types."""

    def convert_network(self, detector: Any, card: ModelCard, *, batch: int | None) -> Any:
        """The network alone: prepared pictures in, `offsets` and `logits` out."""
        ...

    def compose(self, network: Any, card: ModelCard, layout: Layout) -> Any:
        """A new model: the network, or its int8 form, with the head and the preprocessing of a layout."""
        ...

    def write(self, model: Any, path: Path, metadata: Mapping[str, str], card: ModelCard) -> None:
        """Write what `compose` made, with its metadata."""
        ...


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        name: as in `format=`.
        words: for the help.
        suffix: of the file; empty where a folder is written.
        module: a `Writer`.
        packages: that must be installed, by the name they are imported under, each with its extra.
        heads: that it offers.
        int8: for a quantised file, "module:class" of its `Quantizer`.
        fixed_batch: whether all shapes, the batch among them, are fixed.
        one_picture: heads that take one picture at once here, whatever their layout has room for.
        by_class: heads that suppress within classes only here.
    """

    name: str
    words: str
    suffix: str
    module: str
    packages: tuple[tuple[str, str], ...] = ()
    heads: tuple[str, ...] = tuple(HEADS)
    int8: str = ""
    fixed_batch: bool = False
    one_picture: tuple[str, ...] = ()
    by_class: tuple[str, ...] = ()

    @property
    def writer(self) -> Writer:
        """The module, imported.

        Raises:
            MissingDependencyError: a package is not installed.
        """
        for package, extra in (("onnx", "export"), ("onnxscript", "export"), *self.packages):
            if find_spec(package) is None:
                raise MissingDependencyError(package, f"format={self.name}", extra)
        return cast("Writer", importlib.import_module(self.module))

    @property
    def quantizer(self) -> type[Quantizer]:
        """The class that quantises, imported."""
        module, _, name = self.int8.partition(":")
        return cast("type[Quantizer]", getattr(importlib.import_module(module), name))


_LITERT: dict[str, Any] = {
    "suffix": ".tflite",
    "module": "multibox.export.litert",
    "heads": ("raw", "decoded", "tflite4"),
    "fixed_batch": True,
    "one_picture": ("tflite4",),
    "by_class": ("tflite4",),
}
FORMATS = {
    row.name: row
    for row in (
        Format("onnx", "one .onnx file", ".onnx", "multibox.export.onnx"),
        Format(
            "openvino",
            "OpenVINO's .xml with its .bin",
            ".xml",
            "multibox.export.openvino",
            (("openvino", "openvino"),),
        ),
        Format(
            "onnx-int8",
            "a quantised .onnx file",
            ".onnx",
            "multibox.export.onnx",
            int8="multibox.export.int8_onnx:OnnxQuantizer",
        ),
        Format(
            "openvino-int8",
            "a quantised OpenVINO .xml with its .bin",
            ".xml",
            "multibox.export.openvino",
            (("openvino", "openvino"), ("nncf", "quantize")),
            int8="multibox.export.int8_openvino:OpenVinoQuantizer",
        ),
        Format(
            "litert",
            "one .tflite file of a fixed batch, for LiteRT (TensorFlow Lite)",
            packages=(("litert_torch", "litert"),),
            **_LITERT,
        ),
        Format(
            "litert-int8",
            "a quantised .tflite file",
            packages=(("litert_torch", "litert"), ("ai_edge_quantizer", "litert")),
            int8="multibox.export.int8_litert:LitertQuantizer",
            **_LITERT,
        ),
        Format(
            "triton",
            "a model of a Triton repository: a folder with config.pbtxt, 1/model.onnx and labels.txt",
            "",
            "multibox.export.triton",
            heads=("raw", "decoded", "nms"),
        ),
    )
}
