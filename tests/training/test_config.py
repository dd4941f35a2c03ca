"""Options: every one can be written, read back, and refused with a message that helps."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.errors import ModelFileError, OptionError
from multibox.training.config import TrainConfig, all_options, from_toml, merge, to_toml
from multibox.training.option_types import Option
from multibox.training.recipes import DEFAULTS, list_recipes, recipe_for

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
RANGES = {
    "lr0": (1e-300, 100.0),
    "cache_gb": (0.0, 1e300),
    "negative_ratio": (0.0, 1e300),
    "box_weight": (0.0, 1e300),
    "clip_norm": (0.0, 1e300),
    "save_every": (0.0, 1e300),
    "zoom_out_max": (1.0, 16.0),
    "crop_min_scale": (0.01, 1.0),
    "momentum": (0.0, 0.9999),
    "val_fraction": (0.0, 0.9),
    "ema": (0.0, 0.999999),
    "warmup": (0.0, 0.99),
}
WHOLE = {
    "crop_trials": (1, 1000),
    "epochs": (1, 10**6),
    "batch": (1, 10**6),
    "val_every": (1, 10**6),
    "accumulate": (1, 10**4),
    "workers": (0, 256),
}
SPELLED = {
    "imgsz": st.one_of(
        st.just(""), st.integers(1, 4096).map(str), st.tuples(*[st.integers(1, 4096)] * 2).map("{0[0]}x{0[1]}".format)
    ),
    "arguments": st.sampled_from(["", '{"scales": "coco"}', '{"trunk_norm": false}']),
    "steps": st.lists(st.floats(0.001, 0.999), unique=True).map(sorted).map(tuple),
    "match_iou": st.lists(st.floats(0.05, 0.95)).map(tuple),
    "known_epochs": st.none() | st.integers(1, 10**4),
    "known_lr0": st.none() | st.floats(1e-300, 100),
    "patience": st.just(0),  # contradicts val_split=none
}


def values_of(option: Option) -> st.SearchStrategy[Any]:
    if option.name in SPELLED:
        return SPELLED[option.name]
    if option.choices:
        return st.sampled_from([value for value in option.choices if value != "fp16"])
    of_kind: dict[type, Any] = {
        str: lambda: TEXTS,
        bool: st.booleans,
        int: lambda: st.integers(*WHOLE.get(option.name, (0, 10**4))),
        float: lambda: st.floats(*RANGES.get(option.name, (0.0, 1.0))),
        tuple: lambda: st.lists(st.floats(0, 1)).map(tuple),
    }
    values = of_kind[option.kind]()
    return st.one_of(st.none(), values) if option.optional else values


configs = st.fixed_dictionaries({name: values_of(option) for name, (_, option) in all_options().items()}).map(
    lambda values: TrainConfig(
        **{
            section.name: section.default_factory(
                **{name: values[name] for name, (owner, _) in all_options().items() if owner == section.name}
            )
            for section in dataclasses.fields(TrainConfig)
        }
    )
)


@given(configs)
@settings(max_examples=60)
def test_every_option_survives_a_file(tmp_path_factory: pytest.TempPathFactory, wanted: TrainConfig) -> None:
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(wanted), encoding="utf-8")
    assert from_toml(path) == wanted


@given(configs)
@settings(max_examples=60)
def test_every_option_survives_the_command_line(wanted: TrainConfig) -> None:
    words = {}
    for name, (section, _) in all_options().items():
        value = getattr(getattr(wanted, section), name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
        words[name.replace("_", "-")] = text
    assert merge(TrainConfig(), words) == wanted


def test_options_without_tables_and_parts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("epochs = 7\nimgsz = 320\n[optim]\nlr0 = 1\n[augment]\ncrop_overlaps = [0.5]\n")
    base = merge(TrainConfig(), {"batch": 5})
    found = from_toml(path, base=base)
    assert (found.optim.epochs, found.optim.lr0, found.optim.batch) == (7, 1.0, 5)
    assert found.model.imgsz == "320"
    assert found.augment.crop_overlaps == (0.5,)
    assert isinstance(found.optim.lr0, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = ", "cannot be read as TOML"),
        ("\x80", "cannot be read as TOML"),
        ("[optimm]\nepochs = 3", r"unknown table \[optimm\]; did you mean 'optim'\?"),
        ("[optim]\nepoch = 3", "unknown option 'epoch'; did you mean 'epochs'"),
        ("epoch = 3", "unknown option 'epoch'; did you mean 'epochs'"),
        ("[run]\nepochs = 3", r"epochs belongs into \[optim\], not \[run\]"),
        ("[data]\nbox-weight = 3", r"box-weight belongs into \[loss\], not \[data\]"),
        ('"loss.epochs" = 3', "unknown option 'loss.epochs'; did you mean 'optim.epochs'"),
        ("[optim]\nepochs = 0", "epochs must be from 1 to"),
        ("[optim]\nepochs = 2.5", "epochs=2.5: expected a whole number"),
        ("[optim]\nepochs = true", "epochs=True: expected a whole number"),
        ("[optim]\nepochs = '3 or so'", "epochs='3 or so': expected a whole number"),
        ("[optim]\nepochs = inf", "epochs=inf: expected a whole number"),
        ("[optim]\nlr0 = nan", "lr0 must be above 0, up to 100, got nan"),
        ("[optim]\nlr0 = 0", "lr0 must be above 0"),
        ("[optim]\nlr0 = [1]", r"lr0=\[1\]: expected a number"),
        ("[optim]\nlr0 = 2024-01-01", "lr0=.*: expected a number"),
        ("[optim.lr0]\na = 1", "lr0=.*: expected a number"),
        ("[run]\nplots = 2", "plots=2: expected true or false"),
        ("[run]\nplots = 'perhaps'", "plots='perhaps': expected true or false"),
        ("[run]\nname = true", "name=True: expected a text"),
        ("[run]\nname = 0.5", "name=0.5: expected a text"),
        ("[run]\nname = ['a']", r"name=\['a'\]: expected a text"),
        ("[augment]\ncrop_overlaps = ['a']", "crop_overlaps=.*: expected numbers with commas"),
        ("[augment.crop_overlaps]", "crop_overlaps=.*: expected numbers with commas"),
        ("[augment]\nflip = 1.5", "flip must be from 0 to 1"),
        ("[model]\nnms_iou = 2", "nms_iou must be from 0 to 1"),
        ("[loss]\nclass_loss = 'focl'", "class_loss='focl': did you mean 'focal'"),
        ("[model]\nimgsz = '320x'", "imgsz='320x': write one side"),
        ("[model]\nimgsz = 9999", "imgsz='9999': write one side"),
        ("[optim]\nsteps = '0.9,0.5'", r"steps=0\.9,0\.5: write rising parts"),
        ("patience = 3\nval_split = 'none'", "patience needs a validation"),
        ("epochs = 2\nwarmup = 2", "warmup=2 epochs of 2; make it shorter"),
    ],
)
def test_a_bad_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("latin-1", errors="ignore") if text == "\x80" else text.encode())
    with pytest.raises(OptionError, match=message) as caught:
        from_toml(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read as TOML"):
        from_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 3}, "unknown option 'lr'; did you mean 'lr0'"),
        ({"nonsense": 3}, "unknown option 'nonsense'; known: "),
        ({"epochs": None}, "epochs=None: expected a whole number"),
        ({"epochs": "1e400"}, "epochs='1e400': expected a whole number"),
        ({"workers": -1}, "workers must be from 0 to 256, got -1"),
        ({"cache": "disc"}, "cache='disc': did you mean 'disk'"),
        ({"cache_gb": "inf"}, "cache_gb must be 0 or more, got inf"),
        ({"freeze": -1}, "freeze must be 0 or more"),
        ({"schedule": ""}, "schedule='': known: "),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        merge(TrainConfig(), options)


def test_options_may_name_their_section() -> None:
    assert merge(TrainConfig(), {"optim.epochs": "4", "loss.box-weight": 2}).optim.epochs == 4
    with pytest.raises(OptionError, match=r"unknown option 'data\.epochs'"):
        merge(TrainConfig(), {"data.epochs": 4})


def test_an_empty_value_is_none_or_nothing() -> None:
    base = merge(TrainConfig(), {"nms_iou": 0.4, "crop_overlaps": "0.1, 0.5"})
    assert base.augment.crop_overlaps == (0.1, 0.5)
    found = merge(base, {"nms_iou": "", "crop_overlaps": ""})
    assert found.model.nms_iou is None
    assert found.augment.crop_overlaps == ()


def test_every_option_is_explained() -> None:
    for name, (_, option) in all_options().items():
        assert option.help, name
        assert "  " not in option.help
    for section in dataclasses.fields(TrainConfig):
        owner: Any = section.default_factory
        explained = re.findall(r"^ +(\w+): ", owner.__doc__.partition("Raises:")[0], re.MULTILINE)
        assert explained == [item.name for item in dataclasses.fields(owner)]


def test_sizes() -> None:
    sizes = {
        text: merge(TrainConfig(), {"imgsz": text}).model.size_hw() for text in ("", "320", "256x512", "256 × 512")
    }
    assert sizes == {"": None, "320": (320, 320), "256x512": (256, 512), "256 × 512": (256, 512)}


# ------------------------------------------------------------------------------------------------ recipes


def test_every_shipped_recipe_can_be_used() -> None:
    assert set(DEFAULTS.values()) <= set(list_recipes())
    for name in list_recipes():
        assert isinstance(recipe_for("tinyssd256", name), TrainConfig)


def test_the_model_chooses_the_recipe() -> None:
    for builder, name in DEFAULTS.items():
        assert recipe_for(builder) == recipe_for("whatever", name)
    assert recipe_for("ssdlite300-coco") == recipe_for("whatever", "ssdlite")
    assert recipe_for("a_builder_of_ones_own") == TrainConfig()


def test_recipes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"unknown recipe 'ssd_paper'; did you mean 'ssd-paper'\?, or name a \.toml"):
        recipe_for("tinyssd256", "ssd_paper")
    with pytest.raises(OptionError, match=r"absent\.toml: no such file"):
        recipe_for("tinyssd256", str(tmp_path / "absent.toml"))
    with pytest.raises(ModelFileError, match="no such model file"):
        recipe_for(str(tmp_path / "absent.safetensors"))
    (tmp_path / "model.pth").touch()
    with pytest.raises(ModelFileError, match="pickled"):
        recipe_for(str(tmp_path / "model.pth"))


def test_a_warm_up_nobody_asked_for_fits_into_fewer_epochs() -> None:
    recipe = recipe_for("ssdlite300-coco")
    assert merge(recipe, {"epochs": 1}).optim.warmup == pytest.approx(recipe.optim.warmup / recipe.optim.epochs)
    with pytest.raises(OptionError, match="make it shorter"):
        merge(recipe, {"epochs": 1, "warmup": 1})
