"""Prediction: engines that run a model file, and the detector that turns pictures into detections with any of them."""

from multibox.inference.detector import Deferred, Detector, load

__all__ = ["Deferred", "Detector", "load"]
