from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest
from evaluation_worlds import CLASSES, found, one_picture, random_set, truth
from PIL import Image

from multibox.errors import MissingDependencyError
from multibox.evaluation import (
    EvaluationSet,
    calibration,
    confusion_matrix,
    error_split,
    plot_calibration,
    plot_confusion,
    plot_errors,
    plot_f1,
    plot_precision_recall,
    precision_recall,
    save_png,
)
from multibox.spec.classes import ClassMap

DRAW = {
    "precision_recall": lambda data: plot_precision_recall(precision_recall(data)),
    "f1": lambda data: plot_f1(precision_recall(data)),
    "confusion": lambda data: plot_confusion(confusion_matrix(data)),
    "calibration": lambda data: plot_calibration(calibration(data)),
    "errors": lambda data: plot_errors(error_split(data)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("classes", [1, 3, 80])
def test_plots_are_legible_pictures_for_any_number_of_classes(name, classes, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    data = random_set(1, classes=classes, pictures=10, objects=10)
    save_png(DRAW[name](data), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert min(picture.size) >= 600
        assert max(picture.size) <= 3000
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize(
    "data", [EvaluationSet(CLASSES, [], []), one_picture(truth([(0, 0, 9, 9)], [0]), found())], ids=["none", "missed"]
)
def test_plots_of_nothing_are_drawn_too(name, data, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    save_png(DRAW[name](data), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("name", DRAW)
def test_title_says_the_protocol_and_axes_have_units(name) -> None:
    pytest.importorskip("matplotlib")
    figure = DRAW[name](random_set(1))
    assert "IoU 0.5" in figure.get_suptitle()
    axes = figure.axes[0]
    below = figure.axes[1] if name == "calibration" else axes
    if name != "confusion":
        assert "0 … 1" in below.get_xlabel()
    assert axes.get_ylabel() or name == "errors"


@pytest.mark.slow
def test_names_with_dollar_signs_and_long_names_are_drawn_as_they_are(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    classes = ClassMap(("$1 note$", "x" * 200, "na_me^"))
    data = one_picture(
        truth([(0, 0, 50, 50)], [0], classes=classes), found([(0, 0, 50, 50)], [1], [0.9], classes=classes)
    )
    for draw in DRAW.values():
        save_png(draw(data), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert max(picture.size) <= 3000


def test_pyplot_is_left_alone() -> None:
    pytest.importorskip("matplotlib")
    loaded = "matplotlib.pyplot" in sys.modules
    DRAW["errors"](random_set(1))
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_missing_matplotlib_is_said(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"multibox\[plots\]"):
        DRAW["errors"](random_set(1))
