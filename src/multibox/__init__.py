"""multibox: single-shot (SSD-family) object detection.

>>> import multibox
>>> detector = multibox.Detector("ssdlite300-coco")
>>> detector("cat.jpg").save("cat-boxes.jpg")

Public names are loaded when they are first used; importing the package loads neither torch nor onnxruntime.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibox.errors import MultiboxError
    from multibox.inference.detector import Detector, load
    from multibox.spec.classes import COCO_CLASSES, VOC_CLASSES, ClassMap
    from multibox.spec.detections import Detection, Detections

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
    "load",
]

_HOMES = {
    "COCO_CLASSES": "multibox.spec.classes",
    "VOC_CLASSES": "multibox.spec.classes",
    "ClassMap": "multibox.spec.classes",
    "Detection": "multibox.spec.detections",
    "Detections": "multibox.spec.detections",
    "Detector": "multibox.inference.detector",
    "MultiboxError": "multibox.errors",
    "load": "multibox.inference.detector",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'multibox' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
