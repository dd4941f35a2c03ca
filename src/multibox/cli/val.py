"""`multibox val`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from multibox.cli.options import KeyValueCommand, builder_arguments
from multibox.errors import OptionError, one_line

__all__ = ["command"]

EXIT_BAD_DATA = 1


@click.command("val", cls=KeyValueCommand)
@click.argument("model")
@click.argument("data")
@builder_arguments
@click.option("--split", metavar="NAME", help="Only this split of the data: train, val, test …  [default: all]")
@click.option("--format", metavar="NAME", help="Read the data as coco, voc, yolo, csv …  [default: recognised]")
@click.option("--images", metavar="FOLDER", help="The pictures, for a lone COCO JSON.")
@click.option(
    "--conf",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.01,
    show_default=True,
    help="Scores above it are kept.",
)
@click.option("--iou", type=click.FloatRange(0, 1), help="Of non-maximum suppression.  [default: the model's]")
@click.option(
    "--max-det", type=click.IntRange(min=1), default=100, show_default=True, help="Most detections in a picture."
)
@click.option("--classes", metavar="A,B", help="Only these classes of the data.")
@click.option(
    "--aliases", metavar="A:X,B:", help="Where model classes go in the data, if names do not settle it; B: nowhere."
)
@click.option("--agnostic-nms/--no-agnostic-nms", default=False, help="Boxes of different classes suppress each other.")
@click.option(
    "--engine", default="auto", show_default=True, help="auto, onnxruntime, openvino, litert, torch or torch-compile."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@click.option("--metrics-engine", default="auto", show_default=True, help="auto, pycocotools or numpy.")
@click.option(
    "--resamples", type=click.IntRange(min=0), default=1000, show_default=True, help="For the intervals; 0 for none."
)
@click.option("--json/--no-json", "as_json", default=False, help="Print one JSON object.")
@click.option("--project", default="runs", show_default=True, help="Folder for run folders.")
@click.option("--name", default="val", show_default=True, help="Run folder; numbered when it exists.")
@click.option("--exist-ok/--no-exist-ok", default=False, help="Write into an existing run folder.")
@click.option("--quiet/--no-quiet", default=False, help="Print errors and JSON only.")
def command(model: str, data: str, **options: Any) -> int:
    """Measure MODEL on DATA: COCO's and VOC's numbers with intervals, curves, errors, and a report.

    DATA is a data set in any format that `multibox convert` reads. The run folder keeps the numbers (metrics.json),
    the predictions (coco-results.json), the truth they were compared with, plots and report.html. The exit status is 1
    if a picture or a box could not be read.
    """
    from multibox.verbs import validate

    as_json, quiet = options.pop("as_json"), options.pop("quiet")
    silent = quiet or as_json
    done = validate(
        model,
        data,
        aliases=_aliases(options.pop("aliases")),
        say=lambda text: None if silent else click.echo(text, err=True),
        progress=lambda items: _progress(items, quiet=silent),
        **options.pop("builder_arguments"),
        **options,
    )
    summary = {**done.results.summary(), "run": str(done.folder)}
    if as_json:
        click.echo(json.dumps(summary, allow_nan=False))
    elif not quiet:
        click.echo(done.results.table())
        click.echo(f"results in {done.folder}; open {done.folder / 'report.html'}", err=True)
    problems = done.results.validation.problems
    for error in problems:
        click.echo(f"multibox: {one_line(error)}", err=True)
    if done.lost:
        click.echo(f"multibox: {data}: {done.lost} could not be read; `multibox check` names them", err=True)
    return EXIT_BAD_DATA if problems or done.lost else 0


def _aliases(text: str | None) -> dict[str, str | None]:
    """{"tv": "television", "sofa": None} for "tv:television,sofa:"."""
    out: dict[str, str | None] = {}
    for part in (text or "").split(","):
        model, colon, data = (piece.strip() for piece in part.partition(":"))
        if part.strip() and not (colon and model):
            raise OptionError(
                f"aliases={text}: write MODEL CLASS:DATA CLASS, or MODEL CLASS: for nowhere, not {part!r}"
            )
        if model:
            out[model] = data or None
    return out


def _progress(items: range, *, quiet: bool) -> Iterator[int]:
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, file=sys.stderr, label="pictures", show_pos=True, show_eta=True) as bar:
        yield from bar
