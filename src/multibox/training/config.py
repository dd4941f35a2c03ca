"""The configuration of a training run, from a recipe, a TOML file and `key=value` pairs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from multibox.errors import MultiboxError, OptionError, did_you_mean
from multibox.training.option_types import Option
from multibox.training.options import (
    AugmentOptions,
    DataOptions,
    LossOptions,
    ModelOptions,
    OptimOptions,
    RunOptions,
)

DERIVED = {"epochs": ("known_epochs", "least_updates"), "lr0": ("known_lr0",)}
"""Options of [optim] that take the place of another one for some models and data, by that one's name."""

__all__ = ["TrainConfig", "all_options", "from_toml", "merge", "to_toml"]


@dataclass(frozen=True)
class TrainConfig:
    """All options of a run, by section.

    Raises:
        OptionError: a value out of range, or options that contradict each other.
    """

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.run.patience and self.data.val_split == "none":
            raise OptionError("patience needs a validation; drop val_split=none or patience")
        if self.optim.warmup >= self.optim.epochs:
            raise OptionError(f"warmup={self.optim.warmup:g} epochs of {self.optim.epochs}; make it shorter")


@cache
def all_options() -> dict[str, tuple[str, Option]]:
    """The section and the option of each name; a name is unique over all sections."""
    found: dict[str, tuple[str, Option]] = {}
    for section in fields(TrainConfig):
        for option in getattr(TrainConfig(), section.name).options():
            assert option.name not in found, option.name
            found[option.name] = (section.name, option)
    return found


def merge(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """The configuration with options by name in place of its own; texts are read as the option's type.

    A warm-up that no option asks for is shortened in proportion where fewer epochs have no room for it. What is given
    plainly outweighs what the configuration derives from the model and the data (`DERIVED`).

    Raises:
        OptionError: an unknown option, or one that cannot be read or is out of range.
    """
    by_section: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        given, _, name = key.replace("-", "_").rpartition(".")
        if name not in all_options():
            raise OptionError(f"unknown option {key!r}; {did_you_mean(name, all_options())}")
        section, _ = all_options()[name]
        if given not in ("", section):
            raise OptionError(f"unknown option {key!r}; did you mean '{section}.{name}'?")
        by_section.setdefault(section, {})[name] = value
    plain = by_section.get("optim", {})
    for name, derived in DERIVED.items():
        if name in plain:
            plain |= {key: all_options()[key][1].default for key in derived if key not in plain}
    parts = {section: replace(getattr(config, section), **values) for section, values in by_section.items()}
    optim = parts.get("optim", config.optim)
    if "warmup" not in by_section.get("optim", {}) and config.optim.warmup >= optim.epochs:
        parts["optim"] = replace(optim, warmup=config.optim.warmup * optim.epochs / config.optim.epochs)
    return replace(config, **parts)


def from_toml(path: Path, *, base: TrainConfig | None = None) -> TrainConfig:
    """A configuration from a TOML file with a table for each section (or keys without tables).

    Raises:
        OptionError: no TOML, an unknown table or key, a value out of range; the message names the file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{path}: cannot be read as TOML ({error})") from None
    sections = {item.name for item in fields(TrainConfig)}
    options: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(value, dict):
            options[key] = value
            continue
        if key not in sections:
            raise OptionError(f"{path}: unknown table [{key}]; {did_you_mean(key, sections)}")
        for name, inner in value.items():
            section, _ = all_options().get(name.replace("-", "_"), (key, None))
            if section != key:
                raise OptionError(f"{path}: {name} belongs into [{section}], not [{key}]")
            options[name] = inner
    try:
        return merge(base or TrainConfig(), options)
    except MultiboxError as error:
        raise OptionError(f"{path}: {error}") from None


def to_toml(config: TrainConfig) -> str:
    """Every option as TOML, but those that are None; `from_toml` reads it back."""
    import tomli_w

    sections = asdict(config)
    return tomli_w.dumps({name: {k: v for k, v in part.items() if v is not None} for name, part in sections.items()})
