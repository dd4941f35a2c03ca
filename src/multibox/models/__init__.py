"""Networks: features, heads and the detectors built from them. Needs torch (the `train` extra)."""

from multibox.models.network import DetectionNetwork
from multibox.models.registry import create_model, list_models, register_model

__all__ = ["DetectionNetwork", "create_model", "list_models", "register_model"]
