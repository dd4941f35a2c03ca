"""`multibox val`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from multibox.cli.options import KeyValueCommand, builder_arguments, select_classes
from multibox.cli.outputs import discard_empty_folder, new_run_folder
from multibox.errors import MissingDependencyError, OptionError
from multibox.files import atomic_write
from multibox.pictures.read import one_line

if TYPE_CHECKING:
    from multibox.evaluation import Bootstrap, Validation

__all__ = ["command"]

EXIT_BAD_DATA = 1
# Our names of COCO's numbers in the JSON object, as COCO's papers write them.
HEADLINE = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP_small",
    "ap_medium": "AP_medium",
    "ap_large": "AP_large",
}


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
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 …")
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
    from multibox.data import read_dataset
    from multibox.errors import counted
    from multibox.evaluation import EvaluationSet, evaluate_coco, save_evaluation, validate
    from multibox.inference import Detector

    detector = Detector(model, engine=options["engine"], device=options["device"], **options["builder_arguments"])
    dataset = read_dataset(data, format=options["format"], split=options["split"], images=options["images"])
    quiet = options["quiet"] or options["as_json"]

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    size = f"{counted(len(dataset), 'picture')}, {counted(dataset.num_boxes, 'object')}"
    say(f"reading {dataset.origin}: {size}, {counted(len(dataset.class_map), 'class', 'classes')}")
    for line in dataset.findings.summary():
        say(f"  {line}")
    # Whatever could refuse the result is asked before the minutes of predicting: the engine of the metrics, the folder.
    evaluate_coco(EvaluationSet(dataset.class_map, (), ()), engine=options["metrics_engine"])
    folder = new_run_folder(options["project"], options["name"], exist_ok=options["exist_ok"])
    try:
        result = validate(
            detector,
            dataset,
            conf=options["conf"],
            iou=options["iou"],
            max_det=options["max_det"],
            agnostic_nms=options["agnostic_nms"],
            classes=None if options["classes"] is None else select_classes(dataset.class_map, options["classes"]),
            aliases=_aliases(options["aliases"]),
            progress=lambda items: _progress(items, quiet=quiet),
            name=f"{detector.card.name} on {Path(data).name}" + (f" ({options['split']})" if options["split"] else ""),
        )
        for note in result.notes:
            say(f"  {note}")
        save_evaluation(folder, result.data)
        metrics, report = _evaluate(result, dataset.origin, options, folder)
        atomic_write(folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False))
    except BaseException:
        discard_empty_folder(folder)
        raise
    if options["as_json"]:
        click.echo(json.dumps(metrics["summary"], allow_nan=False))
    elif not options["quiet"]:
        click.echo(report)
    say(f"results in {folder}; open {folder / 'report.html'}")
    for error in result.problems:
        click.echo(f"multibox: {one_line(error)}", err=True)
    lost = dataset.findings.loss()
    if lost:
        click.echo(f"multibox: {data}: {lost} could not be read; `multibox check` names them", err=True)
    return EXIT_BAD_DATA if result.problems or lost else 0


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


def _evaluate(result: Validation, origin: str, options: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """Every number as JSON values, the text for the terminal; plots and report are written on the way."""
    from multibox import evaluation as ev
    from multibox.evaluation.report import html_report

    data = result.data
    coco, voc = ev.evaluate_coco(data, engine=options["metrics_engine"]), ev.evaluate_voc(data)
    intervals = ev.bootstrap(data, resamples=options["resamples"]) if options["resamples"] else None
    curves, split, calibration = ev.precision_recall(data), ev.error_split(data), ev.calibration(data)
    best = curves.pooled.best
    confusion = ev.confusion_matrix(data, confidence=best.confidence if best else 0.25)
    plots = _plots(folder, curves, confusion, calibration, split)
    summary = {
        "protocol": coco.protocol,
        "engine": coco.engine,
        "images": coco.pictures,
        **{name: getattr(coco, key) for key, name in HEADLINE.items()},
        "per_class": {
            row.name: {"truths": row.truths, "AP": row.ap, "AP50": row.ap50, "AP75": row.ap75} for row in coco.per_class
        },
        "VOC_AP50": voc.ap50,
        "VOC_AP50_11point": voc.ap50_11point,
        "unreadable": [str(error) for error in result.problems],
        "notes": list(result.notes),
        "run": str(folder),
    }
    metrics = {
        "summary": summary,
        "name": data.name,
        "data": origin,
        "settings": {**result.settings, "seconds": result.seconds},
        "coco": coco.to_dict(),
        "voc": voc.to_dict(),
        "intervals": None if intervals is None else intervals.to_dict(),
        "errors": split.to_dict(),
        "calibration": calibration.to_dict(),
        "best_f1": None if best is None else {**asdict(best), "confidence": _below(best.confidence)},
    }
    texts = [coco.table(), voc.table(), split.table()]
    texts += [intervals.table()] if intervals else []
    if best:
        texts.append(
            f"best F1 {best.f1:.4f} with conf={_below(best.confidence):.9g} "
            f"(precision {best.precision:.4f}, recall {best.recall:.4f})"
        )
    number = _number
    page = html_report(
        title=data.name,
        headline=[(name, number(getattr(coco, key)) + _interval(intervals, key)) for key, name in HEADLINE.items()]
        + [("VOC AP50", number(voc.ap50) + _interval(intervals, "voc_ap50"))],
        tables=[
            (
                "Classes",
                ("class", "objects", "AP", "AP50", "AP75", "VOC AP50"),
                [
                    (c.name, str(c.truths), number(c.ap), number(c.ap50), number(c.ap75), number(v.ap50))
                    for c, v in zip(coco.per_class, voc.per_class, strict=True)
                ],
            )
        ],
        plots=plots,
        notes=[
            origin,
            *result.notes,
            coco.protocol,
            f"engine: {coco.engine}",
            voc.protocol,
            calibration.protocol,
            *map(str, result.problems),
        ],
        split=split,
        data=data,
    )
    atomic_write(folder / "report.html", page)
    return metrics, "\n\n".join(texts)


def _below(score: float) -> float:
    """The `conf` that just keeps a score: predictions keep scores above it, in float32."""
    return float(np.nextafter(np.float32(score), np.float32(0)))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(intervals: Bootstrap | None, metric: str) -> str:
    known = [] if intervals is None else [i for i in intervals.intervals if i.metric == metric and i.low is not None]
    return f" [{_number(known[0].low)}, {_number(known[0].high)}]" if known else ""


def _plots(folder: Path, curves: Any, confusion: Any, calibration: Any, split: Any) -> list[tuple[str, bytes]]:
    """Write the plots; without matplotlib there are none, and that is said."""
    from multibox import evaluation as ev

    drawn = []
    plots: tuple[tuple[str, str, Callable[[Any], Any], Any], ...] = (
        ("precision_recall", "precision and recall", ev.plot_precision_recall, curves),
        ("f1", "F1 against confidence", ev.plot_f1, curves),
        ("confusion", "confusion at the confidence of the best F1", ev.plot_confusion, confusion),
        ("calibration", "reliability of the scores", ev.plot_calibration, calibration),
        ("errors", "what repairing each kind of error would add", ev.plot_errors, split),
    )
    try:
        for name, title, plot, values in plots:
            path = folder / f"{name}.png"
            ev.save_png(plot(values), path)
            drawn.append((title, path.read_bytes()))
    except MissingDependencyError as error:
        click.echo(f"no plots: {error}", err=True)
    return drawn
