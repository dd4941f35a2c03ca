"""Recipes: TOML files with the options that suit a network; one is the default of each."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from multibox.catalogue import CATALOGUE, resolve_model
from multibox.errors import ModelFileError, OptionError, did_you_mean
from multibox.spec.card import read_safetensors_card
from multibox.training.config import TrainConfig, from_toml

__all__ = ["DEFAULTS", "list_recipes", "recipe_for"]

DEFAULTS = {
    "ssdlite300_mobilenetv2": "ssdlite",
    "ssd300_vgg16": "ssd-paper",
    "ssd512_vgg16": "ssd-paper",
    "tinyssd256": "tinyssd",
    "ssdlite320_efficientnet_lite0": "ssdlite",
    "ssdlite320_efficientnet_lite1": "ssdlite",
    "ssdlite320_efficientnet_lite2": "ssdlite",
    "bpn300_mobilenetv2": "ssdlite",
    "bpn320_efficientnet_lite0": "ssdlite",
    "bpn320_vgg16": "ssd-paper",
    "bpn512_vgg16": "ssd-paper",
    "refinedet320_vgg16": "ssd-paper",
    "refinedet512_vgg16": "ssd-paper",
}
"""The recipe of each network that has one of its own; others use the defaults of `TrainConfig`."""


def _folder() -> Path:
    return Path(str(files("multibox") / "recipes"))


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def recipe_for(model: str, recipe: str | None = None) -> TrainConfig:
    """The configuration that a recipe gives, before any other option.

    Args:
        model: a shipped model, a `.safetensors` file or a builder; it decides where `recipe` is left out.
        recipe: a shipped recipe's name or the path of a TOML file.

    Raises:
        OptionError: no such recipe.
    """
    if recipe is None:
        recipe = DEFAULTS.get(_builder(model), "")
        if not recipe:
            return TrainConfig()
    if recipe in list_recipes():
        return from_toml(_folder() / f"{recipe}.toml")
    if not recipe.endswith(".toml"):
        raise OptionError(f"unknown recipe {recipe!r}; {did_you_mean(recipe, list_recipes())}, or name a .toml file")
    if not Path(recipe).is_file():
        raise OptionError(f"recipe {recipe}: no such file")
    return from_toml(Path(recipe))


def _builder(model: str) -> str:
    try:
        return read_safetensors_card(resolve_model(model, suffixes=(".safetensors",))).builder
    except ModelFileError:
        if model in CATALOGUE or Path(model).suffix:
            raise
        return model  # a builder's name, or nothing; which of them is found out when it is built
