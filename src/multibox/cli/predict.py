"""`multibox predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibox.catalogue import DEFAULT_MODEL
from multibox.cli.options import KeyValueCommand, Number, builder_arguments
from multibox.cli.outputs import open_outputs
from multibox.errors import ImageError, OptionError, counted, one_line
from multibox.spec.classes import ClassMap, select_classes
from multibox.spec.detections import Detections

if TYPE_CHECKING:
    from multibox.inference import Detector
    from multibox.pictures.sources import Source

__all__ = ["command"]

EXIT_BAD_PICTURES = 1
BAR_FROM = 10  # pictures; fewer are over before a bar tells anything


@click.command("predict", cls=KeyValueCommand)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="A shipped model or a model file.")
@builder_arguments
@click.option("--conf", type=Number(0, 1, max_open=True), help="Only scores above this.  [default: 0.5]")
@click.option(
    "--iou",
    type=Number(0, 1),
    help="Overlap above which the lower-scored box is dropped.  [default: the model's]",
)
@click.option("--max-det", type=click.IntRange(min=1), help="Most objects in a picture.  [default: the model's]")
@click.option("--classes", metavar="A,B", help="Only these classes, by name or index.")
@click.option("--agnostic-nms/--no-agnostic-nms", default=False, help="Boxes of different classes suppress each other.")
@click.option(
    "--tile", type=click.IntRange(min=32), help="Look at larger pictures in tiles of this side in pixels too."
)
@click.option("--tile-overlap", type=Number(0, 1, max_open=True), default=0.2, show_default=True, help="Of the side.")
@click.option("--workers", type=click.IntRange(min=1), help="Pictures looked at at once.  [default: processors, to 8]")
@click.option(
    "--engine", default="auto", show_default=True, help="auto, onnxruntime, openvino, litert, torch or torch-compile."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@click.option("--save/--no-save", default=None, help="Write pictures with drawn boxes.  [default: yes, unless json]")
@click.option("--save-txt/--no-save-txt", default=False, help="Write YOLO text files.")
@click.option("--save-conf/--no-save-conf", default=False, help="Add the score to each line of the YOLO text files.")
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
    from multibox.inference import Detector
    from multibox.pictures.sources import expand_sources

    if not sources:
        raise click.UsageError("name at least one picture, folder or pattern: multibox predict cat.jpg")
    expansion = expand_sources(sources, stdin=getattr(sys.stdin, "buffer", None))
    if options["save_conf"] and not options["save_txt"]:
        raise OptionError("save_conf=true adds scores to the files of save_txt=true; say both")
    problems = list(expansion.problems)
    say = _Printer(quiet=options["quiet"], as_json=options["as_json"])
    others = expansion.skipped - expansion.skipped_runs
    if others:
        say.note(f"{counted(others, 'file')} in the folders passed over: no picture by the suffix")
    if expansion.skipped_runs:
        say.note(f"{counted(expansion.skipped_runs, 'run folder')} passed over: results of earlier runs")
    read, found, folder = 0, 0, None
    if expansion.sources:
        detector = Detector(
            options["model"], engine=options["engine"], device=options["device"], **options["builder_arguments"]
        )
        settings = _settings(detector.card.class_map, options)
        with open_outputs(expansion.sources, options) as outputs:
            try:
                found_in = _outcomes(detector, expansion.sources, settings)
                with closing(found_in), say.progress(len(expansion.sources)) as advance:
                    for number, outcome in enumerate(found_in):
                        if isinstance(outcome, ImageError):
                            problems.append(outcome)
                        else:
                            read, found = read + 1, found + len(outcome)
                            try:
                                outputs.write(number, outcome)
                            except ImageError as error:  # it cannot be drawn; its other results are written
                                problems.append(error)
                            say.result(outcome)
                        advance()
            except KeyboardInterrupt:
                if outputs.folder:
                    say.note(f"\nstopped; the results until now are in {outputs.folder}")
                raise
        folder = outputs.folder
    say.note(f"{counted(read, 'picture')}, {counted(found, 'object')}")
    if folder:
        say.note(f"results in {folder}")
    for problem in problems:
        click.echo(f"multibox: {one_line(problem)}", err=True)
    return EXIT_BAD_PICTURES if problems else 0


def _outcomes(
    detector: Detector, sources: list[Source], settings: dict[str, Any]
) -> Generator[Detections | ImageError, None, None]:
    """What came of each source, in order. Only files are read ahead: servers and pipes may let their reader wait."""
    from multibox.inference import Deferred

    failed: list[ImageError] = []
    pictures = [
        Deferred(source.name, source.read, ahead=source.kind == "file" and Path(source.location).is_file())
        for source in sources
    ]
    with closing(detector.stream(pictures, on_error=failed.append, **settings)) as stream:
        for detections in stream:
            yield from failed
            failed.clear()
            yield detections
        yield from failed


def _settings(class_map: ClassMap, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "conf": options["conf"],
        "iou": options["iou"],
        "max_det": options["max_det"],
        "agnostic_nms": options["agnostic_nms"],
        "tile": options["tile"],
        "tile_overlap": options["tile_overlap"],
        "workers": options["workers"],
        "classes": None if options["classes"] is None else select_classes(class_map, options["classes"]),
    }


class _Printer:
    """Results to standard output; notes and the progress bar to standard error."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet, self._json = quiet, as_json
        self._bar = False

    @contextmanager
    def progress(self, count: int) -> Iterator[Callable[[], None]]:
        """What to call after each of so many items: moves a bar, if they are many and standard error is a terminal."""
        self._bar = not self._quiet and sys.stderr.isatty() and count >= BAR_FROM
        if not self._bar:
            yield lambda: None
            return
        with click.progressbar(length=count, file=sys.stderr, label="pictures", show_pos=True, show_eta=True) as bar:
            yield lambda: bar.update(1)

    def result(self, detections: Detections) -> None:
        if self._json:
            click.echo(json.dumps(detections.to_dict()))
        elif not self._quiet and not (self._bar and sys.stdout.isatty()):
            click.echo(str(detections))

    def note(self, text: str) -> None:
        if not self._quiet:
            click.echo(text, err=True)
