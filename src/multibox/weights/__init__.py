"""Weights: the safetensors store and the importers of foreign formats. Needs torch (the `train` extra)."""

from multibox.weights.store import load_detector, make_card, save_detector

__all__ = ["load_detector", "make_card", "save_detector"]
