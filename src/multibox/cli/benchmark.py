"""`multibox benchmark`."""

from __future__ import annotations

import json
from typing import Any

import click

from multibox.catalogue import DEFAULT_MODEL
from multibox.cli.options import KeyValueCommand, Number

__all__ = ["command"]


class _Several(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3, not before
    """Comma-separated words, or whole numbers from 1."""

    def __init__(self, *, numbers: bool) -> None:
        self._numbers = numbers
        self.name = "numbers" if numbers else "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The parts, each once."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).strip("[]() ").split(",")]
        if not self._numbers:
            return tuple(dict.fromkeys(filter(None, parts)))
        if not all(part.isdecimal() and int(part) >= 1 for part in parts):
            self.fail(f"{value!r} is no list of whole numbers from 1, such as 1,4.", param, ctx)
        return tuple(dict.fromkeys(int(part) for part in parts))


@click.command("benchmark", cls=KeyValueCommand)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--engine",
    type=_Several(numbers=False),
    default=(),
    metavar="A,B",
    help="[default: all that are installed, but for torch-compile]",
)
@click.option("--data", metavar="FOLDER|DATASET", help="Pictures to time on.  [default: a made-up one]")
@click.option("--batch", type=_Several(numbers=True), default="1", show_default=True, metavar="1,4", help="A call.")
@click.option(
    "--threads", type=_Several(numbers=True), default=(), metavar="1,2", help="[default: the processors there are]"
)
@click.option(
    "--conf", type=Number(0, 1, max_open=True), default=0.5, show_default=True, help="Only scores above this."
)
@click.option(
    "--against",
    type=_Several(numbers=False),
    default=(),
    metavar="torchvision|A,B",
    help="Time its detectors beside ours, as ratios: all, or some of ssdlite320, ssd300, fasterrcnn320, fasterrcnn.",
)
@click.option("--seconds", type=Number(0, min_open=True), default=5.0, show_default=True, help="A contender, about.")
@click.option(
    "--remember/--no-remember", default=True, show_default=True, help="Note the fastest engine for engine=auto."
)
@click.option("--json/--no-json", "as_json", default=False, help="Print one JSON object.")
@click.option("--quiet/--no-quiet", default=False, help="Say nothing while it runs.")
def command(models: tuple[str, ...], **options: Any) -> None:
    """Time each MODEL on this machine: latency, throughput, start, memory, energy where it can be read.

    Without MODEL it is ssdlite300-coco. Models, engines, batches and numbers of threads take turns on the same files.
    The fastest engine is noted in your cache folder, and engine=auto uses it from then on.
    """
    from multibox.benchmark import BenchmarkRequest, benchmark, markdown

    request = BenchmarkRequest(
        models=tuple(dict.fromkeys(models)) or (DEFAULT_MODEL,),
        engines=options["engine"],
        data=options["data"],
        batches=options["batch"],
        threads=options["threads"],
        conf=options["conf"],
        against=options["against"],
        seconds=options["seconds"],
        remember=options["remember"],
    )
    found = benchmark(request, say=lambda text: None if options["quiet"] else click.echo(text, err=True))
    click.echo(json.dumps(found, allow_nan=False) if options["as_json"] else markdown(found))
