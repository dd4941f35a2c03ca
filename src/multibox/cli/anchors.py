"""`multibox anchors`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from multibox.catalogue import DEFAULT_MODEL
from multibox.cli.options import KeyValueCommand

if TYPE_CHECKING:
    from multibox.data import Dataset
    from multibox.doctor.anchor_search import AnchorProposal, Coverage
    from multibox.spec.card import ModelCard

__all__ = ["command"]


@click.command("anchors", cls=KeyValueCommand)
@click.argument("data", metavar="DATA")
@click.option(
    "--model", metavar="MODEL", default=DEFAULT_MODEL, show_default=True, help="A model, a model file or a network."
)
@click.option("--split", metavar="NAME", help="Only this split: train, val …  [default: train if there is one]")
@click.option("--format", metavar="NAME", help="Read DATA as this format.  [default: recognised]")
@click.option("--images", metavar="FOLDER", help="The pictures of DATA, if its annotations do not lead to them.")
@click.option("--save", metavar="FILE.json", help="Write the proposed default boxes, for training with anchors=FILE.")
@click.option("--json/--no-json", "as_json", default=False, help="Print one JSON object.")
def command(
    data: str, model: str, split: str | None, format: str | None, images: str | None, save: str | None, as_json: bool
) -> None:
    """Propose default boxes for MODEL that more of the objects in DATA match.

    The number of boxes on each level stays, so the network does. The boxes are fitted to every second picture and
    tested on the others (held out); if they are not clearly better there, the present ones are kept.
    """
    from multibox.cli.info import any_card
    from multibox.data.findings import Findings
    from multibox.data.picture_files import check_sizes
    from multibox.doctor.anchor_search import propose_anchors, save_anchor_spec
    from multibox.errors import OptionError
    from multibox.pictures.read import one_line

    if save is not None and Path(save).suffix.lower() != ".json":
        raise OptionError(f"save must be a .json file, got {save!r}")
    card = any_card(model)
    dataset, used = _read(data, split=split, format=format, images=images)
    proposal = propose_anchors(
        dataset,
        check_sizes(dataset, Findings()),
        card.anchors,
        feature_sizes_hw=card.feature_sizes_hw,
        size_hw=card.preprocess.size_hw,
    )
    if save is not None:
        save_anchor_spec(save, proposal.spec)
    if as_json:
        height, width = card.preprocess.size_hw
        head = {"data": data, "split": used, "model": model, "size_hw": [height, width]}
        click.echo(json.dumps({**head, **proposal.to_dict(), "saved": save}))
        return
    part = "" if used is None else f", split {used}"
    click.echo(one_line(f"{dataset.origin}{part}: {len(dataset)} pictures, {dataset.num_boxes} boxes"))
    for line in _lines(proposal, card):
        click.echo(line)
    for note in proposal.notes:
        click.echo(f"note: {one_line(note)}")
    if save is not None:
        click.echo(one_line(f"wrote {save}; training reads it with anchors={shlex.quote(save)}"))
    if proposal.changed:
        named = "" if model == DEFAULT_MODEL else f" model={shlex.quote(model)}"
        click.echo(one_line(f"to train with these boxes: multibox train {shlex.quote(data)}{named} anchors=fit"))
    else:
        click.echo("nothing to change: train with the boxes the model has")


def _read(data: str, *, split: str | None, format: str | None, images: str | None) -> tuple[Dataset, str | None]:
    """The data set and the split that was taken of it; the pictures to train with, unless told otherwise."""
    from multibox.data.formats.table import read_dataset
    from multibox.doctor.picture_checks import split_role

    dataset = read_dataset(data, format=format, split=split, images=images, check_pictures=False)
    if split is None and "train" in map(split_role, dataset.splits):
        return dataset.split("train"), "train"
    return dataset, split


def _lines(proposal: AnchorProposal, card: ModelCard) -> Iterator[str]:
    from multibox.pictures.read import one_line

    height, width = card.preprocess.size_hw
    yield f"default boxes of {one_line(card.name)}, width × height in pixels of the {height} × {width} (h × w) input:"
    yield f"  {'level':<7}{'cells':<10}{'objects':>9}  boxes at a cell"
    for number, row in enumerate(proposal.levels, start=1):
        cells = f"{row.cells_hw[0]} × {row.cells_hw[1]}"
        old = "  ".join(f"{w:.0f}×{h:.0f}" for w, h in row.old_px)
        yield f"  {number:<7}{cells:<10}{row.objects_before:>9}  {old}"
        if proposal.changed:
            new = "  ".join(f"{w:.0f}×{h:.0f}" for w, h in row.new_px)
            yield f"  {'':<7}{'':<10}{row.objects_after:>9}  {'kept' if row.new_px == row.old_px else '→ ' + new}"
    yield f"  {'coverage':<26}{'objects':>9}{'IoU ≥ 0.5':>12}{'mean best IoU':>16}{'boxes per object':>19}"
    if proposal.changed:
        yield _coverage_line("all, before", proposal.before)
        yield _coverage_line("all, after", proposal.after)
        yield _coverage_line("held out, before", proposal.held_out_before)
        yield _coverage_line("held out, after", proposal.held_out_after)
    else:
        yield _coverage_line("all", proposal.before)
        yield _coverage_line("held out", proposal.held_out_before)


def _coverage_line(name: str, coverage: Coverage) -> str:
    share, mean, boxes = 100 * coverage.share, coverage.mean_iou, coverage.boxes_per_object
    return f"  {name:<26}{coverage.objects:>9}{share:>10.1f} %{mean:>16.3f}{boxes:>19.1f}"
