"""The command line. Each verb lives in its own module, loaded when it is called."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any, NoReturn

import click

from multibox import __version__
from multibox.errors import MultiboxError

__all__ = ["main"]

# Verb: (module, one line for the overview). The order is the order of `multibox --help`.
COMMANDS = {
    "predict": ("multibox.cli.predict", "Find objects in pictures."),
    "train": ("multibox.cli.train", "Train a detector on your own pictures."),
    "val": ("multibox.cli.val", "Measure a model on a data set: AP with intervals, curves, errors, a report."),
    "export": ("multibox.cli.export", "Write a model for other programs, and prove that it still is the model."),
    "benchmark": ("multibox.cli.benchmark", "Time a model on this machine: latency, throughput, start, memory."),
    "compare": ("multibox.cli.compare", "Is one measured model better than another?"),
    "info": ("multibox.cli.info", "Show a model level by level: maps, boxes, outputs, cost, classes."),
    "check": ("multibox.cli.check", "Find what is wrong with a data set, and clean a copy of it."),
    "anchors": ("multibox.cli.anchors", "Propose default boxes that fit a data set."),
    "convert": ("multibox.cli.convert", "Convert a data set from one format to another."),
    "list": ("multibox.cli.list", "List the models that ship inside and those that can be built."),
    "import": ("multibox.cli.importing", "Convert foreign weights into multibox model files."),
}
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            raise _unknown_command(args[0], ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Without importing the verbs' modules.
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _unknown_command(word: str, ctx: click.Context) -> click.UsageError:
    from multibox.errors import did_you_mean

    hint = did_you_mean(word, COMMANDS)
    if not hint.startswith("did you mean") and (os.path.lexists(word) or set(word) & set("./\\*=")):
        hint = f"did you mean: multibox predict {word}"
    return click.UsageError(f"unknown command {word!r}; {hint}", ctx)


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="multibox")
def cli() -> None:
    """Single-shot object detection: small, offline, never silently wrong.

    Options are written --key value or key=value. `multibox VERB --help` explains a verb.
    """


def main() -> None:
    """Entry point: one line for an expected error, and the exit status a script can rely on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no failure
    try:
        # Without click's own handling, so that errors of both kinds end up here.
        status = cli.main(prog_name="multibox", standalone_mode=False)
        if sys.stdout is not None:  # a daemon's may be closed
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        _end(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (`multibox … | head`); nothing more can be said to it.
        _end(EXIT_FAILURE)
    except OSError as error:
        subject = f"{error.filename}: " if error.filename else ""
        click.echo(f"multibox: {subject}{error.strerror or error}; check the place and its free space", err=True)
        _end(EXIT_FAILURE)
    except MultiboxError as error:
        click.echo(f"multibox: {error}", err=True)
        sys.exit(EXIT_FAILURE)
    except MemoryError as error:
        click.echo(f"multibox: not enough memory ({error}); use smaller pictures or a smaller model", err=True)
        sys.exit(EXIT_FAILURE)


def _end(status: int) -> NoReturn:
    """Leave without a second complaint from the interpreter, which would flush standard output once more."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
