"""What the rounds amount to: percentiles, throughput, and ratios within rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from multibox.benchmark.contenders import Ours, Sample
from multibox.benchmark.turns import Timed

__all__ = ["comparison", "counterparts", "percentiles_ms", "row"]

PERCENTILES = (50, 90, 99)


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds, by linear interpolation."""
    return {f"p{p}": 1e3 * float(np.percentile(seconds, p)) for p in PERCENTILES}


def row(one: Ours, entry: Timed, folder: Timed | None, start: dict[str, float | None] | None) -> dict[str, Any]:
    """The row of one of ours: one call after another, a folder as a stream, and a fresh process."""
    samples = entry.samples
    pictures, spent = sum(s.pictures for s in samples), sum(s.total for s in samples)
    passes = folder.samples if folder else []
    folder_spent = sum(s.total for s in passes)
    return {
        "model": one.model,
        "engine": one.name,
        "threads": one.threads,
        "batch": one.batch,
        "calls": len(samples),
        "total_ms": percentiles_ms([s.total for s in samples]),
        "network_ms": percentiles_ms([s.network for s in samples]),
        "decode_ms": percentiles_ms([s.decode for s in samples]),
        "postprocess_ms": percentiles_ms([s.postprocess for s in samples]),
        "pictures_per_s": pictures / spent,
        "network_pictures_per_s": pictures / sum(s.network for s in samples),
        "folder_pictures_per_s": sum(s.pictures for s in passes) / folder_spent if passes else None,
        "folder_speedup": _ratio(entry, folder) if folder else None,
        "joules_per_picture": _joules(entry),
        "folder_joules_per_picture": _joules(folder) if folder else None,
        **(start or dict.fromkeys(("load_ms", "first_ms", "start_ms", "peak_mb"))),
    }


def _joules(entry: Timed) -> float | None:
    return None if entry.joules is None else entry.joules / sum(s.pictures for s in entry.samples)


def _ratio(slower: Timed, faster: Timed, *, without_postprocess: bool = False) -> float:
    """How many times as long a picture takes: the median over rounds."""

    def a_picture(turn: list[Sample]) -> float:
        spent = sum(s.total - (s.postprocess if without_postprocess else 0) for s in turn)
        return spent / sum(s.pictures for s in turn)

    pairs = zip(slower.rounds, faster.rounds, strict=True)
    return float(np.median([a_picture(a) / a_picture(b) for a, b in pairs]))


def counterparts(alive: dict[int, Timed], ours: list[Ours], threads: int) -> list[tuple[Ours, Timed]]:
    """Ours at one picture a call and as many threads, or at the smallest batch that was asked for."""
    least = min(one.batch for one in ours)
    fitting = [one for one in ours if id(one) in alive and one.threads == threads and one.batch == least]
    return [(one, alive[id(one)]) for one in fitting]


def comparison(theirs: Timed, ours: list[tuple[Ours, Timed]]) -> dict[str, Any]:
    """The row of another's detector, and how many times as long as ours it takes."""
    samples = theirs.samples
    return {
        "name": theirs.contender.name,
        "threads": theirs.contender.threads,
        "calls": len(samples),
        "total_ms": percentiles_ms([s.total for s in samples]),
        "network_ms": percentiles_ms([s.network for s in samples]),
        "postprocess_ms": percentiles_ms([s.postprocess for s in samples]),
        "times_ours": [
            {
                "model": one.model,
                "engine": one.name,
                "total": _ratio(theirs, entry),
                "without_postprocess": _ratio(theirs, entry, without_postprocess=True),
            }
            for one, entry in ours
        ],
    }
