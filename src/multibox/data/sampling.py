"""Some of many things, the same ones every time."""

from __future__ import annotations

import numpy as np

__all__ = ["evenly"]


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 … count−1, ascending and evenly spread, the first and the last among them.

    >>> evenly(11, 3)
    [0, 5, 10]
    """
    return [round(place) for place in np.linspace(0, count - 1, min(count, limit)).tolist()] if count else []
