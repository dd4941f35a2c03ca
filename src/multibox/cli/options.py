"""Options in both spellings users know: `--key value` and `key=value`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from multibox.errors import did_you_mean

__all__ = ["KeyValueCommand"]

_KEY_VALUE = re.compile(r"(?P<key>[A-Za-z][A-Za-z0-9_-]*)=(?P<value>.*)", re.DOTALL)
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


class KeyValueCommand(click.Command):
    """A command whose options may also be written `key=value`, with `_` or `-` in the key.

    A switch accepts `save`, `--save`, `--no-save`, `save=true` and `--save false`. An unknown key is refused with the
    nearest known one; a word with `=` that is the name of an existing file stays an argument. After `--` everything is
    an argument.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite every spelling to click's own."""
        return super().parse_args(ctx, self._rewrite(ctx, args))

    def _rewrite(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = {p.name: p for p in self.get_params(ctx) if isinstance(p, click.Option) and p.name}
        out: list[str] = []
        remaining = list(args)
        while remaining:
            word = remaining.pop(0)
            if word == "--":
                return [*out, word, *remaining]
            match = _KEY_VALUE.fullmatch(word.removeprefix("--"))
            dashed = word.startswith("--")
            key = (match["key"] if match else word.removeprefix("--")).replace("-", "_")
            option = options.get(key)
            if match is None and dashed and option is not None:
                value = None
                if option.is_flag and remaining and remaining[0].lower() in _TRUE | _FALSE:
                    value = remaining.pop(0)
                out += _spelled(option, value)
            elif match and option is not None:
                out += _spelled(option, match["value"])
            elif match and not dashed and (key == "source" or Path(word).exists()):
                out.append(match["value"] if key == "source" else word)
            elif match and not dashed:
                raise click.UsageError(f"unknown option {match['key']!r}; {did_you_mean(key, options)}", ctx)
            elif dashed and word != "--help" and not key.startswith("no_"):
                raise click.UsageError(f"unknown option {word!r}; {did_you_mean(key, options)}", ctx)
            else:
                out.append(word)
        return out


def _spelled(option: click.Option, value: str | None) -> list[str]:
    name = max(option.opts, key=len)
    if not option.is_flag:
        return [name] if value is None else [name, value]
    text = "true" if value is None else value.lower()
    if text not in _TRUE | _FALSE:
        raise click.UsageError(f"{option.name} is a switch: write {option.name}=true or {option.name}=false, not {value!r}")
    if text in _TRUE:
        return [name]
    return [max(option.secondary_opts, key=len)] if option.secondary_opts else []
