"""Pictures a second that the data doctor examines, with headers only and with every picture decoded.

    python benchmarks/doctor_speed.py [--pictures 2000] [--workers 1 2] [--repeats 3]

Makes JPEG pictures of 500 × 375 pixels (VOC's usual size, quality 90) with seven boxes each in a temporary folder. The
first figure counts the whole examination, boxes and classes included, but not reading the annotations. The fastest of
the repeats is told: what is in the way is the rest of the machine. "per core" divides by the processor time used.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from multibox.data import Dataset, ImageRecord
from multibox.doctor import examine
from multibox.spec.classes import ClassMap

SIZE_HW = (375, 500)
BOXES = 7


def make(folder: Path, count: int) -> Dataset:
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(SIZE_HW[::-1])
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (*SIZE_HW, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.jpg", quality=90)
        corner = rng.uniform(0, 300, (BOXES, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 70, (BOXES, 2))], axis=1)
        records.append(ImageRecord(f"{i:06d}.jpg", i, SIZE_HW, boxes, rng.integers(0, 3, BOXES), split="train"))
    return Dataset.from_records(records, ClassMap(("a", "b", "c")), root=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        dataset = make(Path(name), options.pictures)
        bytes_each = sum(file.stat().st_size for file in Path(name).iterdir()) / len(dataset)
        print(f"{len(dataset)} JPEGs of 500 × 375, {bytes_each / 1000:.0f} kB each, {os.cpu_count()} cores")
        for deep in (False, True):
            for workers in options.workers:
                runs = []
                for _ in range(options.repeats):
                    wall, cpu = time.perf_counter(), time.process_time()
                    examine(dataset, deep=deep, workers=workers)
                    runs.append((time.perf_counter() - wall, time.process_time() - cpu))
                wall, cpu = min(runs)
                kind = "deep" if deep else "headers only"
                rates = f"{len(dataset) / wall:7.0f} pictures/s, {len(dataset) / cpu:7.0f} per core"
                print(f"{kind:<13} workers={workers}  {rates}")


if __name__ == "__main__":
    main()
