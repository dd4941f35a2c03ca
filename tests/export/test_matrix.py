"""Every format with each of its heads, and with a fixed batch at an odd input size, against torch on pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnx", reason="the export extra is not installed")

from multibox.export.formats import FORMATS
from multibox.export.heads import HEADS
from multibox.export.layout import metadata_of
from multibox.export.request import ExportRequest
from multibox.export.verify.check import verify
from multibox.pictures.read import read_picture

pytestmark = pytest.mark.slow

MODEL = "ssdlite300-coco"
COUNT, CALIBRATING = 8, 8
ODD = (141, 206)
SHAPES: dict[str, tuple[int | None, tuple[int, int] | None]] = {
    "own shape": (None, None),
    "batch of two, odd size": (2, ODD),
    "one picture, odd size": (None, ODD),
}
# A head is put around a network of any shape in the same way, so the other shapes have one head each.
CELLS = [
    *((row.name, head, "own shape") for row in FORMATS.values() for head in row.heads),
    *((row.name, "raw", "batch of two, odd size") for row in FORMATS.values() if "raw" in row.heads),
    *((row.name, "nms", "one picture, odd size") for row in FORMATS.values() if "nms" in row.heads and not row.int8),
]


class Remembered:
    """A network that is asked once for each input: all cells compare with the same numbers."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._known: dict[bytes, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, images: Any) -> Any:
        key = images.numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._network(images)
        return self._known[key]


@cache
def remembered(network: Any) -> Remembered:
    return Remembered(network)


@cache
def read(folder: Path) -> list[np.ndarray]:
    paths = sorted((folder / "voc_sample" / "JPEGImages").glob("*.jpg"))[: COUNT + CALIBRATING]
    return [np.asarray(read_picture(path)) for path in paths]


@cache
def network_of(module: str, exported: Callable[..., Any], size_hw: tuple[int, int] | None, batch: int | None) -> Any:
    """Made once for all heads, and once for all formats that begin with the same graph."""
    made = exported(MODEL, size_hw)
    if module != "multibox.export.litert":
        return made.network
    return FORMATS["litert"].writer.convert_network(made.detector, made.card, batch=batch)


@cache
def quantizer_of(format: str, exported: Callable[..., Any], size_hw: Any, batch: int | None, folder: Path) -> Any:
    row = FORMATS[format]
    network = network_of(row.module, exported, size_hw, batch if row.fixed_batch else None)
    quantizer = row.quantizer(network, exported(MODEL, size_hw).card, read(folder)[COUNT:])
    quantizer.quantised = cache(quantizer.quantised)  # type: ignore[attr-defined]
    return quantizer


@pytest.mark.parametrize(("format", "head", "shape"), CELLS)
def test_a_file_is_the_network_it_came_from(
    format: str, head: str, shape: str, data_folder: Path, exported: Callable[..., Any], tmp_path: Path
) -> None:
    """With preprocessing inside at the odd size, and outside at the model's own."""
    batch, size_hw = SHAPES[shape]
    row = FORMATS[format]
    for package, extra in row.packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the {extra} extra is not installed")
    pictures = read(data_folder)
    assert len(pictures) == COUNT + CALIBRATING
    request = ExportRequest(
        MODEL,
        format,
        head,
        batch=batch,
        preprocess=size_hw is not None,
        size_hw=size_hw,
        data="unused",
    )
    made = exported(MODEL, request.size_hw)
    layout, path = request.layout(made.card), tmp_path / f"a{row.suffix}"
    if row.int8:
        quantizer = quantizer_of(
            row.name, exported, request.size_hw, layout.batch if row.fixed_batch else None, data_folder
        )
        model, _ = quantizer.compose(layout, keep_float=())
    else:
        network = network_of(row.module, exported, request.size_hw, layout.batch if row.fixed_batch else None)
        model = row.writer.compose(network, made.card, layout)
    precision = "int8" if row.int8 else "float32"
    row.writer.write(model, path, metadata_of(made.card, layout, precision=precision), made.card)
    report = verify(path, remembered(made.detector), made.card, pictures[:COUNT])
    assert report.failures == []
    assert report.precision == precision
    assert {tensor.output for tensor in report.tensors} == {"network_input", "offsets", "logits"}
    assert (report.head_alone is None) == (head == "raw")
    if row.int8:
        assert report.found_again is not None
        assert report.found_again > 0.85
    else:
        assert report.detections is not None
        assert report.detections.paired >= 0.98 * report.detections.expected > 0


def test_the_tables_agree_with_the_modules_that_they_name() -> None:
    from multibox.export import litert_heads, onnx_heads

    assert set(onnx_heads.WRITERS) == set(HEADS)
    assert set(litert_heads.WRITERS) == set(FORMATS["litert"].heads)
    for row in FORMATS.values():
        assert importlib.util.find_spec(row.module) is not None
        assert set(row.heads) <= set(HEADS)
        assert {*row.one_picture, *row.by_class} <= set(row.heads)
        assert row.name.endswith("-int8") == bool(row.int8)
