"""`multibox export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibox.cli.options import KeyValueCommand, Number, builder_arguments
from multibox.errors import one_line
from multibox.export.formats import FORMATS
from multibox.export.heads import HEADS

if TYPE_CHECKING:
    from multibox.export.run import Outcome

__all__ = ["command"]

EXIT_REFUSED = 1


@click.command(
    "export",
    cls=KeyValueCommand,
    epilog="\b\nHeads (boxes are fractions of the picture's width and height):\n"
    + "\n".join(f"  {head.name:<8} {head.words}" for head in HEADS.values())
    + "\n\n\b\nFormats:\n"
    + "\n".join(f"  {row.name:<13} {row.words}" for row in FORMATS.values()),
)
@click.argument("model")
@builder_arguments
@click.option("--format", metavar="NAME", default="onnx", show_default=True, help=", ".join(FORMATS) + ".")
@click.option("--head", metavar="NAME", default="raw", show_default=True, help=", ".join(HEADS) + ".")
@click.option(
    "--output", metavar="FILE", type=click.Path(path_type=Path), help="File to write.  [default: by the model]"
)
@click.option("--imgsz", metavar="N or H,W", help="Input size.  [default: the model's]")
@click.option("--batch", type=click.IntRange(min=1), help="Fixed number of pictures at once.  [default: any]")
@click.option("--dynamic/--no-dynamic", default=None, help="Any number of pictures at once, or one.")
@click.option("--preprocess/--no-preprocess", default=None, help="Take 8-bit RGB pictures of any size.")
@click.option("--conf", type=click.FloatRange(0, 1, max_open=True), help="Of in-graph suppression.  [the model's]")
@click.option("--iou", type=click.FloatRange(0, 1), help="Of in-graph suppression.  [the model's]")
@click.option("--max-det", type=click.IntRange(min=1), help="Of in-graph suppression.  [the model's]")
@click.option("--agnostic-nms/--no-agnostic-nms", default=None, help="Boxes of different classes suppress each other.")
@click.option("--data", metavar="DATASET", help="Pictures, annotated or alone, to measure on; int8 needs them.")
@click.option("--split", metavar="NAME", help="Of DATASET.  [default: val or test, if there is one]")
@click.option("--calibrate", metavar="DATASET", help="Pictures that set int8 scales.  [default: DATASET's others]")
@click.option("--calibrate-split", metavar="NAME", help="Of those.  [default: train, if there is one]")
@click.option(
    "--limit", type=click.IntRange(min=1), default=500, show_default=True, help="Most pictures to measure on."
)
@click.option("--tolerance", type=Number(0, min_open=True), default=0.1, show_default=True, help="Of boxes, in pixels.")
@click.option("--max-drop", type=Number(0, 1), default=0.01, show_default=True, help="Of AP50 and AP, 0 to 1.")
@click.option("--json/--no-json", "as_json", default=False, help="Print the report as one JSON object.")
@click.option("--quiet/--no-quiet", default=False, help="Print errors and JSON only.")
def command(model: str, **options: Any) -> int:
    """Write MODEL in a form that other programs run, and prove that it still is MODEL.

    MODEL is a shipped model, a .safetensors file, or the name of a network (random weights). The written file is run
    on pictures and compared with MODEL: prepared input, raw outputs level by level, detections, and AP where DATASET
    has boxes. A file that differs (with format=triton, a folder) is called NAME.rejected and the exit status is 1; an
    earlier NAME stays. The report lies beside it.
    """
    from multibox.verbs import export

    as_json, quiet = options.pop("as_json"), options.pop("quiet")
    outcome = export(
        model, say=lambda text: None if quiet or as_json else click.echo(one_line(text), err=True), **options
    )
    if as_json:
        click.echo(json.dumps({**outcome.report.to_dict(), "written": str(outcome.path)}, allow_nan=False))
    elif not quiet:
        for line in _lines(outcome):
            click.echo(one_line(line))
    for failure in outcome.report.failures:
        click.echo(f"multibox: {one_line(failure)}", err=True)
    if not outcome.report.passed:
        click.echo(f"multibox: refused; it is {outcome.path}, see {outcome.report_path}", err=True)
        return EXIT_REFUSED
    return 0


def _lines(outcome: Outcome) -> list[str]:
    report = outcome.report
    lines = []
    if report.tensors:
        worst = max(report.tensors, key=lambda row: row.largest / row.tolerance)
        where = f"{worst.output} {worst.level}".strip()
        limit = f"allowed {worst.tolerance:.3g}" if report.judges_tensors else "which int8 is not judged by"
        lines.append(f"tensors: largest difference {worst.largest:.3g} ({where}), {limit}")
    if report.detections is not None:
        found = report.detections
        lines.append(
            f"detections: {found.paired} of {found.expected} paired, boxes within {found.largest_px:.3g} px, scores "
            f"within {found.largest_score:.3g}; {found.explained} explained by rounding"
        )
    if report.found_again is not None:
        lines.append(f"detections: {report.found_again:.1%} of the confident ones found again")
    if report.accuracy is not None:
        for metric, name in (("ap", "AP"), ("ap50", "AP50")):
            before, after = report.accuracy.before[metric], report.accuracy.after[metric]
            lines.append(f"{name}: {before:.4f} before, {after:.4f} after ({after - before:+.4f})")
    lines += report.notes
    if report.passed:
        lines.append(f"wrote {outcome.path} and {outcome.report_path.name}")
    return lines
