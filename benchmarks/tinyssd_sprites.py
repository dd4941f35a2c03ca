"""TinySSD on made-up bananas, with the measures of the D2L book's chapter beside AP.

    python benchmarks/tinyssd_sprites.py [--folder sprites] [--epochs 20] [key=value …]

Makes 1,000 training and 100 validation pictures (make_sprites.py), trains `tinyssd256` on them with its recipe and
prints, on both splits:

- class error: the part of all default boxes whose most likely class, background included, is not the one that
  matching gives them;
- box MAE: absolute differences of the offsets (in units of the variances) of matched default boxes, summed and divided
  by the number of all offsets, matched or not, as D2L does;
- AP and AP50 of the validation split.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_sprites import make

from multibox.core.boxes import xyxy_to_cxcywh
from multibox.core.codec import encode
from multibox.core.matching import match
from multibox.core.structures import Target
from multibox.data import Dataset, read_dataset, write_dataset
from multibox.pictures.read import read_picture
from multibox.training.config import merge
from multibox.training.recipes import recipe_for
from multibox.training.run import train
from multibox.weights.store import load_detector


@torch.inference_mode()
def d2l_measures(weights: Path, dataset: Dataset) -> tuple[float, float]:
    """Class error and box MAE of a model file over a data set."""
    detector, card = load_detector(weights)
    anchors = detector.anchors_cxcywh()
    wrong = absolute = boxes = 0.0
    for i in range(len(dataset)):
        record = dataset[i]
        image, geometry = card.preprocess(read_picture(dataset.picture_path(i)))
        stage = detector(torch.from_numpy(image)[None])[-1]
        truth = torch.from_numpy(geometry.to_unit(np.asarray(record.boxes_xyxy)))
        matches = match(anchors, [Target(truth, torch.from_numpy(record.labels.copy()))])
        positive = matches.positive[0]
        row = matches.truth_index[0][positive]
        wanted = torch.zeros(len(anchors), dtype=torch.int64)
        wanted[positive] = torch.from_numpy(record.labels.copy())[row] + 1
        wrong += float((stage.logits[0].argmax(dim=1) != wanted).sum())
        offsets = encode(xyxy_to_cxcywh(truth)[row], anchors[positive], card.variances)
        absolute += float((stage.offsets[0][positive] - offsets).abs().sum())
        boxes += len(anchors)
    return wrong / boxes, absolute / (4 * boxes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        data = folder / "bananas"
        if not data.exists():
            write_dataset(make(data, train=1000, val=100, size=256, seed=0), data, format="coco", exist_ok=True)
        given = dict(option.split("=", 1) for option in arguments.options)
        config = merge(recipe_for("tinyssd256"), {"data": str(data), "model": "tinyssd256", **given})
        run = folder / "run"
        run.mkdir()
        result = train(config, folder=run)
        dataset = read_dataset(data)
        for split in ("train", "val"):
            error, mae = d2l_measures(result.best, dataset.split(split))
            print(f"{split:5}  class error {error:.2e}  box MAE {mae:.2e}")
        last = result.history[-1]
        print(f"val    AP {last['AP']:.4f}  AP50 {last['AP50']:.4f}  (after {last['epoch']} epochs)")


if __name__ == "__main__":
    main()
