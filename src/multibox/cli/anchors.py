"""`multibox anchors`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from multibox.catalogue import DEFAULT_MODEL
from multibox.cli.options import KeyValueCommand

__all__ = ["command"]

EXIT_BAD_DATA = 1


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
) -> int:
    """Propose default boxes for MODEL that more of the objects in DATA match.

    The number of boxes on each level stays, so the network does. The boxes are fitted to every second picture and
    tested on the others (held out); if they are not clearly better there, the present ones are kept. The exit status
    is 1 if DATA holds boxes or annotation files that cannot be read.
    """
    from multibox.data.findings import Findings
    from multibox.data.formats.table import read_dataset
    from multibox.data.picture_files import check_sizes
    from multibox.doctor.anchors import propose_anchors, save_anchor_spec
    from multibox.doctor.picture_checks import split_role
    from multibox.errors import OptionError, counted, one_line
    from multibox.inference.engines.opening import model_card

    if save is not None and Path(save).suffix.lower() != ".json":
        raise OptionError(f"save must be a .json file, got {save!r}")
    card = model_card(model)
    dataset = read_dataset(data, format=format, split=split, images=images, check_pictures=False)
    findings = dataset.findings
    if split is None and "train" in map(split_role, dataset.splits):
        dataset, split = dataset.split("train"), "train"
    sizes_hw, maps = check_sizes(dataset, Findings()), card.feature_sizes_hw
    proposal = propose_anchors(dataset, sizes_hw, card.anchors, feature_sizes_hw=maps, size_hw=card.preprocess.size_hw)
    if save is not None:
        save_anchor_spec(save, proposal.spec)
    lost = findings.loss()
    if lost:
        click.echo(f"multibox: {data}: {lost} could not be read; `multibox check` names them", err=True)
    status = EXIT_BAD_DATA if lost else 0
    if as_json:
        click.echo(json.dumps({"data": data, "split": split, "model": model, **proposal.to_dict(), "saved": save}))
        return status
    part = "" if split is None else f", split {split}"
    size = f"{counted(len(dataset), 'picture')}, {counted(dataset.num_boxes, 'box', 'boxes')}"
    click.echo(one_line(f"{dataset.origin}{part}: {size}"))
    height, width = proposal.size_hw
    click.echo(one_line(f"default boxes of {card.name}, for an input of {height} × {width} (h × w) pixels:"))
    for line in proposal.lines():
        click.echo(line)
    if save is not None:
        click.echo(one_line(f"wrote {save}; training reads it with anchors={shlex.quote(save)}"))
    named = "" if model == DEFAULT_MODEL else f" model={shlex.quote(model)}"
    told = f"to train with the proposed boxes: multibox train {shlex.quote(data)}{named} anchors=fit"
    click.echo(one_line(told) if proposal.changed else "nothing to change: train with the boxes the model has")
    return status
