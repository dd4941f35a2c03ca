"""`multibox import`."""

from __future__ import annotations

from pathlib import Path

import click

from multibox.cli.options import KeyValueCommand
from multibox.errors import MissingDependencyError, ModelFileError, OptionError, one_line
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.table import IMPORTERS, importer_row, recognised

__all__ = ["command"]

EARLIER_NAMES = {"ssdlite300-coco": "tfjs"}  # of a kind of weights, for `as`


@click.command(
    "import",
    cls=KeyValueCommand,
    epilog="\b\nKinds of weights:\n" + "\n".join(f"  {row.name:<18}  {row.title}" for row in IMPORTERS.values()),
)
@click.argument("words", metavar="[KIND] FILE", nargs=-1, required=True)
@click.option("--as", "kind", metavar="KIND", help="Read FILE as this kind.  [default: recognised]")
@click.option("--output", type=click.Path(path_type=Path), default=Path(), help="Folder to write into.")
@click.option("--name", help="Name of the written files; that of the source when left out.")
@click.option(
    "--names", metavar="FILE", type=click.Path(path_type=Path), help="Class names, one a line, without background."
)
@click.option("--onnx/--no-onnx", default=True, help="Write an .onnx file too.")
@click.option(
    "--picture", metavar="FILE", type=click.Path(path_type=Path), help="Try the model on it, and write what it finds."
)
def command(
    words: tuple[str, ...],
    kind: str | None,
    output: Path,
    name: str | None,
    names: Path | None,
    onnx: bool,
    picture: Path | None,
) -> None:
    """Convert the foreign weights in FILE (of some kinds a folder) into multibox model files.

    Nothing is unpickled: files that hold anything but tensors are refused.
    """
    if len(words) > 2 or (len(words) == 2 and kind is not None):
        raise click.UsageError("one file or folder at a time: multibox import FILE as=KIND")
    if len(words) == 2:
        kind = words[0]
    source = Path(words[-1]).expanduser()
    try:
        import onnx as _  # noqa: F401
        import torch  # noqa: F401

        from multibox.weights.store import make_card, save_detector
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "importing weights", "export") from None
    if kind is not None:
        row = importer_row(EARLIER_NAMES.get(kind, kind))
    else:
        found = recognised(source)
        if found is None:
            raise _unknown(source)
        row, evidence = found
        click.echo(one_line(f"{source}: {row.title}, by {evidence}"), err=True)
    class_map = ClassMap(tuple(_lines(names.expanduser()))) if names else None
    imported = row.read(source, class_map)
    for note in imported.notes:
        click.echo(one_line(note), err=True)
    stem = name or imported.name
    card = make_card(imported.network, imported.class_map, name=stem, licence=imported.licence, source=imported.source)
    save_detector(output / f"{stem}.safetensors", imported.network, card)
    click.echo(output / f"{stem}.safetensors")
    if onnx:
        from multibox.export.onnx import export_onnx

        export_onnx(imported.network, card, output / f"{stem}.onnx")
        click.echo(output / f"{stem}.onnx")
    written = output / f"{stem}{'.onnx' if onnx else '.safetensors'}"
    if picture is None:
        click.echo(f"try it: multibox predict PICTURE model={written}", err=True)
    else:
        _try(written, picture, output / f"{stem}.png")


def _try(model: Path, picture: Path, drawn: Path) -> None:
    """Runs the written model on a picture, and draws what it finds."""
    from multibox.inference import Detector

    found = Detector(model)(picture)
    click.echo(one_line(str(found)), err=True)
    found.plot(picture).save(drawn)
    click.echo(drawn)


def _unknown(source: Path) -> ModelFileError:
    if not source.exists():
        return ModelFileError(str(source), "no such file or folder", "check the path")
    kinds = "; ".join(row.title for row in IMPORTERS.values())
    return ModelFileError(
        str(source), f"not recognised as any of: {kinds}", "say what it is with as=KIND, to hear why it does not fit"
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"names={path}: cannot be read ({error}); give a UTF-8 text file, one name a line") from None
