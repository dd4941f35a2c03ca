"""How long this checkout takes beside another one, in one run: single pictures and folders, in turns.

    python benchmarks/two_checkouts.py OTHER_CHECKOUT PICTURES MODEL… [--rounds 40] [--engine onnxruntime]

Each checkout's package runs in a process of its own that keeps its detectors open. They take turns on the same files,
the one that begins changing from round to round, so that whatever else the machine does meets both alike. Printed is
the median over rounds of the ratio this / other, with its quartiles; below 1 this checkout is the faster one. The
detections of both must be equally many.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parents[1]
WORKER = """
import json, sys, time
from multibox import Detector
model, engine, *paths = json.loads(sys.stdin.readline())
detector = Detector(model, engine=engine)
for line in sys.stdin:
    start = time.perf_counter()
    if line.strip() == "folder":
        found = list(detector.stream(paths))
    else:
        found = [detector(path) for path in paths]
    spent = time.perf_counter() - start
    print(json.dumps([spent / len(paths), [len(one) for one in found]]), flush=True)
"""


def opened(checkout: Path, model: str, engine: str, paths: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([model, engine, *paths]) + "\n")
    return process


def turn(process: subprocess.Popen[str], kind: str) -> tuple[float, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{kind}\n")
    process.stdin.flush()
    seconds, counts = json.loads(process.stdout.readline())
    return seconds, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--count", type=int, default=24, help="pictures in a turn")
    parser.add_argument("--engine", default="onnxruntime")
    arguments = parser.parse_args()
    paths = [str(path) for path in sorted(arguments.pictures.glob("*.jpg"))[: arguments.count]]
    for model in arguments.models:
        both = [opened(checkout, model, arguments.engine, paths) for checkout in (HERE, arguments.other)]
        for kind in ("single", "folder"):
            ratios, seconds = [], []
            for number in range(arguments.rounds + 2):
                order = (0, 1) if number % 2 else (1, 0)
                found = {which: turn(both[which], kind) for which in order}
                if found[0][1] != found[1][1]:
                    raise SystemExit(f"{model}: {found[0][1]} objects here, {found[1][1]} there")
                if number >= 2:  # the first rounds warm up
                    ratios.append(found[0][0] / found[1][0])
                    seconds.append(found[0][0])
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            print(
                f"{Path(model).name}, {kind}: {middle:.3f} ({low:.3f} … {high:.3f}), "
                f"{1e3 * np.median(seconds):.1f} ms a picture here",
                flush=True,
            )
        for process in both:
            process.kill()


if __name__ == "__main__":
    main()
