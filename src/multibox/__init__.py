"""multibox: single-shot (SSD-family) object detection.

>>> import multibox
>>> detector = multibox.Detector("ssdlite300-coco")
>>> detector("cat.jpg").save("cat-boxes.jpg")

`train`, `validate` and `export` do what the commands of these names do, `read_dataset` reads annotated pictures, and
`create_model` builds a network.

Public names are loaded when they are first used; importing the package loads neither torch nor onnxruntime.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibox.data import read_dataset
    from multibox.errors import MultiboxError
    from multibox.inference.detector import Detector, load
    from multibox.models.registry import create_model
    from multibox.spec.classes import COCO_CLASSES, VOC_CLASSES, ClassMap
    from multibox.spec.detections import Detection, Detections
    from multibox.verbs import export, train, validate

__version__ = "0.1.0"

__all__ = [
    "COCO_CLASSES",
    "VOC_CLASSES",
    "ClassMap",
    "Detection",
    "Detections",
    "Detector",
    "MultiboxError",
    "__version__",
    "create_model",
    "export",
    "load",
    "read_dataset",
    "train",
    "validate",
]

_HOMES = {
    "COCO_CLASSES": "multibox.spec.classes",
    "VOC_CLASSES": "multibox.spec.classes",
    "ClassMap": "multibox.spec.classes",
    "Detection": "multibox.spec.detections",
    "Detections": "multibox.spec.detections",
    "Detector": "multibox.inference.detector",
    "MultiboxError": "multibox.errors",
    "create_model": "multibox.models.registry",
    "export": "multibox.verbs",
    "load": "multibox.inference.detector",
    "read_dataset": "multibox.data",
    "train": "multibox.verbs",
    "validate": "multibox.verbs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'multibox' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
