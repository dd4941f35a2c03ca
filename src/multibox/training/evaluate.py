"""Validation during training: the same preprocessing, post-processing and metric as `multibox val`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from multibox.data import Dataset
from multibox.errors import ImageError
from multibox.evaluation import CocoResult, EvaluationSet, Truth, evaluate_coco
from multibox.models.network import DetectionNetwork
from multibox.pictures.read import read_picture
from multibox.spec.detections import Detections
from multibox.spec.postprocess import postprocess_np
from multibox.spec.preprocess import Geometry, Preprocess
from multibox.training.distributed import Processes
from multibox.training.workers import prepare_worker, received

__all__ = ["Evaluation", "evaluate"]

THRESHOLD, MAX_DETECTIONS = 0.01, 100  # as in `multibox val`


class Evaluation(NamedTuple):
    """COCO's numbers, what they were computed from, and the pictures that could not be read, with the reason."""

    numbers: CocoResult
    data: EvaluationSet
    failures: tuple[tuple[str, str], ...]


class _Pictures(TorchDataset[Any]):
    """Network inputs of a part of the pictures; the reason in place of one that cannot be read."""

    def __init__(self, annotations: Dataset, numbers: list[int], preprocess: Preprocess) -> None:
        self.annotations, self.numbers, self.preprocess = annotations, numbers, preprocess

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor, Geometry] | tuple[str, str]:
        number = self.numbers[position]
        path = self.annotations.picture_path(number)
        try:
            rgb = read_picture(path)
        except ImageError as error:
            return str(path), error.reason
        image, geometry = self.preprocess(rgb)
        return number, torch.from_numpy(image), geometry


@torch.inference_mode()
def evaluate(
    detector: DetectionNetwork,
    annotations: Dataset,
    *,
    processes: Processes,
    batch: int,
    workers: int,
) -> Evaluation | None:
    """COCO's numbers of a detector in evaluation mode; None in processes other than the first."""
    spec = detector.spec
    mine = list(range(processes.rank, len(annotations), processes.world))
    loader: DataLoader[Any] = DataLoader(
        _Pictures(annotations, mine, spec.preprocess),
        batch,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=prepare_worker if workers else None,
        generator=torch.Generator(),  # its own, so that the loader draws no numbers from torch's
    )
    anchors = detector.anchors_cxcywh().cpu().numpy()
    post = replace(spec.postprocess, score_threshold=THRESHOLD, max_detections=MAX_DETECTIONS)
    found: list[tuple[int, Truth, Detections]] = []
    failures: list[tuple[str, str]] = []
    with closing(received(loader, workers=workers)) as batches:
        for items in batches:
            failures += [item for item in items if len(item) == 2]
            usable = [item for item in items if len(item) == 3]
            if not usable:
                continue
            images = torch.stack([image for _, image, _ in usable]).to(processes.device)
            images = images.contiguous(memory_format=torch.channels_last)
            last = detector(images)[-1]  # in float32 whatever training computes in, as the model will be used
            offsets, logits = last.offsets.float().cpu().numpy(), last.logits.float().cpu().numpy()
            for row, (number, _, geometry) in enumerate(usable):
                unit_xyxy, scores, labels = postprocess_np(
                    offsets[row], logits[row], anchors, variances=spec.variances, spec=post
                )
                boxes, size_hw = geometry.to_picture(unit_xyxy), geometry.picture_size_hw
                predictions = Detections(boxes, labels, scores, annotations.class_map, size_hw)
                found.append((number, _truth(annotations, number, size_hw), predictions))
    everything = sorted((row for part in processes.gather(found) for row in part), key=lambda row: row[0])
    unread = tuple(failure for part in processes.gather(failures) for failure in part)
    if not processes.writes:
        return None
    # One class map object for all: what came from another process or worker is an equal copy.
    truths = [replace(t, detections=replace(t.detections, class_map=annotations.class_map)) for _, t, _ in everything]
    data = EvaluationSet(
        annotations.class_map, truths, [replace(p, class_map=annotations.class_map) for _, _, p in everything]
    )
    return Evaluation(evaluate_coco(data), data, unread)


def _truth(annotations: Dataset, number: int, size_hw: tuple[int, int]) -> Truth:
    record = annotations[number]
    keep = np.asarray((record.boxes_xyxy[:, :2] <= record.boxes_xyxy[:, 2:]).all(axis=1))
    objects = Detections(record.boxes_xyxy[keep], record.labels[keep], None, annotations.class_map, size_hw)
    return Truth(
        objects, crowd=record.crowd[keep], difficult=record.difficult[keep], area=record.area[keep], image_id=number
    )
