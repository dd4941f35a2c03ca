"""Memory and time of a data set with a million boxes: reading it, and worker processes that walk through it.

    python benchmarks/dataset_memory.py [--boxes 1000000] [--workers 2] [--format coco]

Prints the resident memory (MB) of this process before and after reading and at its peak, and for each worker, after
starting and after each walk over all pictures, the memory that is its own (not shared with its parent). Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import pickle
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data import Dataset, read_dataset, write_dataset

BOXES_A_PICTURE = 7.3  # COCO train2017: 860,001 boxes in 117,266 pictures
WALKS = 3


def memory_mb(*keys: str) -> float:
    """Sum of fields of /proc/self/smaps_rollup."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in keys) / 1024


def write_coco(file: Path, boxes: int) -> None:
    rng = np.random.default_rng(0)
    pictures = max(1, int(boxes / BOXES_A_PICTURE))
    with file.open("w", encoding="utf-8") as stream:
        stream.write('{"categories": ' + json.dumps([{"id": i, "name": f"class {i}"} for i in range(1, 81)]))
        stream.write(', "images": [')
        entry = '{{"id": {0}, "file_name": "{0:012d}.jpg", "width": 640, "height": 480}}'
        stream.write(",".join(entry.format(i) for i in range(pictures)))
        stream.write('], "annotations": [')
        for start in range(0, boxes, 10_000):
            count = min(10_000, boxes - start)
            columns = [
                rng.integers(0, pictures, count),
                rng.integers(1, 81, count),
                *rng.uniform(1, 300, (4, count)).round(2),
            ]
            for i, (picture, category, x, y, w, h) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
                box = f'"bbox": [{x}, {y}, {w}, {h}], "area": {w * h:.4f}, "iscrowd": 0'
                comma = "," if start + i else ""
                stream.write(f'{comma}{{"id": {start + i}, "image_id": {picture}, "category_id": {category}, {box}}}')
        stream.write("]}")


def walk(dataset: Dataset, results: Any) -> None:
    own = [memory_mb("Private_Dirty", "Private_Clean")]
    for _ in range(WALKS):
        checked = 0
        for record in dataset:
            checked += len(record)
        assert checked == dataset.num_boxes
        own.append(memory_mb("Private_Dirty", "Private_Clean"))
    results.put(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--format", default="coco", choices=["coco", "csv", "parquet"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"set.{'json' if options.format == 'coco' else options.format}"
        generate(file, options.boxes)
        print(f"{options.boxes} boxes as {options.format}, {file.stat().st_size / 1e6:.0f} MB on disk")
        before, started = memory_mb("Rss"), time.perf_counter()
        dataset = read_dataset(file, check_pictures=False)
        seconds = time.perf_counter() - started
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"read in {seconds:.1f} s: {before:.0f} MB before, {memory_mb('Rss'):.0f} MB after, {peak:.0f} MB at the peak"
    )
    print(f"pickled: {len(pickle.dumps(dataset, protocol=pickle.HIGHEST_PROTOCOL)) / 1e6:.0f} MB")
    started = time.perf_counter()
    for _ in dataset:
        pass
    print(f"walking over {len(dataset)} pictures: {(time.perf_counter() - started) / len(dataset) * 1e6:.0f} µs each")
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        results = context.Queue()
        workers = [context.Process(target=walk, args=(dataset, results)) for _ in range(options.workers)]
        for worker in workers:
            worker.start()
        for number in range(options.workers):
            own = ", ".join(f"{value:.0f}" for value in results.get())
            print(f"{method} worker {number}: own memory {own} MB (at the start, after each walk)")
        for worker in workers:
            worker.join()


def generate(file: Path, boxes: int) -> None:
    """In a process of its own, so that what it needs does not count."""
    job = multiprocessing.get_context("spawn").Process(target=_generate, args=(file, boxes))
    job.start()
    job.join()
    if job.exitcode:
        raise SystemExit(job.exitcode)


def _generate(file: Path, boxes: int) -> None:
    coco = file.with_suffix(".json")
    write_coco(coco, boxes)
    if file != coco:
        write_dataset(read_dataset(coco, check_pictures=False), file)
        coco.unlink()


if __name__ == "__main__":
    main()
