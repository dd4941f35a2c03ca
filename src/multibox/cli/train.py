"""`multibox train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from multibox.cli.options import BuilderArguments, KeyValueCommand
from multibox.cli.outputs import discard_empty_folder, new_run_folder
from multibox.errors import MissingDependencyError, OptionError
from multibox.training.config import TrainConfig, all_options, merge
from multibox.training.option_types import Option
from multibox.training.recipes import recipe_for

__all__ = ["command"]

EXIT_STOPPED = 130
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
    options = {key: value for key, value in given.items() if value is not None}
    if arguments := options.pop("builder_arguments"):
        options["arguments"] = json.dumps(arguments)
    if resume is not None:
        if data or recipe or find:
            raise OptionError("--resume takes the run folder and nothing else that could change the run")
        return _resume(Path(resume), options)
    model = str(options.get("model", TrainConfig().model.model))
    config = merge(recipe_for(model, recipe), {**options, "data": data} if data else options)
    if not config.data.data:
        raise OptionError("nothing to learn from: write multibox train DATA, or --resume RUN_FOLDER")
    _require_torch()
    if find is not None:
        from multibox.training.finders import find as search

        search(find, config)
        return 0
    return _train(config)


def _require_torch() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "training", "train") from None


def _train(config: TrainConfig) -> int:
    from multibox.training.run import train

    if not _is_first():  # the first process makes the folder, and tells the others
        return 0 if train(config, folder=Path()).finished else EXIT_STOPPED
    folder = new_run_folder(config.run.project, config.run.name, exist_ok=config.run.exist_ok)
    try:
        result = train(config, folder=folder)
    except BaseException:
        discard_empty_folder(folder)
        raise
    if not config.run.quiet:
        _summary(result)
    return 0 if result.finished else EXIT_STOPPED


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _resume(folder: Path, options: dict[str, Any]) -> int:
    _require_torch()
    from multibox.training.run import resume

    result = resume(folder, **options)
    if _is_first() and not options.get("quiet"):
        _summary(result)
    return 0 if result.finished else EXIT_STOPPED


def _summary(result: Any) -> None:
    from multibox.errors import counted

    if result.skipped:
        pictures = counted(len(result.skipped), "picture")
        click.echo(f"{pictures} could not be read; `multibox check` names them", err=True)
    if result.finished and result.best.is_file():
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
