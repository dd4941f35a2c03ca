"""What a run draws: its first batches with the default boxes that answer for each object, and its curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from multibox.core.boxes import cxcywh_to_xyxy
from multibox.core.matching import Matches, MatchOptions, match
from multibox.errors import MissingDependencyError
from multibox.files import atomic_path
from multibox.pictures.draw import class_colour, draw_boxes
from multibox.spec.classes import ClassMap
from multibox.training.checkpoint import writing
from multibox.training.loader import Batch

__all__ = ["draw_batch", "draw_curves", "save_batch_picture"]

MOST_PICTURES = 16
PAPER = (255, 255, 255)


def save_batch_picture(
    path: Path, batch: Batch, anchors_cxcywh: Tensor, options: MatchOptions, class_map: ClassMap
) -> None:
    """Draw a batch into a file.

    Args:
        path: ends in `.jpg`.
        batch: at most the first 16 of its pictures are drawn.
        anchors_cxcywh: [A, 4], unit frame.
        options: how default boxes are matched.
        class_map: names and colours.

    Raises:
        MultiboxError: it cannot be written.
    """
    matches = match(anchors_cxcywh, batch.targets, options=options)
    with writing(path), atomic_path(path) as partial:
        draw_batch(batch, matches, anchors_cxcywh, class_map).save(partial, quality=90)


def draw_batch(batch: Batch, matches: Matches, anchors_cxcywh: Tensor, class_map: ClassMap) -> Image.Image:
    """The pictures of a batch as the network gets them: objects in bold with their names, matched default boxes thin.

    Args:
        batch: at most the first 16 of its pictures are drawn.
        matches: of the batch.
        anchors_cxcywh: [A, 4], unit frame.
        class_map: names and colours.
    """
    height, width = batch.pixels.shape[1:3]
    scale = np.array([width, height, width, height], np.float32)
    anchors_xyxy = cxcywh_to_xyxy(anchors_cxcywh.float().cpu()).numpy() * scale
    tiles = []
    for row in range(min(MOST_PICTURES, len(batch.numbers))):
        target = batch.targets[row]
        image = Image.fromarray(np.asarray(batch.pixels[row].cpu()))
        pen = ImageDraw.Draw(image)
        matched = matches.positive[row].nonzero()[:, 0].cpu()
        for anchor in matched.tolist():
            label = int(target.labels[int(matches.truth_index[row, anchor])])
            pen.rectangle(_on_picture(anchors_xyxy[anchor], width, height), outline=class_colour(label))
        names = [class_map.names[int(i)] for i in target.labels]
        names = [
            f"{name} (ignored)" if skip else name for name, skip in zip(names, target.ignore.tolist(), strict=True)
        ]
        boxes = target.truth_unit_xyxy.cpu().numpy() * scale
        tiles.append(draw_boxes(np.asarray(image), boxes, names, target.labels.tolist(), line_width=2))
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + 2)), PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * (width + 2), number // columns * (height + 2)))
    return sheet


def _on_picture(box_xyxy: Any, width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    x1, y1 = min(max(0.0, x1), width - 1.0), min(max(0.0, y1), height - 1.0)
    return x1, y1, max(x1, min(width - 1.0, x2)), max(y1, min(height - 1.0, y2))


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses, AP and learning rate over the epochs, as a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise MissingDependencyError("matplotlib", "drawing the curves", "plots") from None
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = (
        ("loss", ("class_loss", "box_loss")),
        ("average precision", ("AP50", "AP", "AP75")),
        ("learning rate", ("lr",)),
    )
    for axes, (title, names) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            known = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
            if known:
                axes.plot(*zip(*known, strict=True), label=name, marker="." if len(known) < 40 else "")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with writing(path), atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
