"""Cascades through every format and head: the file finds what the `Detector` with the torch engine finds."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnx", reason="the export extra is not installed")

import toy_cascades
from torch import nn

from multibox.export.formats import FORMATS, Format
from multibox.export.layout import Layout, metadata_of
from multibox.export.verify.artefact import Artefact
from multibox.export.verify.check import Report, verify
from multibox.export.verify.samples import drawn_pictures
from multibox.inference import Detector
from multibox.inference.engines.torch import TorchEngine
from multibox.models import create_model
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections
from multibox.weights import make_card

pytestmark = pytest.mark.slow

BATCH = 2
CASCADES = toy_cascades.__all__
FLOAT = [row.name for row in FORMATS.values() if not row.int8]
INT8 = [row.name for row in FORMATS.values() if row.int8]


def installed(row: Format) -> Format:
    for package, extra in row.packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the {extra} extra is not installed")
    return row


@cache
def pictures() -> tuple[np.ndarray, ...]:
    return tuple(drawn_pictures()[:5])


@cache
def cascade(name: str) -> tuple[Any, Any]:
    network = create_model(name).eval()
    return network, make_card(network, ClassMap(("cat", "dog", "bird")), name=name)


@cache
def found_by_torch(name: str) -> list[Detections]:
    network, card = cascade(name)
    detector = Detector.of_engine(TorchEngine(network, card), source=name)
    return detector.predict(pictures(), conf=card.postprocess.score_threshold)


@cache
def converted(name: str, module: str, batch: int | None) -> Any:
    row = next(row for row in FORMATS.values() if row.module == module)
    return row.writer.convert_network(*cascade(name), batch=batch)


def written(path: Path, name: str, row: Format, layout: Layout) -> Path:
    _, card = cascade(name)
    module = "multibox.export.litert" if row.fixed_batch else "multibox.export.onnx"  # all others begin with ONNX
    network = converted(name, module, layout.batch if row.fixed_batch else None)
    if row.int8:
        model, _ = row.quantizer(network, card, pictures()).compose(layout)
    else:
        model = row.writer.compose(network, card, layout)
    path = path / f"a{row.suffix}"
    row.writer.write(model, path, metadata_of(card, layout, precision="int8" if row.int8 else "float32"), card)
    return path


@pytest.mark.parametrize(("format", "head"), [(name, head) for name in FLOAT for head in FORMATS[name].heads])
@pytest.mark.parametrize("name", CASCADES)
def test_a_file_finds_what_torch_finds(name: str, format: str, head: str, tmp_path: Path) -> None:
    row = installed(FORMATS[format])
    single = head == "frigate" or head in row.one_picture
    layout = Layout(head, 1 if single else BATCH if row.fixed_batch else None)
    artefact = Artefact(written(tmp_path, name, row, layout))
    given = [seen.found for seen in artefact.see(pictures())]
    expected = found_by_torch(name)
    assert min(len(found) for found in expected) > 0
    for ours, theirs in zip(expected, given, strict=True):
        assert ours.class_map == theirs.class_map
        np.testing.assert_array_equal(theirs.labels, ours.labels)
        np.testing.assert_allclose(theirs.scores, ours.scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(theirs.boxes_xyxy, ours.boxes_xyxy, rtol=0, atol=1e-3)


class LastStage(nn.Module):
    """A broken fold: what the last stage says, as if it were against the default boxes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Any) -> Any:
        return self.network(images)[-1]


@pytest.mark.parametrize("format", ["onnx", "litert"])
@pytest.mark.parametrize("name", CASCADES)
def test_an_exporter_that_takes_the_last_stage_alone_is_found_out(
    name: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = installed(FORMATS[format])
    monkeypatch.setattr(f"{row.module}.FoldedNetwork", LastStage)
    network, card = cascade(name)
    layout, path = Layout(batch=1), tmp_path / f"a{row.suffix}"
    model = row.writer.compose(row.writer.convert_network(network, card, batch=1), card, layout)
    row.writer.write(model, path, metadata_of(card, layout), card)
    failures = verify(path, network, card, pictures()).failures
    assert any(failure.startswith("offsets, level ") for failure in failures)
    assert any(failure.startswith("detections: ") for failure in failures)


@pytest.mark.parametrize("format", INT8)
@pytest.mark.parametrize("name", CASCADES)
def test_int8_rounds_the_layers_and_not_the_fold(name: str, format: str, tmp_path: Path) -> None:
    row = installed(FORMATS[format])
    head = row.heads[-1]
    layout = Layout(head, 1 if head in row.one_picture else BATCH)
    network, card = cascade(name)
    report: Report = verify(written(tmp_path, name, row, layout), network, card, pictures())
    assert report.failures == []
    assert report.found_again is not None
    assert report.found_again > 0.75
