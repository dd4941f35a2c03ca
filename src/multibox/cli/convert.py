"""`multibox convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from multibox.cli.options import KeyValueCommand

if TYPE_CHECKING:
    from multibox.data import Dataset

__all__ = ["command"]

EXIT_LOSS = 1


@click.command("convert", cls=KeyValueCommand)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option(
    "--format", metavar="NAME", help="Write coco, voc, yolo, csv, parquet or huggingface.  [default: by TO's suffix]"
)
@click.option("--from-format", metavar="NAME", help="Read FROM as this format.  [default: recognised]")
@click.option("--split", metavar="NAME", help="Only this split: train, val, test …")
@click.option("--images", metavar="FOLDER", help="The pictures of FROM, if its annotations do not lead to them.")
@click.option(
    "--copy",
    metavar="false|true|link",
    help="Leave pictures where they are, copy or link them.  [default: link for voc, yolo, huggingface; else false]",
)
@click.option("--round/--no-round", "round_boxes", default=False, help="Pascal VOC: round boxes to whole pixels.")
@click.option("--exist-ok/--no-exist-ok", default=False, help="Write into a folder with files in it, replace files.")
@click.option("--quiet/--no-quiet", default=False, help="Print only what is wrong.")
def command(
    source: str,
    target: str,
    format: str | None,
    from_format: str | None,
    split: str | None,
    images: str | None,
    copy: str | None,
    round_boxes: bool,
    exist_ok: bool,
    quiet: bool,
) -> int:
    """Convert a data set FROM one format TO another.

    No box, class, flag (crowd, difficult, truncated, occluded, area) or picture without objects is lost on the way;
    what the target keeps in its own manner is said. The exit status is 1 if FROM holds boxes or annotation files that
    cannot be read.
    """
    from multibox.data.formats.table import FORMATS, detect_format, format_of_target, read_dataset, write_dataset
    from multibox.errors import OptionError

    def say(text: str) -> None:
        if not quiet:
            click.echo(text)

    name = format_of_target(target, format)  # before any reading: a wrong option should not cost minutes
    if copy is not None and copy.lower() not in {"false", "true", "link"}:
        raise OptionError(f"copy must be true, false or link, got {copy!r}")
    found, evidence = (from_format, "as asked for") if from_format else detect_format(source)
    title = FORMATS[found].title if found in FORMATS else found
    say(f"reading {source} as {title} ({evidence})")
    dataset = read_dataset(source, format=found, split=split, images=images)
    say(_summary(dataset))
    for line in dataset.findings.summary():
        click.echo(line, err=True)
    report = write_dataset(
        dataset,
        target,
        format=name,
        copy=copy.lower() if copy else None,  # type: ignore[arg-type]
        exist_ok=exist_ok,
        round_boxes=round_boxes,
    )
    for note in report.notes:
        say(f"note: {note}")
    say(f"wrote {report.path} as {FORMATS[name].title}")
    if dataset.findings.has_loss:
        click.echo(f"{dataset.findings.loss()} of {source} could not be read: what they say is missing", err=True)
    return EXIT_LOSS if dataset.findings.has_loss else 0


def _summary(dataset: Dataset) -> str:
    from multibox.data.columns import FLAGS
    from multibox.errors import counted

    counts = dataset.columns.offsets[1:] - dataset.columns.offsets[:-1]
    flags = {name: int((dataset.columns.flags >> bit & 1).sum()) for bit, name in enumerate(FLAGS)}
    splits = ", ".join(f"{name} {len(dataset.split(name))}" for name in dataset.splits)
    parts = [
        counted(len(dataset), "picture") + (f" ({splits})" if splits else ""),
        counted(dataset.num_boxes, "box", "boxes"),
        counted(len(dataset.class_map), "class", "classes"),
        counted(int((counts == 0).sum()), "picture without objects", "pictures without objects"),
        *(f"{count} {name}" for name, count in flags.items() if count),
    ]
    return ", ".join(parts)
