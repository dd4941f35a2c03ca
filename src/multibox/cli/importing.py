"""`multibox import`."""

from __future__ import annotations

from pathlib import Path

import click

from multibox.cli.options import KeyValueCommand
from multibox.errors import MissingDependencyError, OptionError
from multibox.spec.classes import ClassMap

__all__ = ["command"]

FORMATS = {
    "ssdlite300-coco": "the npm package's folder models/coco-ssd -> the two files that ship inside multibox",
    "torchvision-ssd300": "a state dict of torchvision's ssd300_vgg16 (.pth)",
}


@click.command(
    "import",
    cls=KeyValueCommand,
    epilog="\b\nFormats:\n" + "\n".join(f"  {name}  {text}" for name, text in FORMATS.items()),
)
@click.argument("format", type=click.Choice(list(FORMATS)))
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), default=Path(), help="Folder to write into.")
@click.option("--name", help="Name of the written files; that of the source when left out.")
@click.option(
    "--names", metavar="FILE", type=click.Path(path_type=Path), help="Class names, one a line, without background."
)
@click.option("--onnx/--no-onnx", default=True, help="Write an .onnx file too.")
def command(format: str, source: Path, output: Path, name: str | None, names: Path | None, onnx: bool) -> None:
    """Convert foreign weights at SOURCE into multibox model files.

    Nothing is unpickled: files that hold anything but tensors are refused.
    """
    try:
        from multibox.export.onnx import export_onnx
        from multibox.export.shipped import build_ssdlite300_coco
        from multibox.weights import make_card, save_detector
        from multibox.weights.foreign.torchvision import import_ssd300_vgg16, read_state_dict
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "importing weights", "export") from None
    if format == "ssdlite300-coco":
        for path in build_ssdlite300_coco(source, output):
            click.echo(path)
        return
    class_map = ClassMap(tuple(_lines(names.expanduser()))) if names else None
    detector, classes = import_ssd300_vgg16(read_state_dict(source), class_map)
    stem = name or source.stem
    card = make_card(detector, classes, name=stem, source=f"torchvision ssd300_vgg16 state dict {source.name}")
    save_detector(output / f"{stem}.safetensors", detector, card)
    click.echo(output / f"{stem}.safetensors")
    if onnx:
        export_onnx(detector, card, output / f"{stem}.onnx")
        click.echo(output / f"{stem}.onnx")


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"names={path}: cannot be read ({error}); give a UTF-8 text file, one name a line") from None
