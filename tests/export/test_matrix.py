"""Every format, head, batch (free or fixed) and input size (own or another) against torch on real pictures."""

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

from multibox.export.heads import HEADS
from multibox.export.litert_heads import WRITERS
from multibox.export.openvino import convert, write_openvino
from multibox.export.request import TRITON_HEADS
from multibox.export.verify import ExportRequest, Report, verify
from multibox.export.writing import composed, metadata_for, write
from multibox.pictures.read import read_picture

MODEL = "ssdlite300-coco"
COUNT, CALIBRATING = 16, 8
SIZES: dict[str, tuple[int, int] | None] = {"own size": None, "another size": (192, 256)}
BATCHES = {"free": None, "fixed": 2}
FILES = {"onnx": "a.onnx", "openvino": "a.xml", "triton": "a"}
CELLS = [
    (format, head, batch, size)
    for format in FILES
    for head in (TRITON_HEADS if format == "triton" else HEADS)
    for batch in BATCHES
    for size in SIZES
    if not (HEADS[head].single and batch == "free")
]


class Remembered:
    """A network that is asked once for each input: all cells compare with the same numbers."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._known: dict[bytes, Any] = {}

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


@pytest.fixture
def pictures(data_folder: Path) -> list[np.ndarray]:
    found = read(data_folder)
    assert len(found) == COUNT + CALIBRATING
    return found


def needs(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the {extra} extra is not installed")


def asked(format: str, head: str, batch: str, size: str) -> ExportRequest:
    """With preprocessing inside at the other size, and outside at the model's own."""
    number = 1 if HEADS[head].single else BATCHES[batch]
    return ExportRequest(
        MODEL, format, head, batch=number, preprocess=size == "another size", size_hw=SIZES[size], data="unused"
    )


@pytest.mark.parametrize(("format", "head", "batch", "size"), CELLS)
def test_float(
    format: str, head: str, batch: str, size: str, pictures: list[np.ndarray], exported: Any, tmp_path: Path
) -> None:
    if format == "openvino":
        needs("openvino", "openvino")
    request = asked(format, head, batch, size)
    made = exported(MODEL, request.size_hw, request.fixed_batch)
    path = tmp_path / FILES[format]
    write(composed(made.network, made.card, request), path, made.card, request)
    first = exported(MODEL, request.size_hw, None)  # the same weights for any batch
    judged_float(remembered(first.detector), made.card, path, pictures, head)


def judged_float(source: Any, card: Any, path: Path, pictures: list[np.ndarray], head: str) -> None:
    report = verify(path, source, card, pictures[:COUNT])
    assert report.failures == []
    assert {row.output for row in report.tensors} == {"network_input", "offsets", "logits"}
    assert report.detections is not None
    assert report.detections.paired >= 0.98 * report.detections.expected > 0
    assert (report.head_alone is None) == (head == "raw")


@cache
def quantizer(exported: Callable[..., Any], size_hw: tuple[int, int] | None, folder: Path) -> Any:
    from multibox.export.quantize import Quantizer

    made = exported(MODEL, size_hw, None)
    return Quantizer(made.network, [made.card.preprocess(picture)[0] for picture in read(folder)[COUNT:]])


@cache
def onnx_int8(exported: Callable[..., Any], size_hw: tuple[int, int] | None, folder: Path) -> bytes:
    content: bytes = quantizer(exported, size_hw, folder).quantised().SerializeToString()
    return content


def judged_int8(source: Any, card: Any, path: Path, pictures: list[np.ndarray], head: str) -> None:
    report: Report = verify(path, source, card, pictures[:COUNT])
    assert report.precision == "int8"
    assert report.failures == []
    assert report.found_again is not None
    assert report.found_again > 0.85
    assert (report.head_alone is None) == (head == "raw")


@pytest.mark.parametrize(("head", "batch", "size"), [cell[1:] for cell in CELLS if cell[0] == "onnx"])
def test_onnx_int8(
    head: str,
    batch: str,
    size: str,
    pictures: list[np.ndarray],
    data_folder: Path,
    exported: Callable[..., Any],
    tmp_path: Path,
) -> None:
    import onnx

    from multibox.export.int8_search import with_batch
    from multibox.export.onnx import write_onnx

    request = asked("onnx-int8", head, batch, size)
    made = exported(MODEL, request.size_hw, None)
    network = onnx.load_from_string(onnx_int8(exported, request.size_hw, data_folder))
    if request.fixed_batch is not None:
        network = with_batch(network, request.fixed_batch)
    write_onnx(composed(network, made.card, request), tmp_path / "a.onnx", metadata_for(made.card, request))
    judged_int8(remembered(made.detector), made.card, tmp_path / "a.onnx", pictures, head)


@pytest.mark.parametrize(("head", "batch", "size"), [cell[1:] for cell in CELLS if cell[0] == "openvino"])
def test_openvino_int8(
    head: str,
    batch: str,
    size: str,
    pictures: list[np.ndarray],
    data_folder: Path,
    exported: Callable[..., Any],
    tmp_path: Path,
) -> None:
    needs("openvino", "openvino")
    needs("nncf", "quantize")
    from multibox.export.int8_search import _at
    from multibox.export.quantize_openvino import quantise_openvino

    request = asked("openvino-int8", head, batch, size)
    made = exported(MODEL, request.size_hw, request.fixed_batch)
    picture_hw = request.picture_hw(made.card)
    taken = pictures[COUNT:] if picture_hw is None else [_at(picture, picture_hw) for picture in pictures[COUNT:]]
    inputs = [
        np.stack([picture if request.takes_pictures else made.card.preprocess(picture)[0]] * (request.fixed_batch or 1))
        for picture in taken
    ]
    keep_float = quantizer(exported, request.size_hw, data_folder).always_float
    quantised = quantise_openvino(convert(composed(made.network, made.card, request)), inputs, keep_float=keep_float)
    write_openvino(quantised, tmp_path / "a.xml", metadata_for(made.card, request))
    judged_int8(remembered(made.detector), made.card, tmp_path / "a.xml", pictures, head)


# ------------------------------------------------------------------------------------------------ LiteRT


LITERT_CELLS = [
    (head, number, size) for head in WRITERS for number in (1, 2) for size in SIZES if (head, number) != ("tflite4", 2)
]


def litert_world(head: str, number: int, size: str, *, int8: bool = False) -> tuple[ExportRequest, Any, Any, bytes]:
    for package in ("ai_edge_litert", "litert_torch", "ai_edge_quantizer"):
        needs(package, "litert")
    request = ExportRequest(
        MODEL,
        "litert-int8" if int8 else "litert",
        head,
        batch=number,
        preprocess=size == "another size",
        size_hw=SIZES[size],
        data="unused",
    )
    return request, *litert_made(SIZES[size], number)


@cache
def litert_made(size_hw: tuple[int, int] | None, number: int) -> tuple[Any, Any, bytes]:
    from multibox.export.litert import litert_network
    from multibox.export.source import open_source

    detector, card = open_source(MODEL, size_hw=size_hw)
    return detector, card, litert_network(detector, card, batch=number)


@cache
def litert_int8(size_hw: tuple[int, int] | None, number: int, folder: Path) -> bytes:
    from multibox.export.quantize_litert import LitertQuantizer

    _, card, network = litert_made(size_hw, number)
    inputs = [card.preprocess(picture)[0] for picture in read(folder)[COUNT:]]
    return LitertQuantizer(network, inputs).quantised()


@pytest.mark.parametrize(("head", "number", "size"), LITERT_CELLS)
def test_litert(head: str, number: int, size: str, pictures: list[np.ndarray], tmp_path: Path) -> None:
    request, detector, card, network = litert_world(head, number, size)
    write(composed(network, card, request), tmp_path / "a.tflite", card, request)
    judged_float(remembered(detector), card, tmp_path / "a.tflite", pictures, head)


@pytest.mark.parametrize(("head", "number", "size"), LITERT_CELLS)
def test_litert_int8(
    head: str, number: int, size: str, pictures: list[np.ndarray], data_folder: Path, tmp_path: Path
) -> None:
    from multibox.export.litert import write_litert

    request, detector, card, _ = litert_world(head, number, size, int8=True)
    quantised = litert_int8(request.size_hw, number, data_folder)
    write_litert(composed(quantised, card, request), tmp_path / "a.tflite", metadata_for(card, request))
    judged_int8(remembered(detector), card, tmp_path / "a.tflite", pictures, head)
