"""`multibox compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from multibox.cli.options import KeyValueCommand
from multibox.errors import ContractError, MultiboxError, OptionError

__all__ = ["command"]

COMPARED_SETTINGS = ("conf", "iou", "max_det", "agnostic_nms")


@click.command("compare", cls=KeyValueCommand)
@click.argument("run_a", type=click.Path(path_type=Path), required=False)
@click.argument("run_b", type=click.Path(path_type=Path), required=False)
@click.option("--project", default="runs", show_default=True, help="Where the newest runs are looked for.")
@click.option("--resamples", type=click.IntRange(min=1), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--json/--no-json", "as_json", default=False, help="Print one JSON object.")
def command(run_a: Path | None, run_b: Path | None, project: str, resamples: int, as_json: bool) -> None:
    """Is RUN_B better than RUN_A? Both are run folders of `multibox val` on the same data.

    Without them, the newest run is compared with the one before it; with one, the newest other run is compared with it.

    The pictures are drawn anew many times, the same ones for both runs; a difference is taken as real when its 95 %
    interval excludes zero.
    """
    from multibox.evaluation import compare, load_evaluation
    from multibox.evaluation.run_folder import truth_digest

    run_a, run_b = _runs(run_a, run_b, Path(project))
    a, b = load_evaluation(run_a), load_evaluation(run_b)
    if a.class_map != b.class_map or truth_digest(a) != truth_digest(b):
        raise ContractError(
            f"{run_a} and {run_b} were measured on different pictures or objects; run both on the same data, with the "
            "same split= and classes="
        )
    result = compare(replace(a, name="A"), replace(b, name="B"), resamples=resamples)
    differing = _differing_settings(run_a, run_b)
    for key, (left, right) in differing.items():
        click.echo(f"note: {key} was {left!r} in A and {right!r} in B; the difference is theirs as well", err=True)
    if as_json:
        click.echo(json.dumps({**result.to_dict(), "differing_settings": differing}, allow_nan=False))
    else:
        click.echo(f"A = {run_a}: {a.name}\nB = {run_b}: {b.name}\n{result.table()}")


def _runs(run_a: Path | None, run_b: Path | None, project: Path) -> tuple[Path, Path]:
    """The runs to compare: those given, else the newest in the folder of runs, the older one first."""
    if run_a is not None and run_b is not None:
        return run_a, run_b
    found = sorted(project.rglob("metrics.json"), key=lambda path: path.stat().st_mtime_ns)
    runs = [path.parent for path in found if run_a is None or path.parent.resolve() != run_a.resolve()]
    if len(runs) < 2 - (run_a is not None):
        raise OptionError(f"{project} has too few runs of `multibox val` to compare; run it once more, or name two")
    return (runs[-2] if run_a is None else run_a), runs[-1]


def _differing_settings(run_a: Path, run_b: Path) -> dict[str, tuple[Any, Any]]:
    """Thresholds that the two runs did not share."""
    try:
        a, b = (json.loads((run / "metrics.json").read_text(encoding="utf-8"))["settings"] for run in (run_a, run_b))
        return {key: (a.get(key), b.get(key)) for key in COMPARED_SETTINGS if a.get(key) != b.get(key)}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise MultiboxError(
            f"metrics.json of {run_a} or {run_b} cannot be read ({error}); run `multibox val` again"
        ) from None
