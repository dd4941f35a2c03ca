"""What the default recipe gives on four data sets, from start to end, with the interval of the end.

    python benchmarks/default_training.py DATA WORK [--sets voc bccd raccoon gem] [--seeds 0 1 2]

DATA holds the folders `voc_sample` and `bccd` in the VOC format. `voc` has classes that the model knows, `bccd` and the
two sets made here have new ones: `raccoon`, voc_sample's cats under that name (a few dozen pictures of one thing), and
`gem`, the drawn bananas of make_sprites.py under that name. Every run is what `multibox train SET seed=N` and
`multibox val` do, with nothing else given than the splits. Runs and sets are left in WORK; a line per run is printed,
and appended to WORK/results.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from make_sprites import make

import multibox
from multibox.data import Dataset, write_dataset
from multibox.spec.classes import ClassMap

PER_BOX = ("boxes_xyxy", "labels", "crowd", "difficult", "truncated", "occluded", "area")
GIVEN: dict[str, tuple[dict[str, Any], str]] = {  # options of training, and the split to measure
    "voc": ({"val_split": "val"}, "val"),
    "bccd": ({"split": "train,val", "val_split": "none"}, "test"),
    "raccoon": ({"val_split": "val"}, "val"),
    "gem": ({"val_split": "val"}, "val"),
}


def raccoons(voc: Path, folder: Path) -> None:
    """The pictures of voc_sample that have a cat, with their cats alone, under another name."""
    annotations = multibox.read_dataset(voc)
    cat = annotations.class_map.index("cat")
    records = []
    for record in annotations:
        keep = np.equal(record.labels, cat)
        if keep.any():
            kept = {name: getattr(record, name)[keep] for name in PER_BOX}
            split = "val" if len(records) % 3 == 2 else "train"
            records.append(replace(record, split=split, **{**kept, "labels": np.zeros(keep.sum(), np.int64)}))
    made = Dataset.from_records(records, ClassMap(("raccoon",)), root=annotations.root)
    write_dataset(made, folder, format="voc", copy="true")


def gems(folder: Path) -> None:
    """120 drawn sprites to learn from, 100 to measure on."""
    pictures = folder.with_name("gem pictures")
    made = make(pictures, train=120, val=100, size=256, seed=0)
    write_dataset(Dataset.from_records(made, ClassMap(("gem",)), root=pictures), folder, format="coco", copy="true")


def data_of(name: str, data: Path, work: Path) -> Path:
    if name in ("voc", "bccd"):
        return data / {"voc": "voc_sample", "bccd": "bccd"}[name]
    folder = work / "sets" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        raccoons(data / "voc_sample", folder) if name == "raccoon" else gems(folder)
    return folder


def rows(arguments: argparse.Namespace) -> Iterator[str]:
    yield "| set | seed | start AP | epochs | AP50 | AP | interval of AP | seconds of training |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name in arguments.sets:
        options, split = GIVEN[name]
        data = data_of(name, arguments.data, arguments.work)
        for seed in arguments.seeds:
            started = time.perf_counter()
            run = multibox.train(data, seed=seed, project=str(arguments.work / name), quiet=True, **options)
            seconds = time.perf_counter() - started
            done = multibox.validate(run.best, data, split=split, project=str(arguments.work / name))
            first = run.history[0]
            start = f"{first['AP']:.4f}" if first["epoch"] == 0 else "none"
            assert done.results.intervals is not None
            interval = done.results.intervals["ap"]
            coco = done.results.coco
            yield (
                f"| {name} | {seed} | {start} | {run.history[-1]['epoch']} | {coco.ap50:.4f} | {coco.ap:.4f} "
                f"| {interval.low:.4f} … {interval.high:.4f} | {seconds:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sets", nargs="+", choices=[*GIVEN], default=[*GIVEN])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for row in rows(arguments):
        print(row, flush=True)
        with (arguments.work / "results.md").open("a") as file:
            file.write(f"{row}\n")


if __name__ == "__main__":
    main()
