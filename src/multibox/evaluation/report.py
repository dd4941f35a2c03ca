"""The report of a validation, one file: numbers, the pictures that cost most, plots, classes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from PIL import Image

from multibox import html
from multibox.errors import ImageError, one_line
from multibox.evaluation.picture_costs import PictureCost
from multibox.evaluation.records import EvaluationSet
from multibox.pictures.read import read_picture
from multibox.spec.detections import Detections

__all__ = ["report_page"]

MOST_PICTURES = 24
THUMBNAIL = 330  # pixels of the longer side
TRUE_COLOUR, RIGHT_COLOUR, WRONG_COLOUR = "#2fd06a", "#4aa3ff", "#ff5a43"
KINDS = {
    "missed": "missed",
    "wrong_class": "wrong class",
    "badly_placed": "badly placed",
    "false": "false",
}


def report_page(
    *,
    title: str,
    subtitle: str,
    headline: Sequence[tuple[str, str]],
    costs: Sequence[PictureCost],
    confidence: float,
    data: EvaluationSet,
    plots: Sequence[tuple[str, bytes]],
    errors: Sequence[Sequence[object]],
    classes: Sequence[Sequence[object]],
    notes: Sequence[str],
) -> str:
    """The whole page.

    Args:
        title: what was evaluated on what.
        subtitle: where the data came from.
        headline: (value, name) pairs.
        costs: the errors of each picture, the costliest first.
        confidence: the score from which detections are shown and counted in `costs`.
        data: where the pictures come from.
        plots: (description, PNG bytes).
        errors: kind, count, gain in AP50, meaning.
        classes: name, objects, AP, AP50, AP75, VOC AP50.
        notes: protocol, engine and everything that was said on the way.
    """
    parts: list[object] = [html.tiles(headline)]
    costly = [cost for cost in costs if cost.errors]
    if costly:
        shown = f"The {min(MOST_PICTURES, len(costly))} of {len(data)} with the most errors"
        colours = html.tag(
            "p",
            html.tag("b", "dashed green", style=f"color:{TRUE_COLOUR}"),
            ": missed objects and the objects that were mistaken; ",
            html.tag("b", "red", style=f"color:{WRONG_COLOUR}"),
            ": wrong detections; ",
            html.tag("b", "blue", style=f"color:{RIGHT_COLOUR}"),
            ": right ones.",
            class_="note",
        )
        parts += [
            html.tag("h2", "The pictures that cost most"),
            html.tag("p", f"{shown}, at scores from {confidence:.2f} (the best F1).", class_="note"),
            colours,
            html.gallery(_cards(costly[:MOST_PICTURES], data), order=["errors", *KINDS.values()]),
        ]
    if plots:
        figures = (html.embedded(png, "png", description) for description, png in plots)
        parts += [html.tag("h2", "Plots"), html.tag("div", *figures, class_="plots")]
    parts += [
        html.tag("h2", "Kinds of error"),
        html.table(("kind", "count", "AP50 if repaired", "meaning"), errors, numbers=(1, 2)),
        html.tag("h2", "Classes"),
        html.table(("class", "objects", "AP", "AP50", "AP75", "VOC AP50"), classes, numbers=range(1, 6), sortable=True),
        html.tag("h2", "How it was measured"),
        *(html.tag("p", note, class_="note") for note in notes),
    ]
    return html.page(title, parts, subtitle=subtitle)


def _cards(costs: Iterable[PictureCost], data: EvaluationSet) -> Iterator[tuple[object, Mapping[str, float]]]:
    for cost in costs:
        counts = {shown: len(getattr(cost, name)) for name, shown in KINDS.items()}
        text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        path = data.truths[cost.picture].detections.path or ""
        caption = f"{one_line(path.rsplit('/', 1)[-1])}: {text}"
        yield _picture(cost, data, caption), {"errors": cost.errors, **counts}


def _picture(cost: PictureCost, data: EvaluationSet, caption: str) -> html.Html:
    truth, predictions = data.truths[cost.picture].detections, data.predictions[cost.picture]
    try:
        image = Image.fromarray(read_picture(truth.path or ""))
    except ImageError as error:
        return html.tag("div", str(error), class_="missing")
    full = max(image.size)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    scale = max(image.size) / full
    marks = [
        *_marks(truth, (*cost.missed, *cost.mistaken), TRUE_COLOUR, scale, dashed=True),
        *_marks(predictions, cost.right, RIGHT_COLOUR, scale),
        *_marks(predictions, (*cost.wrong_class, *cost.badly_placed, *cost.false), WRONG_COLOUR, scale),
    ]
    return html.picture(buffer.getvalue(), image.size, marks, caption=caption)


def _marks(
    boxes: Detections, rows: Iterable[int], colour: str, scale: float, *, dashed: bool = False
) -> Iterator[html.Mark]:
    for row in rows:
        x1, y1, x2, y2 = (float(value) * scale for value in boxes.boxes_xyxy[row])
        score = "" if boxes.scores is None else f" {boxes.scores[row]:.2f}"
        yield html.Mark((x1, y1, x2, y2), colour, one_line(boxes.names[row]) + score, dashed)
