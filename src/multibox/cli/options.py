"""Options in both spellings users know: `--key value` and `key=value`."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import click

__all__ = ["BuilderArguments", "KeyValueCommand", "Number", "builder_arguments"]

_KEY_VALUE = re.compile(r"(?P<key>[A-Za-z][A-Za-z0-9_-]*)=(?P<value>.*)", re.DOTALL)
_BUILDER_ARGUMENT = re.compile(r"(?:--)?model\.(?P<key>[A-Za-z][A-Za-z0-9_-]*)=(?P<value>.*)", re.DOTALL)
_YES, _NO = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})
_TRUE, _FALSE = _YES | {"1"}, _NO | {"0"}
_SYNONYMS = {"data": "source", "source": "data"}
NEAREST = 3
"""Options that are shown to somebody who wrote an unknown one."""


class Number(click.FloatRange):
    """A number in a range. Not a number ("nan") is in none, though no comparison says so."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's refusal, which shows the range."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class KeyValueCommand(click.Command):
    """A command whose options may also be written `key=value`, with `_` or `-` in the key.

    - A switch accepts `--save`, `--no-save`, `save=true`, `--save=false` and `--save false`. The last one takes no 0
      and 1, which are names of many a folder. `save` alone is the switch unless there is a file of that name.
    - An argument may be written with its name as well: `source=cat.jpg`, `--model best.onnx`. `data` and `source` are
      one name where a verb has only one of them.
    - With `builder_arguments`, the words `model.KEY=VALUE` are what a network is built with.
    - An unknown key is refused with the nearest known ones, unless the whole word is the name of an existing file.
    - After `--` everything is an argument.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite every spelling to click's own."""
        if ctx.resilient_parsing:  # shell completion, on a line that is still being typed
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, _Rewriter(self, ctx).rewrite(args))


class _Rewriter:
    def __init__(self, command: click.Command, ctx: click.Context) -> None:
        parameters = command.get_params(ctx)
        self._ctx = ctx
        self._switch_off: dict[str, click.Option] = {}
        self._options: dict[str, click.Option] = {}
        self._short: dict[str, click.Option] = {}
        self._takes_builder_arguments = any(isinstance(p, BuilderArguments) for p in parameters)
        for option in (p for p in parameters if isinstance(p, click.Option) and not isinstance(p, BuilderArguments)):
            for spelling in (*option.opts, *option.secondary_opts):
                if not spelling.startswith("--"):
                    self._short[spelling] = option
                elif spelling in option.opts:
                    self._options[_key(spelling)] = option
                else:
                    self._switch_off[_key(spelling)] = option
        self._arguments = [p for p in parameters if isinstance(p, click.Argument)]

    def rewrite(self, args: list[str]) -> list[str]:
        """Options in click's spelling, then `--`, then the arguments in their order."""
        options: list[str] = []
        words: list[str] = []
        named: dict[str, str] = {}
        remaining = list(args)
        while remaining:
            word = remaining.pop(0)
            match = _KEY_VALUE.fullmatch(word.removeprefix("--"))
            built = _BUILDER_ARGUMENT.fullmatch(word) if self._takes_builder_arguments else None
            if word == "--":
                words += remaining
                break
            if built is not None:
                options.append(f"--model.={_key(built['key'])}={built['value']}")
                continue
            argument = self._argument(_key(match["key"] if match else word))
            if argument is not None and (match is not None or word.startswith("--")):
                value = match["value"] if match else self._value(word, remaining)
                if argument.nargs == 1:
                    named[str(argument.name)] = value
                else:
                    words.append(value)
            elif word.startswith("--"):
                options += self._dashed(word, match, remaining)
            elif word in self._short:
                options.append(word)
                if not self._short[word].is_flag:
                    options.append(self._value(word, remaining))
            elif word.startswith("-") and word != "-":
                raise self._unknown(word)
            elif match is None and self._is_switch(word) and not os.path.lexists(word):
                options += self._spelled(_key(word), None)
            elif match is None:
                words.append(word)
            elif _key(match["key"]) in self._options | self._switch_off:
                options += self._spelled(_key(match["key"]), match["value"])
            elif os.path.lexists(word):
                words.append(word)
            else:
                raise self._unknown(match["key"])
        return [*options, "--", *self._in_order(words, named)]

    def _value(self, word: str, remaining: list[str]) -> str:
        if not remaining:
            raise click.UsageError(f"option {word} needs a value", self._ctx)
        return remaining.pop(0)

    def _dashed(self, word: str, match: re.Match[str] | None, remaining: list[str]) -> list[str]:
        key = _key(match["key"] if match else word)
        value = match["value"] if match else None
        if key not in self._options | self._switch_off:
            raise self._unknown(word.partition("=")[0])
        option = self._options.get(key)
        if match is None and remaining and option is not None:
            says_yes_or_no = bool(option.secondary_opts) and remaining[0].lower() in _YES | _NO
            if not option.is_flag or says_yes_or_no:
                value = remaining.pop(0)
        return self._spelled(key, value)

    def _spelled(self, key: str, value: str | None) -> list[str]:
        option = self._options.get(key) or self._switch_off[key]
        name = max(option.opts, key=len)
        if not option.is_flag:
            if value is None:
                raise click.UsageError(f"option {name} needs a value: write {name}=…", self._ctx)
            return [f"{name}={value}"]
        text = "true" if value is None else value.lower()
        if text not in _TRUE | _FALSE:
            shown = key.replace("_", "-")
            raise click.UsageError(
                f"{shown} is a switch: write {shown}=true or {shown}=false, not {value!r}", self._ctx
            )
        if (text in _TRUE) == (key in self._options):
            return [name]
        return [max(option.secondary_opts, key=len)] if option.secondary_opts else []

    def _is_switch(self, word: str) -> bool:
        option = self._options.get(_key(word))
        return option is not None and option.is_flag and _key(word) != "help"

    def _argument(self, key: str) -> click.Argument | None:
        """The argument that may be called so, unless an option is."""
        if key in self._options | self._switch_off:
            return None
        keys = (key, _SYNONYMS.get(key, key))
        return next((a for key in keys for a in self._arguments if key in _names(a)), None)

    def _in_order(self, words: list[str], named: dict[str, str]) -> list[str]:
        out: list[str] = []
        for argument in self._arguments:
            if str(argument.name) in named:
                out.append(named[str(argument.name)])
            elif argument.nargs == 1:
                out += [words.pop(0) for _ in words[:1]]
        return out + words

    def _unknown(self, word: str) -> click.UsageError:
        bare = word.lstrip("-")
        off = self._switch_off if bare.startswith("no") else ()
        known = {*self._options, *off, *(_names(argument)[-1] for argument in self._arguments)} - {"help"}
        is_dashed = bare != word  # key=value has underscores in its key
        shown = {key: f"--{key.replace('_', '-')}" if is_dashed else key for key in known}
        key = bare.replace("-", "_").casefold()
        near = difflib.get_close_matches(key, known, n=NEAREST, cutoff=0)
        if difflib.get_close_matches(key, near, n=1):
            return click.UsageError(f"unknown option {word!r}; did you mean {shown[near[0]]!r}?", self._ctx)
        hint = f"the nearest are {', '.join(shown[key] for key in near)}" if near else "there are no options"
        hint += f"; `{self._ctx.command_path} --help` lists all"
        if not is_dashed and self._arguments:
            hint += f"; a file of that name is written ./{word}=…"
        return click.UsageError(f"unknown option {word!r}; {hint}", self._ctx)


def _key(spelling: str) -> str:
    return spelling.removeprefix("--").replace("-", "_")


def _names(argument: click.Argument) -> tuple[str, ...]:
    """How an argument may be called: "sources" and, since one is given at a time, "source"; as the help calls it."""
    name, shown = str(argument.name), (argument.metavar or "").casefold()
    return (name, *([shown] if shown.isalpha() else []), name.removesuffix("s"))


class BuilderArguments(click.Option):
    """The option `model.KEY=VALUE` of a `KeyValueCommand`; the callback gets a dict, `builder_arguments`."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(
            ["--model.", "builder_arguments"],
            multiple=True,
            callback=lambda context, parameter, pairs: dict(map(_builder_argument, pairs)),
            help="An argument of the network to be built: model.size_hw=320,480.",
        )

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Shown as it is written."""
        return "model.KEY=VALUE", str(self.help)


def builder_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the command takes `model.KEY=VALUE`, and its callback gets them as `builder_arguments`, a dict."""
    return click.option(cls=BuilderArguments)(command)


def _builder_argument(pair: str) -> tuple[str, Any]:
    """Key and value of "key=value": JSON, or with commas the items of a list, or a text."""
    key, _, text = pair.partition("=")
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            return key, json.loads(candidate)
        except ValueError:
            continue
    return key, text
