"""`multibox list`."""

from __future__ import annotations

import importlib.util

import click

from multibox.catalogue import CATALOGUE, DEFAULT_MODEL, NETWORKS
from multibox.cli.options import KeyValueCommand
from multibox.errors import install_command

__all__ = ["command"]


@click.command("list", cls=KeyValueCommand)
def command() -> None:
    """List the models that ship inside and the networks that can be built."""
    width = max(map(len, (*CATALOGUE, *NETWORKS)))
    click.echo("Models that ship inside (for predict):")
    for name, entry in CATALOGUE.items():
        default = " [default]" if name == DEFAULT_MODEL else ""
        size = entry.path(".onnx").stat().st_size / 1e6
        click.echo(f"  {name}{default}  {entry.description}; {size:.0f} MB, weights {entry.licence}")
        click.echo(f"  {'':<{width}}  {entry.size}")
    click.echo("Networks with random weights (to train, or to look at with info), as large as they are by themselves:")
    for name, network in NETWORKS.items():
        click.echo(f"  {name:<{width}}  {network}")
    if importlib.util.find_spec("torch") is None:
        click.echo(f"They need torch, which is not installed; install it with: {install_command('train')}")
