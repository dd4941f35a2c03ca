"""Validation during training: the one evaluator, around the network in memory."""

from __future__ import annotations

from typing import NamedTuple

from multibox.data import Dataset
from multibox.evaluation import CocoResult, Validation, evaluate_coco
from multibox.evaluation.validate import EVALUATION_MAX_DET, EVALUATION_THRESHOLD, validate_shared
from multibox.inference import Detector
from multibox.inference.engines.torch import TorchEngine
from multibox.inference.options import StreamOptions
from multibox.models.network import DetectionNetwork
from multibox.spec.options import PictureOptions
from multibox.training.distributed import Processes
from multibox.weights.store import make_card

__all__ = ["Evaluation", "evaluate"]


class Evaluation(NamedTuple):
    """COCO's numbers, and what they were computed from."""

    numbers: CocoResult
    validation: Validation


def evaluate(
    network: DetectionNetwork,
    annotations: Dataset,
    *,
    processes: Processes,
    batch: int,
) -> Evaluation | None:
    """COCO's numbers of a network in evaluation mode; None in processes other than the first.

    Args:
        network: on the device of `processes`; its classes are those of the data set.
        annotations: what it is validated on.
        processes: this one and the others, which divide the pictures.
        batch: pictures given to the network at once.
    """
    card = make_card(network, annotations.class_map, name="the network in training")
    detector = Detector.of_engine(
        TorchEngine(network, card, device=str(processes.device)), source=card.name, stream=StreamOptions(batch=batch)
    )
    asked = PictureOptions(conf=EVALUATION_THRESHOLD, max_det=EVALUATION_MAX_DET)
    validation = validate_shared(detector, annotations, asked, processes)
    return None if validation is None else Evaluation(evaluate_coco(validation.data), validation)
