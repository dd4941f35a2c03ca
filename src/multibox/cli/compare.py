"""`multibox compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from multibox.cli.options import KeyValueCommand
from multibox.errors import ContractError, MultiboxError

__all__ = ["command"]

COMPARED_SETTINGS = ("conf", "iou", "max_det", "agnostic_nms")


@click.command("compare", cls=KeyValueCommand)
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--resamples", type=click.IntRange(min=1), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--json/--no-json", "as_json", default=False, help="Print one JSON object.")
def command(run_a: Path, run_b: Path, resamples: int, as_json: bool) -> None:
    """Is RUN_B better than RUN_A? Both are run folders of `multibox val` on the same data.

    The pictures are drawn anew many times, the same ones for both runs; a difference is taken as real when its 95 %
    interval excludes zero.
    """
    from multibox.evaluation import compare, load_evaluation
    from multibox.evaluation.run_folder import truth_digest

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


def _differing_settings(run_a: Path, run_b: Path) -> dict[str, tuple[Any, Any]]:
    """Thresholds that the two runs did not share."""
    try:
        a, b = (json.loads((run / "metrics.json").read_text(encoding="utf-8"))["settings"] for run in (run_a, run_b))
        return {key: (a.get(key), b.get(key)) for key in COMPARED_SETTINGS if a.get(key) != b.get(key)}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise MultiboxError(
            f"metrics.json of {run_a} or {run_b} cannot be read ({error}); run `multibox val` again"
        ) from None
