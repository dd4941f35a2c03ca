"""`multibox predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import click

from multibox.catalogue import DEFAULT_MODEL
from multibox.cli.options import KeyValueCommand
from multibox.cli.outputs import open_outputs
from multibox.detections import Detections
from multibox.errors import ImageError
from multibox.images import one_line

__all__ = ["command"]

EXIT_BAD_PICTURES = 1
BAR_FROM = 10  # pictures; fewer are over before a bar tells anything


@click.command("predict", cls=KeyValueCommand)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="A shipped model or a model file.")
@click.option("--conf", type=click.FloatRange(0, 1), help="Smallest score that is reported.  [default: 0.5]")
@click.option("--iou", type=click.FloatRange(0, 1), help="Overlap above which the lower-scored box is dropped.  [default: the model's]")
@click.option("--max-det", type=click.IntRange(min=1), help="Most objects in a picture.  [default: the model's]")
@click.option("--classes", metavar="A,B", help="Only these classes, by name or index.")
@click.option("--agnostic-nms/--no-agnostic-nms", default=False, help="Boxes of different classes suppress each other.")
@click.option("--engine", default="auto", show_default=True, help="auto, onnxruntime or torch.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--save/--no-save", default=None, help="Write pictures with drawn boxes.  [default: yes, unless json]")
@click.option("--save-txt/--no-save-txt", default=False, help="Write YOLO text files.")
@click.option("--save-coco/--no-save-coco", default=False, help="Write a COCO results file.")
@click.option("--save-csv/--no-save-csv", default=False, help="Write a CSV table.")
@click.option("--json/--no-json", "as_json", default=False, help="Print one JSON object per picture.")
@click.option("--project", default="runs", show_default=True, help="Folder for run folders.")
@click.option("--name", default="predict", show_default=True, help="Run folder; numbered when it exists.")
@click.option("--exist-ok/--no-exist-ok", default=False, help="Write into an existing run folder.")
@click.option("--quiet/--no-quiet", default=False, help="Print errors and JSON only.")
def command(sources: tuple[str, ...], **options: Any) -> int:
    """Find objects in pictures.

    SOURCE is a file, a folder, a quoted pattern ("shots/**/*.jpg"), an http(s) address, or - for standard input.
    Options are written --key value or key=value. The exit status is 1 if any picture could not be read.
    """
    from multibox.runtime import Detector
    from multibox.sources import expand_sources

    if not sources:
        raise click.UsageError("name at least one picture, folder or pattern: multibox predict cat.jpg")
    expansion = expand_sources(sources, stdin=sys.stdin.buffer)
    problems = list(expansion.problems)
    say = _Printer(quiet=options["quiet"], as_json=options["as_json"])
    if expansion.skipped:
        say.note(f"{expansion.skipped} files in the folders are no pictures and were passed over")
    found = 0
    with ExitStack() as stack:
        if expansion.sources:
            detector = Detector(options["model"], engine=options["engine"], device=options["device"])
            settings = _settings(detector, options)
            outputs = stack.enter_context(open_outputs(expansion.sources, options))
            for number, source in enumerate(say.progress(expansion.sources)):
                try:
                    rgb = source.read()
                except ImageError as error:
                    problems.append(error)
                    continue
                detections = replace(detector(rgb, **settings), path=source.name)
                found += len(detections)
                outputs.write(number, detections)
                say.result(detections)
    read = len(expansion.sources) + len(expansion.problems) - len(problems)
    say.note(f"{read} {_plural(read, 'picture')}, {found} {_plural(found, 'object')}")
    if expansion.sources and outputs.folder:
        say.note(f"results in {outputs.folder}")
    for error in problems:
        click.echo(f"multibox: {one_line(error)}", err=True)
    return EXIT_BAD_PICTURES if problems else 0


def _settings(detector: Any, options: dict[str, Any]) -> dict[str, Any]:
    classes = None
    if options["classes"]:
        wanted = [part.strip().strip("'\"") for part in options["classes"].strip("[]").split(",")]
        classes = detector.card.class_map.select(part for part in wanted if part)
    return {
        "conf": options["conf"],
        "iou": options["iou"],
        "max_det": options["max_det"],
        "agnostic_nms": options["agnostic_nms"],
        "classes": classes,
    }


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"


class _Printer:
    """Results to standard output; notes and the progress bar to standard error."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet, self._json = quiet, as_json
        self._bar = False

    def progress(self, items: list[Any]) -> Iterator[Any]:
        """The items, behind a bar if standard error is a terminal and there are enough of them."""
        self._bar = not self._quiet and sys.stderr.isatty() and len(items) >= BAR_FROM
        if not self._bar:
            yield from items
            return
        with click.progressbar(items, file=sys.stderr, label="pictures", show_pos=True, show_eta=True) as bar:
            yield from bar

    def result(self, detections: Detections) -> None:
        if self._json:
            click.echo(json.dumps(detections.to_dict(), ensure_ascii=False))
        elif not self._quiet and not (self._bar and sys.stdout.isatty()):
            click.echo(str(detections))

    def note(self, text: str) -> None:
        if not self._quiet:
            click.echo(text, err=True)
