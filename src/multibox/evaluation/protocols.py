"""The two protocols at one overlap threshold, for everything that looks behind the headline number."""

from __future__ import annotations

from typing import Literal, get_args

from multibox.errors import ContractError, OptionError, did_you_mean
from multibox.evaluation.accumulate import Interpolation
from multibox.evaluation.coco_matching import match_coco
from multibox.evaluation.judged import Judged
from multibox.evaluation.records import EvaluationSet
from multibox.evaluation.voc_matching import match_voc

__all__ = ["INTERPOLATION", "Protocol", "describe", "judge"]

Protocol = Literal["coco", "voc"]
INTERPOLATION: dict[Protocol, Interpolation] = {"coco": "101", "voc": "area"}


def judge(data: EvaluationSet, protocol: Protocol, iou: float) -> Judged:
    """The verdicts of a protocol at one threshold (T = 1).

    Raises:
        OptionError: no such protocol.
        ContractError: `iou` outside (0, 1].
    """
    if protocol not in get_args(Protocol):
        raise OptionError(f"unknown protocol {protocol!r}; {did_you_mean(str(protocol), get_args(Protocol))}")
    if not 0 < iou <= 1:
        raise ContractError(f"an IoU threshold must be above 0 and at most 1, got {iou}")
    if protocol == "voc":
        return match_voc(data, iou=iou)
    return match_coco(data, thresholds=[iou], areas=["all"])[0]


def describe(protocol: Protocol, iou: float) -> str:
    """The protocol in a few words, for titles and results."""
    return f"{protocol.upper()} matching at IoU {iou:g}"
