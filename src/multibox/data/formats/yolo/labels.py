"""The lines of a YOLO label file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from multibox.data.class_lists import whole_number
from multibox.data.findings import Findings
from multibox.data.formats.yolo.config import YoloConfig

__all__ = ["LabelRow", "parse_labels"]

BOX_VALUES = 4
FAR_OUTSIDE = 2.0
"""Centres and sides above this are no parts of a picture's sides: somebody wrote pixels."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A box: line number, position among the lines that are not empty, label, corners in parts of the sides."""

    line: int
    position: int
    label: int
    unit_xyxy: tuple[float, float, float, float]


def parse_labels(text: str, shown: str, config: YoloConfig, findings: Findings) -> Iterator[LabelRow]:
    """The boxes of a label file; what is odd or lost goes into `findings`."""
    position = -1
    for line, content in enumerate(text.splitlines(), start=1):
        tokens = content.split()
        if not tokens:
            continue
        position += 1
        where = f"line {line}"
        class_id, unit_xyxy = whole_number(tokens[0]), _corners(tokens[1:], config, findings, shown, where)
        if class_id is None or unit_xyxy is None:
            findings.add("unparsable_box", shown, where, f"{content.strip()[:80]!r} is no box; it is lost", lost=1)
            continue
        label = config.label_of.get(class_id)
        if label is None:
            findings.add("unknown_class", shown, where, f"class {class_id} is not in names; the box is lost", lost=1)
            continue
        if max(abs(value) for value in unit_xyxy) > FAR_OUTSIDE:
            findings.add("not_normalised", shown, where)
        yield LabelRow(line, position, label, unit_xyxy)


def _corners(
    tokens: list[str], config: YoloConfig, findings: Findings, shown: str, where: str
) -> tuple[float, float, float, float] | None:
    try:
        values = [float(token) for token in tokens]
    except ValueError:
        return None
    if len(values) < BOX_VALUES or not all(math.isfinite(value) for value in values):
        return None
    if config.has_keypoints and len(values) > BOX_VALUES:
        findings.add("detail_not_kept", shown, where)
        values = values[:BOX_VALUES]
    if len(values) == BOX_VALUES + 1:
        findings.add("score_ignored", shown, where)
        values = values[:BOX_VALUES]
    if len(values) == BOX_VALUES:
        cx, cy, width, height = values
        return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    if len(values) % 2:
        return None
    findings.add("polygon_to_box", shown, where)
    xs, ys = values[0::2], values[1::2]
    return min(xs), min(ys), max(xs), max(ys)
