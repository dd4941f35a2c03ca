"""Which pictures of a data set an export is measured on, and which set the scales of int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from multibox.data import Dataset, read_dataset
from multibox.data.sampling import evenly
from multibox.doctor.picture_checks import split_role
from multibox.errors import ContractError, OptionError
from multibox.export.request import ExportRequest
from multibox.export.unlabelled import is_unlabelled, own_findings
from multibox.spec.card import ModelCard

__all__ = ["CALIBRATED", "Selection", "select"]

CALIBRATED = 128  # pictures at most that set the scales of int8
CALIBRATION_STRIDE = 4  # of a data set without splits, every fourth picture calibrates and the others measure


@dataclass(frozen=True)
class Selection:
    """Pictures to measure on and, for int8, others to calibrate on."""

    measure: Dataset
    calibrate: Dataset
    notes: list[str]


def select(request: ExportRequest, network: Any, card: ModelCard) -> Selection:
    """The pictures a request names; those that calibrate are never measured on.

    In a folder of pictures without annotations, what the network itself finds is the truth.

    Raises:
        DataError: the data set cannot be read.
        OptionError: a picture would do both.
        ContractError: none is left to measure on.
    """
    assert request.data is not None
    notes = []
    if is_unlabelled(request.data):
        everything, said = own_findings(request.data, network, card)
        notes.append(said)
    else:
        everything = read_dataset(request.data)
    roles = {split_role(name): name for name in everything.splits}
    split = request.split or next((roles[role] for role in ("val", "test") if role in roles), None)
    measure = everything if split is None else everything.split(split)
    if request.calibrate is not None or request.calibrate_split is not None:
        other = read_dataset(request.calibrate or request.data, split=request.calibrate_split)
        source = f"{request.calibrate or request.data}" + (
            f", split {request.calibrate_split}" if request.calibrate_split else ""
        )
    elif "train" in roles and roles["train"] != split and split is not None:
        other, source = everything.split(roles["train"]), f"{request.data}, split {roles['train']}"
    else:
        chosen = np.arange(len(measure)) % CALIBRATION_STRIDE == 0
        other, source = (
            measure.select(np.flatnonzero(chosen)),
            f"every {CALIBRATION_STRIDE}th picture of {request.data}",
        )
        if request.row.int8:
            measure = measure.select(np.flatnonzero(~chosen))
    if request.row.int8:
        shared = _paths(measure) & _paths(other)
        if shared:
            raise OptionError(
                f"{len(shared)} pictures would both set the scales and measure the cost ({sorted(shared)[0]}); "
                "calibrate on others: calibrate=DATASET or calibrate_split=NAME"
            )
        notes.append(f"calibrated on {min(len(other), CALIBRATED)} pictures of {source}")
    if len(measure) > request.limit:
        notes.append(f"measured on {request.limit} of {len(measure)} pictures, evenly spread")
        measure = measure.select(evenly(len(measure), request.limit))
    if not len(measure):
        raise ContractError(f"{request.data}: no pictures to measure on; check the split")
    return Selection(measure, other, notes)


def _paths(dataset: Dataset) -> set[str]:
    return {str(dataset.picture_path(index).resolve()) for index in range(len(dataset))}
