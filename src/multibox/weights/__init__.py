"""Weights: the safetensors store, opening by name, and the importers of foreign formats.

All of it but the table of importers needs torch (the `train` extra), which is loaded when a name here is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibox.weights.store import load_detector, make_card, save_detector

__all__ = ["load_detector", "make_card", "save_detector"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'multibox.weights' has no attribute {name!r}")
    from multibox.weights import store

    return getattr(store, name)
