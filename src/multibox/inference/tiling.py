"""Large pictures in tiles: where the tiles lie, and how what is found in them becomes one result.

A network sees a picture at its own input size, so an object of 30 pixels in a picture of 4000 is two pixels to it.
Tiles show it such objects larger; the whole picture, as one tile more, shows it those that are larger than a tile.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.spec.postprocess import PostprocessSpec
from multibox.spec.suppression import nms_np

__all__ = ["BORDER", "COVERED", "Found", "Tile", "merged", "tiles_of"]

FloatArray = NDArray[np.float32]

# Both are choices. A box is as exact as a few per cent of its size, so "at the border" cannot mean a pixel.
BORDER = 0.02  # of a tile's side: a box that comes as near to a tile's inner border may be cut off there
COVERED = 0.5  # of a cut box's area: as much of it inside another box of its class, and it is taken for a part of that


class Tile(NamedTuple):
    """A part of a picture, in pixels of it: columns x1 … x2 − 1, rows y1 … y2 − 1."""

    x1: int
    y1: int
    x2: int
    y2: int


class Found(NamedTuple):
    """What one tile gave: boxes [N, 4] xyxy in pixels of the whole picture, scores [N] and labels [N]."""

    tile: Tile
    boxes_xyxy: FloatArray
    scores: FloatArray
    labels: NDArray[np.int64]


def tiles_of(size_hw: tuple[int, int], *, side: int, overlap: float) -> list[Tile]:
    """The whole picture, then tiles of `side` pixels that cover it, evenly spread, row by row.

    Neighbours share at least `overlap` of their side, so that any object no larger than that lies whole in one of them.
    Along a side of the picture that is no longer than a tile there is one. A picture no larger than a tile is only
    itself.

    Args:
        size_hw: (height, width) of the picture in pixels.
        side: of a tile in pixels.
        overlap: as a fraction of the side, 0 or more and below 1.
    """
    height, width = size_hw
    whole = Tile(0, 0, width, height)
    if max(size_hw) <= side:
        return [whole]
    rows, columns = (_starts(length, side, overlap) for length in size_hw)
    return [whole, *(Tile(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns)]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    step = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / step) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def merged(
    found: list[Found], size_hw: tuple[int, int], spec: PostprocessSpec
) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """What is in the picture, from what is in its tiles: boxes [N, 4], scores [N] falling, labels [N].

    1. A box at an inner border of its tile may show a part of an object only. Where a box of the same class (of any,
       with class-agnostic suppression) that another tile shows whole covers half of it, it is that object's part and
       dropped, whatever the scores: suppression by IoU would keep a part beside its whole, since they differ in size.
       Without such a box it stays, because a part is all that was seen of this object: one that is larger than the
       overlap, and that the network does not find in the whole picture either. It may then be found in several parts.
    2. What remains goes through the model's own suppression, once over the whole picture.

    What was found in a single tile is the result as it is.
    """
    if len(found) == 1:
        return found[0].boxes_xyxy, found[0].scores, found[0].labels
    boxes = np.concatenate([part.boxes_xyxy for part in found])
    scores = np.concatenate([part.scores for part in found])
    labels = np.concatenate([part.labels for part in found])
    cut = np.concatenate([_cut(part, size_hw) for part in found])
    number = np.repeat(np.arange(len(found)), [len(part.labels) for part in found])
    groups = np.zeros_like(labels) if spec.class_agnostic else labels
    keep = np.ones(len(boxes), dtype=np.bool_)
    whole = np.flatnonzero(~cut)
    for row in np.flatnonzero(cut):
        mates = boxes[whole[(groups[whole] == groups[row]) & (number[whole] != number[row])]]
        keep[row] = not (_share_inside(boxes[row], mates) >= COVERED).any()
    rest = np.flatnonzero(keep)
    order = nms_np(boxes[rest], scores[rest], nms_iou=spec.nms_iou, labels=groups[rest])
    best = rest[order[: spec.max_detections]]
    return boxes[best], scores[best], labels[best]


def _cut(part: Found, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """[N]: whether each box comes near to a border of its tile that is not one of the picture."""
    tile, (height, width) = part.tile, size_hw
    near_x, near_y = BORDER * (tile.x2 - tile.x1), BORDER * (tile.y2 - tile.y1)
    x1, y1, x2, y2 = part.boxes_xyxy.T
    cut = np.zeros(len(part.boxes_xyxy), dtype=np.bool_)
    if tile.x1 > 0:
        cut |= x1 < tile.x1 + near_x
    if tile.y1 > 0:
        cut |= y1 < tile.y1 + near_y
    if tile.x2 < width:
        cut |= x2 > tile.x2 - near_x
    if tile.y2 < height:
        cut |= y2 > tile.y2 - near_y
    return cut


def _share_inside(box_xyxy: FloatArray, others_xyxy: FloatArray) -> NDArray[np.float64]:
    """[N]: how much of the box's area lies in each of the others; 0 for a box without area."""
    box, others = box_xyxy.astype(np.float64), others_xyxy.astype(np.float64)
    size_wh = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    area: float = float(np.prod(box[2:] - box[:2]))
    share: NDArray[np.float64] = np.prod(np.maximum(size_wh, 0), axis=1) / max(area, np.finfo(np.float64).tiny)
    return share
