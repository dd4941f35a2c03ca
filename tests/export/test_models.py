"""Every registered network, and every head of a small one, free and fixed batch, against eager torch on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnx", reason="the export extra is not installed")

import toy_cascades  # noqa: F401  (registers them)

from multibox.catalogue import CATALOGUE
from multibox.export.heads import HEADS
from multibox.export.layout import Layout, metadata_of
from multibox.export.onnx import compose, write_onnx
from multibox.export.verify.check import verify
from multibox.export.verify.samples import drawn_pictures
from multibox.inference import Detector
from multibox.models import list_models
from multibox.pictures.read import read_picture

pytestmark = pytest.mark.slow

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))
FEW = 2


@pytest.fixture(scope="module")
def sixteen(request: pytest.FixtureRequest) -> list[np.ndarray]:
    """Real pictures where the data folder is, else the examples and drawn ones."""
    try:
        folder: Path = request.getfixturevalue("data_folder")
        paths = sorted((folder / "coco_val128" / "images").rglob("*.jpg"))[:16]
    except pytest.skip.Exception:
        paths = EXAMPLES
    return [np.asarray(read_picture(path)) for path in paths] + drawn_pictures()[: 16 - len(paths)]


TINY, SIZE_HW, BATCH = "tinyssd256", (96, 64), 3
# Near the smallest size that the network has; its own where none is given, as of a new one.
SHIPPED = {"ssdlite300_mobilenetv2": "ssdlite300-coco"}
SMALLER = {TINY: SIZE_HW, "ssd300_vgg16": (275, 280), "ssd512_vgg16": (385, 390)}
SMALLER |= {
    name: (128, 140)
    for name in list_models()
    if name.startswith(("bpn", "refinedet", "ssd_backbone")) or "resnet" in name
}
LARGER = (  # the layers of another one at another size, or more of them
    *("ssd512_vgg16", "bpn512_vgg16", "refinedet512_vgg16"),
    *(
        "ssdlite320_efficientnet_lite1",
        "ssdlite320_efficientnet_lite2",
        "ssd300_resnet50",
        "ssd512_resnet34",
        "ssd512_resnet50",
    ),
)


def check(made: Any, layout: Layout, tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = tmp_path / "test.onnx"
    write_onnx(compose(made.network, made.card, layout), path, metadata_of(made.card, layout))
    report = verify(path, made.detector, made.card, pictures)
    assert report.failures == []
    assert report.detections is not None
    assert report.detections.paired >= 0.98 * max(report.detections.expected, report.detections.given) > 0
    assert {row.output for row in report.tensors} == {"network_input", "offsets", "logits"}


@pytest.mark.parametrize("head", HEADS)
def test_free_batch(head: str, tmp_path: Path, sixteen: list[np.ndarray], exported: Any) -> None:
    layout = Layout(head, 1 if HEADS[head].single else None, preprocess=head in ("nms", "decoded"))
    check(exported(TINY, SIZE_HW), layout, tmp_path, sixteen)


@pytest.mark.parametrize("head", [head for head in HEADS if not HEADS[head].single])
def test_fixed_batch(head: str, tmp_path: Path, sixteen: list[np.ndarray], exported: Any) -> None:
    layout = Layout(head, BATCH, preprocess=head == "tflite4")
    check(exported(TINY, SIZE_HW), layout, tmp_path, sixteen[: BATCH + 1])


@pytest.mark.parametrize("name", list_models())
def test_every_registered_network(name: str, tmp_path: Path, sixteen: list[np.ndarray], exported: Any) -> None:
    made = exported(SHIPPED.get(name, name), SMALLER.get(name))
    layouts = [Layout("raw"), Layout("nms", preprocess=True)]
    for layout in layouts[:1] if name in LARGER else layouts:
        check(made, layout, tmp_path, sixteen[:FEW])


def test_the_shipped_onnx_is_the_export_of_the_shipped_weights(tmp_path: Path, exported: Any) -> None:
    made = exported("ssdlite300-coco")
    assert "Pad" not in {node.op_type for node in made.network.graph.node}  # same padding costs no node
    path = tmp_path / "again.onnx"
    write_onnx(compose(made.network, made.card, Layout("raw")), path, metadata_of(made.card, Layout("raw")))
    shipped, again = Detector(CATALOGUE["ssdlite300-coco"].path(".onnx")), Detector(path)
    for example in EXAMPLES:
        for ours, theirs in zip(shipped.raw(example), again.raw(example), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
