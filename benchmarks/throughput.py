"""A folder in one go against one picture after the other, in pictures a second, and whether both find the same.

    python benchmarks/throughput.py DATA [--pictures 96] [--rounds 5] [--threads N]

The ways take turns on the same files, so whatever else runs meets all of them; ratios are medians over rounds. Beside
the two there is what the parts would do alone: only reading ahead, and one thread with one picture at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from multibox import Detections, Detector
from multibox.cpus import usable_cpus
from multibox.pictures.sources import expand_sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="ssdlite300-coco")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    options = parser.parse_args()
    found = [source.location for source in expand_sources([str(options.data)]).sources if source.kind == "file"]
    paths = [path for path in found if path.endswith(".jpg")][: options.pictures]

    def opened(threads: int) -> Detector:
        return Detector(options.model, engine=options.engine, threads=threads)

    detector, single, reading = opened(options.threads), opened(1), opened(options.threads)
    reading._twins[min(options.threads, 8)] = None  # as if there was no network for each worker
    ways: dict[str, Callable[[], list[Detections]]] = {
        "one by one": lambda: [detector(path) for path in paths],
        "one by one, one thread": lambda: [single(path) for path in paths],
        "only reading ahead": lambda: reading.predict(paths),
        "stream": lambda: detector.predict(paths),
    }
    results = {name: way() for name, way in ways.items()}
    for name, others in results.items():
        same = sum(a == b for a, b in zip(results["one by one"], others, strict=True))
        print(f"{name:24} {same} of {len(paths)} results equal those one by one, bit for bit")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            rates[name].append(len(paths) / (time.perf_counter() - started))
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["one by one"], strict=True))
        print(f"{name:24} {statistics.median(values):6.1f} pictures/s, × {ratio:.2f}  (best {max(values):.1f})")


if __name__ == "__main__":
    main()
