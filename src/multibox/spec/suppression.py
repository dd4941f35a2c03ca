"""Overlap of boxes and greedy non-maximum suppression, in NumPy."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["first_kept", "iou_matrix_np", "nms_np"]

FloatArray: TypeAlias = NDArray[np.floating[Any]]

_FEW = 16  # boxes up to which plain Python suppresses faster than NumPy
_NMS_CHUNK = 128  # candidates compared at once: a matrix of 128 × 128 float64 stays in the cache


def iou_matrix_np(a_xyxy: FloatArray, b_xyxy: FloatArray) -> NDArray[np.float64]:
    """Intersection over union `[N, M]` of boxes `[N, 4]` and `[M, 4]`, in float64; 0 for a box without area."""
    ax1, ay1, ax2, ay2 = np.ascontiguousarray(a_xyxy.T, dtype=np.float64)[:, :, None]
    bx1, by1, bx2, by2 = np.ascontiguousarray(b_xyxy.T, dtype=np.float64)[:, None, :]
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    overlap: NDArray[np.float64] = np.maximum(width, 0, out=width)
    overlap *= np.maximum(height, 0, out=height)
    area_a = np.maximum(ax2 - ax1, 0) * np.maximum(ay2 - ay1, 0)
    area_b = np.maximum(bx2 - bx1, 0) * np.maximum(by2 - by1, 0)
    union = area_a + area_b - overlap
    # Two boxes without area: 0 / tiny = 0. No product of two float32 sides is smaller than this and not 0.
    overlap /= np.maximum(union, np.finfo(np.float64).tiny, out=union)
    return overlap


def nms_np(
    boxes_xyxy: FloatArray, scores: FloatArray, *, nms_iou: float, labels: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Rows that greedy suppression keeps, best score first; only equal labels suppress each other when given.

    Shapes `[N, 4]`, `[N]`, `[N]`. Equal scores rank by lower row; an IoU of exactly `nms_iou` does not suppress.
    """
    order = np.argsort(-scores, kind="stable")
    groups = None if labels is None else labels[order]
    return order[first_kept(boxes_xyxy[order], groups, nms_iou=nms_iou, limit=len(order))]


def first_kept(
    sorted_xyxy: FloatArray, groups: NDArray[np.int64] | None, *, nms_iou: float, limit: int
) -> NDArray[np.int64]:
    """The first `limit` rows that suppression keeps of boxes in falling score order."""

    def suppresses(rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
        over = iou_matrix_np(sorted_xyxy[rows], sorted_xyxy[others]) > nms_iou
        return over if groups is None else over & (groups[rows, None] == groups[others])

    if len(sorted_xyxy) <= _FEW:
        return _keep_few(sorted_xyxy, groups, nms_iou=nms_iou)[:limit]
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(sorted_xyxy), _NMS_CHUNK):
        rows = np.arange(start, min(start + _NMS_CHUNK, len(sorted_xyxy)))
        if kept.size:
            rows = rows[~suppresses(kept, rows).any(axis=0)]
        below = np.triu(suppresses(rows, rows), 1)
        alive = np.ones(rows.size, dtype=np.bool_)
        for row in np.flatnonzero(below.any(axis=1)):
            if alive[row]:
                alive &= ~below[row]
        kept = np.concatenate([kept, rows[alive]])
        if kept.size >= limit:
            break
    return kept[:limit]


def _keep_few(sorted_xyxy: FloatArray, groups: NDArray[np.int64] | None, *, nms_iou: float) -> NDArray[np.int64]:
    """`first_kept` in plain Python with the same float64 steps: on a handful of boxes NumPy's calls cost more."""
    boxes = sorted_xyxy.astype(np.float64).tolist()
    labels = [0] * len(boxes) if groups is None else groups.tolist()
    kept: list[int] = []
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        for better in kept:
            if labels[better] != labels[row]:
                continue
            ax1, ay1, ax2, ay2 = boxes[better]
            overlap = max(min(ax2, x2) - max(ax1, x1), 0.0) * max(min(ay2, y2) - max(ay1, y1), 0.0)
            union = max(ax2 - ax1, 0.0) * max(ay2 - ay1, 0.0) + max(x2 - x1, 0.0) * max(y2 - y1, 0.0) - overlap
            if union > 0 and overlap / union > nms_iou:
                break
        else:
            kept.append(row)
    return np.array(kept, dtype=np.int64)
