"""`multibox info`."""

from __future__ import annotations

import json
from typing import Any

import click

from multibox.catalogue import DEFAULT_MODEL
from multibox.cli.options import KeyValueCommand
from multibox.cli.options import builder_arguments as takes_builder_arguments
from multibox.errors import ModelFileError, OptionError, one_line
from multibox.inference.engines.opening import model_card
from multibox.spec.card import ModelCard
from multibox.spec.preprocess import parse_size_hw

__all__ = ["command"]


@click.command("info", cls=KeyValueCommand)
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--num-classes", type=click.IntRange(min=1), help="Classes of a network with random weights.")
@click.option("--imgsz", metavar="N or H,W", help="Input size of a network with random weights.")
@click.option(
    "--ratios",
    metavar="R,R/R,R/…",
    help="Box ratios besides 1 on each level, levels separated by '/': 2/2,3/2,3/2,3/2/2 is SSD300's own.",
)
@takes_builder_arguments
@click.option("--json/--no-json", "as_json", default=False, help="Print one JSON object.")
def command(
    model: str,
    num_classes: int | None,
    imgsz: str | None,
    ratios: str | None,
    builder_arguments: dict[str, Any],
    as_json: bool,
) -> None:
    """Show MODEL as a reader of the SSD paper would want it.

    MODEL is a shipped model, a model file, or the name of a network (see `multibox list`), which is then built with
    random weights and what you ask for.
    """
    if num_classes is not None:
        builder_arguments["num_classes"] = num_classes
    if imgsz is not None:
        builder_arguments["size_hw"] = list(parse_size_hw(imgsz))
    if ratios is not None:
        builder_arguments["ratios"] = [_numbers(level) for level in ratios.split("/")]
    card = model_card(model, builder_arguments)
    if as_json:
        click.echo(json.dumps(json.loads(card.to_json()), indent=2))
        return
    try:
        text = render(card)
    except (LookupError, TypeError, ValueError):
        raise ModelFileError(model, "its summary of the network is missing or damaged", "export it anew") from None
    click.echo(text)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise OptionError(
            f"ratios must be numbers, separated by commas on a level and by '/' between levels, got {text!r}"
        ) from None


HEADERS = ("map", "height × width", "channels", "stride", "field", "boxes/cell", "boxes", "outputs")


def render(card: ModelCard) -> str:
    """The card as text."""
    summary, softmax = card.summary, card.postprocess.activation == "softmax"
    per_box = summary["outputs_per_box"]
    rows: list[tuple[str, ...]] = [HEADERS]
    for level in summary["levels"]:
        height, width = level["size_hw"]
        stride, field = ("all" if level[key] is None else str(level[key]) for key in ("stride", "receptive_field"))
        outputs = f"{height}×{width}×{level['boxes_per_cell']}×{per_box} = {level['outputs']}"
        counts = (str(level["boxes_per_cell"]), str(level["boxes"]), outputs)
        rows.append((level["name"], f"{height} × {width}", str(level["channels"]), stride, field, *counts))
    rows.append(("total", "", "", "", "", "", str(summary["boxes"]), str(summary["outputs"])))
    count = len(card.class_map)
    scores = f"{count} classes + background" if softmax else f"{count} classes, no background output"
    height, width = card.preprocess.size_hw
    spec, post = card.preprocess, card.postprocess
    channels = ", ".join(
        f"({c} − {m:g}) · {s:.6g}" for c, m, s in zip(spec.colour_order, spec.mean, spec.scale, strict=True)
    )
    lines = [
        f"{card.name}: {card.builder}, input {height} × {width}",
        "",
        *_table(rows),
        "",
        f"A box has {per_box} outputs: 4 offsets and {per_box - 4} scores ({scores}; {_activation(card)}).",
        "Stride and field, in input pixels: the distance of neighbouring cells, and how far across one cell can see.",
        f"parameters     {summary['parameters']:,}",
        f"multiply-adds  {summary['multiply_adds']:,}",
        f"preprocessing  {spec.describe()}, {spec.colour_order}: {channels}",
        f"detections     score > {post.score_threshold:g}, NMS at IoU {post.nms_iou:g}, at most {post.max_detections}",
        *_wrapped("classes        ", ", ".join(card.class_map.names)),
    ]
    lines += [f"licence        {card.licence}"] if card.licence else []
    lines += _wrapped("source         ", card.source) if card.source else []
    return "\n".join(one_line(line) for line in lines)  # a model file may hold anything


def _activation(card: ModelCard) -> str:
    return "softmax over them" if card.postprocess.activation == "softmax" else "a sigmoid each"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = (0, len(HEADERS) - 1)
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _wrapped(head: str, text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width=110, initial_indent=head, subsequent_indent=" " * len(head))
