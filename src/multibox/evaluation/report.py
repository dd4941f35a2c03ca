"""The report of a validation: one HTML file without outside references."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from multibox.errors import ImageError
from multibox.evaluation import ErrorExample, ErrorSplit, EvaluationSet
from multibox.pictures.draw import draw_boxes
from multibox.pictures.read import read_picture

__all__ = ["html_report"]

EXAMPLES_PER_ERROR = 4
THUMBNAIL = 320  # pixels of the longer side
STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #d5dbe3 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 2px solid #8793a3 }
tbody tr:nth-child(even) { background: #f3f6f9 } .note { color: #5a6675 }
.row { display: flex; flex-wrap: wrap; gap: .8rem } figure { margin: 0 }
figcaption { font-size: .8rem; max-width: 20rem }
img { max-width: 100%; height: auto } .big { font-size: 1.25rem; font-weight: 600 }
"""


def html_report(
    *,
    title: str,
    headline: Sequence[tuple[str, str]],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    plots: Sequence[tuple[str, bytes]],
    notes: Sequence[str],
    split: ErrorSplit,
    data: EvaluationSet,
) -> str:
    """The whole page.

    Args:
        title: what was evaluated on what.
        headline: (name, value with interval) pairs.
        tables: (heading, column names, rows of text).
        plots: (description, PNG bytes).
        notes: protocol, engine and everything that was said on the way.
        split: its examples are drawn.
        data: where the examples come from.
    """
    text = html.escape
    cells = "".join(f'<tr><td>{text(name)}</td><td class="big">{text(value)}</td></tr>' for name, value in headline)
    parts = [f"<h1>{text(title)}</h1>", f"<table><tbody>{cells}</tbody></table>"]
    parts += [f'<p class="note">{text(note)}</p>' for note in notes]
    for heading, columns, rows in tables:
        head = "".join(f"<th>{text(column)}</th>" for column in columns)
        body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{text(heading)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if plots:
        parts.append(
            "<h2>Plots</h2>" + "".join(_image(png, "png", description, caption=False) for description, png in plots)
        )
    for error in split.errors:
        figures = [_example(example, data) for example in error.examples[:EXAMPLES_PER_ERROR]]
        if figures:
            gain = "" if error.ap_gain is None else f"; repairing it would add {error.ap_gain:.4f} AP50"
            parts.append(f"<h2>{text(error.kind)} ({error.count})</h2>")
            parts.append(f'<p class="note">{text(error.meaning + gain)}</p><div class="row">{"".join(figures)}</div>')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>"
    )


def _image(content: bytes, kind: str, description: str, *, caption: bool = True) -> str:
    """A picture; `caption` shows its description below, which a plot has as its title."""
    data = base64.b64encode(content).decode()
    text = html.escape(description)
    below = f"<figcaption>{text}</figcaption>" if caption else ""
    return f'<figure><img alt="{text}" src="data:image/{kind};base64,{data}">{below}</figure>'


def _example(example: ErrorExample, data: EvaluationSet) -> str:
    """The picture with the true box (green) and the predicted one (red), and what was mistaken for what."""
    truth, predictions = data.truths[example.picture].detections, data.predictions[example.picture]
    boxes: list[Any] = []
    captions, colours = [], []
    if example.truth is not None:
        boxes.append(truth.boxes_xyxy[example.truth])
        captions.append(f"true {example.true}")
        colours.append(TRUE_COLOUR)
    if example.detection is not None:
        boxes.append(predictions.boxes_xyxy[example.detection])
        captions.append(f"{example.predicted} {example.score:.2f}")
        colours.append(FOUND_COLOUR)
    try:
        picture = draw_boxes(read_picture(truth.path or ""), np.array(boxes).reshape(-1, 4), captions, colours)
    except ImageError as error:
        return f"<p>{html.escape(str(error))}</p>"
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85)
    overlap = "" if example.iou is None else f", IoU {example.iou:.2f}"
    return _image(
        buffer.getvalue(), "jpeg", f"{' / '.join(captions)}{overlap} in {(truth.path or '').rsplit('/', 1)[-1]}"
    )


TRUE_COLOUR, FOUND_COLOUR = 2, 0  # class colours of `multibox.pictures.draw` that read as green and red
