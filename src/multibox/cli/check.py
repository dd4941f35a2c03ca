"""`multibox check`."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibox.cli.options import KeyValueCommand

if TYPE_CHECKING:
    from multibox.data import Dataset
    from multibox.doctor import Examination, Policy
    from multibox.spec.card import ModelCard

__all__ = ["command"]

EXIT_ERRORS = 1


@click.command("check", cls=KeyValueCommand)
@click.argument("data", metavar="DATA")
@click.option("--format", metavar="NAME", help="Read DATA as this format.  [default: recognised]")
@click.option("--split", metavar="NAME", help="Only this split: train, val, test …")
@click.option("--images", metavar="FOLDER", help="The pictures of DATA, if its annotations do not lead to them.")
@click.option("--deep/--no-deep", default=False, help="Decode every picture: damaged pixels, near-duplicates.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Threads that read pictures.")
@click.option("--model", metavar="MODEL", help="Tell how the objects fit the default boxes of this model.")
@click.option("--policy", metavar="KIND=LEVEL,…", default="", help="Levels of findings: error, warn, fix or ignore.")
@click.option("--fix", metavar="FOLDER", help="Write a repaired copy into this folder. DATA is never changed.")
@click.option(
    "--copy",
    type=click.Choice(["true", "link"]),
    default="true",
    show_default=True,
    help="Pictures of the repaired copy.",
)
@click.option("--report", metavar="FILE.html", help="Write a report with pictures, one file.")
@click.option("--examples", type=click.IntRange(min=0), default=5, show_default=True, help="Findings shown of a kind.")
@click.option("--json/--no-json", "as_json", default=False, help="Print one JSON object with every finding.")
@click.option("--quiet/--no-quiet", default=False, help="Print errors and what was fixed only.")
def command(
    data: str,
    format: str | None,
    split: str | None,
    images: str | None,
    deep: bool,
    workers: int,
    model: str | None,
    policy: str,
    fix: str | None,
    copy: str,
    report: str | None,
    examples: int,
    as_json: bool,
    quiet: bool,
) -> int:
    """Examine a data set: pictures, sizes, duplicates and leaks between splits, boxes, classes.

    Every kind of finding has a level. `error` makes the exit status 1; `warn` does not; `fix` is a warning that
    fix=FOLDER repairs, as it repairs errors where there is a way; `ignore` is only counted. With fix=FOLDER the
    repaired copy is examined again, and the exit status is that of the copy.
    """
    from multibox.data.formats.table import read_dataset
    from multibox.doctor import Policy
    from multibox.errors import OptionError, counted
    from multibox.inference.engines.opening import model_card

    levels = Policy.parse(policy)  # before any reading: a wrong option should not cost minutes
    if report is not None and Path(report).suffix.lower() not in {".html", ".htm"}:
        raise OptionError(f"report must be an .html file, got {report!r}")
    card = None if model is None else model_card(model)
    say = _Speaker(as_json=as_json, quiet=quiet)
    run = _Run(levels, card, deep=deep, workers=workers, progress=not (as_json or quiet))
    dataset = read_dataset(data, format=format, split=split, images=images, check_pictures=False)
    pictures, boxes = counted(len(dataset), "picture"), counted(dataset.num_boxes, "box", "boxes")
    say(f"{dataset.origin}: {pictures}, {boxes}, {counted(len(dataset.class_map), 'class', 'classes')}")
    examination = run.examine(dataset)
    worst = False
    for line in examination.lines(examples=examples):
        worst = line.startswith("error:") or (worst and line.startswith("  "))
        say(line, worst=worst)
    if examination.anchors is not None:
        say(f"default boxes of {examination.model}:")
        for line in examination.anchors.lines():
            say(line)
    changes: tuple[str, ...] = ()
    result, last = examination.to_dict(), examination
    if fix is not None:
        changes, last = _fix(examination, data, fix, format=format, copy=copy, run=run, say=say)
        result["copy"] = {"path": fix, "changes": list(changes), "status": last.status, "counts": last.counts}
    if report is not None:
        from multibox.doctor import write_report

        write_report(examination, report, changes=changes)
        say(f"wrote {report}")
        result["report"] = report
    say(f"{fix or data}: {last.in_short()}")
    if as_json:
        click.echo(json.dumps(result))
    return EXIT_ERRORS if last.status == "errors" else 0


class _Speaker:
    """Prints lines for people, unless the output is JSON."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json, self._quiet = as_json, quiet

    def __call__(self, line: str, *, worst: bool = False) -> None:
        if not self._as_json and (worst or not self._quiet):
            from multibox.errors import one_line

            click.echo(line[: len(line) - len(line.lstrip())] + one_line(line.lstrip()))


class _Run:
    """An examination with the chosen options, as often as needed."""

    def __init__(self, policy: Policy, card: ModelCard | None, *, deep: bool, workers: int, progress: bool) -> None:
        self._policy, self._card, self._deep, self._workers = policy, card, deep, workers
        self._progress = progress and sys.stderr.isatty()

    def examine(self, dataset: Dataset) -> Examination:
        from multibox.doctor import examine

        with self._bar(len(dataset)) as bar:
            return examine(
                dataset,
                policy=self._policy,
                model=self._card,
                deep=self._deep,
                workers=self._workers,
                progress=None if bar is None else bar.update,
            )

    def _bar(self, length: int) -> AbstractContextManager[Any]:
        if not self._progress:
            return nullcontext()
        return click.progressbar(length=length, label="pictures", file=sys.stderr)


def _fix(
    examination: Examination, data: str, target: str, *, format: str | None, copy: str, run: _Run, say: _Speaker
) -> tuple[tuple[str, ...], Examination]:
    """Write the repaired copy, say what was changed, and examine it. What cannot be written becomes COCO JSON."""
    from multibox.data.formats.table import WRITABLE, detect_format, read_dataset
    from multibox.doctor import repair_dataset, write_repaired

    format = format or detect_format(data)[0]
    format = format if format in WRITABLE else "coco"
    repaired = repair_dataset(examination)
    written, place = write_repaired(repaired, data, target, format=format, copy=copy)  # type: ignore[arg-type]
    for line in repaired.lines:
        say(f"fixed: {line}", worst=True)  # also when quiet: nothing is left out without a word
    for note in written.notes:
        say(f"note: {note}")
    say(f"wrote {place}; examining it")
    again = run.examine(read_dataset(place, format=format, check_pictures=False))
    for line in again.lines(examples=0):
        say(line, worst=line.startswith("error:"))
    return repaired.lines, again
