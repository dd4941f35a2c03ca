"""The table of heads: what an exported file returns, from the network's raw numbers to finished detections.

How a head is computed is the business of each format: `onnx_heads` and `litert_heads` hold the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multibox.spec.card import ModelCard

__all__ = ["FRIGATE_LABEL_BASE", "HEADS", "RAW_OUTPUTS", "Head"]

FRIGATE_LABEL_BASE = 1
"""OpenVINO's DetectionOutput counts background as label 0, so the first class is 1; the label file says so too."""


@dataclass(frozen=True)
class Head:
    """One form of output.

    Args:
        name: as in `head=`.
        words: for the help.
        box_format: for the metadata, how the boxes are to be read.
        outputs: element type and shape of each output by name. Letters in a shape: B pictures, A default boxes, K
            numbers per box, C classes, N most detections.
        single: whether the layout has room for one picture only.
        pictures: whether preprocessing is inside unless something else is asked.
        label_base: number of the first class in the label file that goes with it; none belongs to it when left out.
    """

    name: str
    words: str
    box_format: str
    outputs: Mapping[str, tuple[str, str]]
    single: bool = False
    pictures: bool = False
    label_base: int | None = None

    def shapes(self, card: ModelCard, batch: int | str) -> dict[str, tuple[str, list[int | str]]]:
        """Element type and shape of each output for a model; `batch` is a number, or a name where it is free."""
        sizes = {
            "B": batch,
            "A": card.box_count,
            "K": card.outputs_per_box,
            "C": len(card.class_map),
            "N": card.postprocess.max_detections,
        }
        return {
            name: (dtype, [sizes[side] if side in sizes else int(side) for side in shape.split()])
            for name, (dtype, shape) in self.outputs.items()
        }


_UNIT = "fractions of the picture's width and height (0 to 1), whatever its size"
HEADS = {
    head.name: head
    for head in (
        Head(
            "raw",
            "offsets and logits, for multibox itself",
            "offsets to unit cxcywh default boxes",
            {"offsets": ("float32", "B A 4"), "logits": ("float32", "B A K")},
        ),
        Head(
            "decoded",
            "boxes [B, A, 4] and scores [B, A, C], before suppression",
            f"unit xyxy: {_UNIT}",
            {"boxes_unit_xyxy": ("float32", "B A 4"), "scores": ("float32", "B A C")},
        ),
        Head(
            "nms",
            "detections [B, max_det, 6] (x1, y1, x2, y2, score, class) and count [B]",
            f"rows of unit xyxy ({_UNIT}), score, class from 0; best first",
            {"detections": ("float32", "B N 6"), "count": ("int64", "B")},
        ),
        Head(
            "frigate",
            "[1, 1, N, 7] of OpenVINO's SSD models, 8-bit pictures in, and a label file",
            f"rows of image, label from {FRIGATE_LABEL_BASE} (0 is background), score, unit xyxy ({_UNIT}); best first",
            {"detection_out": ("float32", "1 1 N 7")},
            single=True,
            pictures=True,
            label_base=FRIGATE_LABEL_BASE,
        ),
        Head(
            "tflite4",
            "boxes (top, left, bottom, right), classes, scores and count of TFLite_Detection_PostProcess",
            f"unit yxyx (top, left, bottom, right): {_UNIT}; class from 0",
            {
                "detection_boxes": ("float32", "B N 4"),
                "detection_classes": ("float32", "B N"),
                "detection_scores": ("float32", "B N"),
                "num_detections": ("float32", "B"),
            },
        ),
    )
}
RAW_OUTPUTS = tuple(HEADS["raw"].outputs)
