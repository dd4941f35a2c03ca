"""Can a network learn at all: from random weights it must find everything in a handful of pictures.

    python benchmarks/overfit.py DATA [--model ssd300_vgg16] [--pictures 8] [key=value …]

Takes the first pictures of a data set that have objects, trains on them without augmentation and prints AP50 on these
same pictures. That says nothing about new pictures; it shows that boxes, matching, loss and post-processing fit
together.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from multibox.data import read_dataset, write_dataset
from multibox.training.config import TrainConfig, merge
from multibox.training.run import train

AS_THEY_ARE = {"flip": 0, "photometric": 0, "zoom_out": 0, "crop": 0, "interpolation": 0}
OPTIONS = {
    "optimizer": "adamw",
    "lr0": 3e-4,
    "epochs": 90,
    "warmup": 5,
    "ema": 0,
    "val_every": 15,
    "batch": 8,
    "workers": 0,
    "weight_decay": 0,
    "amp": "auto",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--model", default="ssd300_vgg16")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    dataset = read_dataset(arguments.data)
    counts = np.diff(dataset.columns.offsets)
    chosen = dataset.select(np.flatnonzero(counts > 0)[: arguments.pictures])
    given = dict(option.split("=", 1) for option in arguments.options)
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "few", Path(folder) / "run"
        run.mkdir()
        write_dataset(chosen, data, format="voc", copy="true")
        split = chosen.splits[0]
        options = {"data": str(data), "model": arguments.model, "split": split, "val_split": split}
        result = train(merge(TrainConfig(), {**options, **AS_THEY_ARE, **OPTIONS, **given}), folder=run)
    best = max((row for row in result.history if row.get("AP50") is not None), key=lambda row: row["AP50"])
    print(f"AP50 {best['AP50']:.4f}  AP {best['AP']:.4f}  after {best['epoch']} updates ({chosen.num_boxes} objects)")


if __name__ == "__main__":
    main()
