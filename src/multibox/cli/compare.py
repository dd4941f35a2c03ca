"""`multibox compare`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from multibox.cli.options import KeyValueCommand
from multibox.errors import ContractError

__all__ = ["command"]


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
    from multibox.evaluation import compare
    from multibox.validation import load_evaluation
    from multibox.validation.folder import truth_digest

    a, b = load_evaluation(run_a), load_evaluation(run_b)
    a.class_map.require_same(b.class_map, mine=str(run_a), theirs=str(run_b))
    if truth_digest(a) != truth_digest(b):
        raise ContractError(
            f"{run_a} and {run_b} were measured on different pictures or objects; run both on the same data"
        )
    result = compare(a, b, resamples=resamples)
    click.echo(
        json.dumps(result.to_dict(), allow_nan=False) if as_json else f"A = {run_a}\nB = {run_b}\n{result.table()}"
    )
