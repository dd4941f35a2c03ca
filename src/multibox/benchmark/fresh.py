"""What a new process pays: opened with `python -m`, this opens a model, looks at a picture, and reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["fresh_process"]

MORE_DETECTIONS = 10  # before the peak memory is read
LONGEST_S = 120.0


def fresh_process(model: str, *, engine: str, threads: int, picture: Path) -> dict[str, float | None] | None:
    """Times in milliseconds and memory in MB of a process that starts for this; None if it does not end well.

    load_ms: imports and opening the model. first_ms: the first detection after that. start_ms: from starting the
    process to its first result. peak_mb: most memory, after a few more detections.
    """
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    options = {"model": model, "engine": engine, "threads": threads, "picture": str(picture), "began": time.time()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "multibox.benchmark.fresh", json.dumps(options)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            timeout=LONGEST_S,
            check=True,
        )
        found: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return found


def _measure(options: dict[str, Any]) -> dict[str, float | None]:
    started = time.perf_counter()
    from multibox.inference.detector import Detector

    detector = Detector(options["model"], engine=options["engine"], threads=options["threads"])
    opened = time.perf_counter()
    detector(options["picture"])
    found, since_start = time.perf_counter(), time.time() - options["began"]
    for _ in range(MORE_DETECTIONS):
        detector(options["picture"])
    from multibox.benchmark.machine import peak_memory_mb

    return {
        "load_ms": 1e3 * (opened - started),
        "first_ms": 1e3 * (found - opened),
        "start_ms": 1e3 * since_start,
        "peak_mb": peak_memory_mb(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(json.loads(sys.argv[1]))) + "\n")
