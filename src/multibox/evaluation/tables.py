"""Text tables in which a number that is not defined is a dash, never a zero and never NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNDEFINED", "defined", "mean_defined", "number", "text_table"]

UNDEFINED = "–"


def number(value: float | None, digits: int = 4) -> str:
    """The value with so many digits, or a dash."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def defined(value: float) -> float | None:
    """A plain float, or None where it is NaN: the form of an undefined number in results and in JSON."""
    return None if math.isnan(value) else float(value)


def mean_defined(values: NDArray[np.float64]) -> float:
    """The mean of the values that are not NaN; NaN where there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else math.nan


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, flush_left: Sequence[int] = (0,)) -> str:
    """Columns of text, flush right but for those given by index."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in flush_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
