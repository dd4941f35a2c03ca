"""`multibox train`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from multibox.cli.options import BuilderArguments, KeyValueCommand
from multibox.errors import OptionError, counted
from multibox.training.config import all_options
from multibox.training.option_types import Option

if TYPE_CHECKING:
    from multibox.training.run import TrainResult

__all__ = ["command"]

EXIT_STOPPED = 130
EXIT_BAD_DATA = 1
SECTIONS = {"data": "Data", "model": "Model", "augment": "Augmentation", "loss": "Loss", "optim": "Optimiser"}


def _option(option: Option) -> click.Option:
    flag = option.name.replace("_", "-")
    shown = ",".join(map(str, option.default)) if option.kind is tuple else option.default
    default = "" if shown in ("", None) else f"  [{shown}]"
    text = option.help.split(". ")[0].rstrip(".") + "." + default
    if option.kind is bool:
        return click.Option([f"--{flag}/--no-{flag}"], default=None, help=text)
    return click.Option([f"--{flag}"], metavar="VALUE", default=None, help=text)


class _TrainCommand(KeyValueCommand):
    """Its options are those of the configuration, listed by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = all_options()
        by_section: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                section = known[parameter.name][0] if parameter.name in known else "run"
                by_section.setdefault(section, []).append(record)
        for section, rows in by_section.items():
            with formatter.section(SECTIONS.get(section, "Run")):
                formatter.write_dl(rows)


def _run(data: str | None, resume: str | None, recipe: str | None, find: str | None, **given: Any) -> int:
    from multibox.verbs import train, training_config

    options = {key: value for key, value in given.items() if value is not None}
    arguments = options.pop("builder_arguments")
    if find is None:
        result = train(data or "", recipe=recipe, resume=resume, builder_arguments=arguments, **options)
        if os.environ.get("RANK", "0") == "0" and not result.config.run.quiet:
            _summary(result)
        return _status(result)
    if resume is not None:
        raise OptionError("--resume takes the run folder and nothing else that could change the run")
    config = training_config(data or "", recipe=recipe, builder_arguments=arguments, **options)
    from multibox.training.finders import find as search

    search(find, config)
    return 0


def _status(result: TrainResult) -> int:
    """The exit status: 130 when stopped, 1 when something could not be read, else 0."""
    if not result.finished:
        return EXIT_STOPPED
    return EXIT_BAD_DATA if result.skipped or result.lost else 0


def _summary(result: TrainResult) -> None:
    if result.skipped:
        pictures = counted(len(result.skipped), "picture")
        click.echo(f"{pictures} could not be read; `multibox check` names them", err=True)
    if result.lost:
        click.echo(f"{result.lost} could not be read and were not learnt; `multibox check` names them", err=True)
    if not (result.finished and result.best.is_file()):
        return
    started = result.history[0] if result.history[0]["epoch"] == 0 else None
    if started is not None and result.best_epoch == 0:
        click.echo(f"no epoch scored above the start (AP {started['AP']:.4f}), so the start's weights are kept as best")
    elif started is not None:
        best = next(row for row in result.history if row["epoch"] == result.best_epoch)
        click.echo(f"AP on the validation: {started['AP']:.4f} at the start, {best['AP']:.4f} at best")
    click.echo(f"best weights (after epoch {result.best_epoch}): {result.best}")
    click.echo(f"use them:  multibox predict PICTURES model={result.best}")


def _command() -> click.Command:
    parameters: list[click.Parameter] = [
        click.Argument(["data"], required=False),
        click.Option(["--recipe"], metavar="NAME|FILE", help="A recipe's name or a TOML file.  [by the model]"),
        click.Option(["--resume"], metavar="RUN_FOLDER", help="Go on with a run that was stopped or killed."),
        click.Option(
            ["--find"], metavar="batch|lr", help="Only measure which batch size fits, or which learning rate works."
        ),
        *(_option(option) for name, (_, option) in all_options().items() if name not in ("data", "arguments")),
        BuilderArguments(),
    ]
    return _TrainCommand(
        "train",
        params=parameters,
        callback=_run,
        help="""Train a detector on DATA, a data set in any format that `multibox convert` reads.

        It starts from a shipped model (or any .safetensors file) whose class head is refitted to the classes of DATA,
        and leaves a run folder with weights/best.safetensors, which `multibox predict` and `multibox val` take.
        Interrupted or killed, it goes on with --resume. Without --recipe, options begin as in the preset that belongs
        to MODEL (multibox/recipes); the defaults shown here hold where there is none, and in a --recipe file
        for what it leaves out.""",
    )


command = _command()
