"""Pictures of the results: curves, confusion, calibration and errors, as matplotlib figures for PNG files.

Figures carry their own Agg canvas: neither the user's backend nor pyplot's list of figures is touched. Colours are
those of Okabe and Ito (2008), and shades of one hue; both can be told apart with any colour vision.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MissingDependencyError
from multibox.evaluation.calibration import Calibration
from multibox.evaluation.confusion import ConfusionMatrix
from multibox.evaluation.curves import Curve, Curves
from multibox.evaluation.errors import ErrorSplit
from multibox.evaluation.tables import number
from multibox.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

__all__ = ["plot_calibration", "plot_confusion", "plot_errors", "plot_f1", "plot_precision_recall", "save_png"]

_BLACK, _ORANGE, _SKY, _GREEN, _BLUE, _RED = "#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00"
_CYCLE = (_ORANGE, _SKY, _GREEN, _BLUE, _RED, "#cc79a7", "#f0e442")
_DASHES = ("-", "--", ":")
_GREY = "#8c8c8c"

_NAMED_CURVES = 10
"""With more classes, all are drawn thin and grey, and only the best and worst few are named."""

_EXTREMES = 3
_NUMBERED_CELLS = 25
"""With more classes, the cells of the confusion matrix show colours without numbers."""

_DARK = 0.35
"""Part of a row from which its cell is too dark for black numbers."""

_DPI = 150


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG file."""
    with atomic_path(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)


def plot_precision_recall(curves: Curves, *, title: str = "") -> Figure:
    """Interpolated precision against recall, by class and on average over classes."""
    figure, axes = _figure(title or "Precision and recall", curves.protocol)
    levels = np.linspace(0, 1, 101)
    known = [curve for curve in curves.per_class if curve.truths]
    lines = [curve.precision_at(levels) for curve in known]
    scores = [curve.average_precision or 0.0 for curve in known]
    _draw_classes(axes, levels, lines, [f"{c.name}  {s:.3f}" for c, s in zip(known, scores, strict=True)], scores)
    if len(known) > 1:
        label = f"mean of {len(known)} classes  {number(curves.pooled.average_precision, 3)}"
        axes.plot(levels, np.mean(lines, axis=0), color=_BLACK, linewidth=2.5, label=label)
    _square(axes, "recall (part of all objects, 0 … 1)", "precision (part of all detections, 0 … 1)")
    _legend(axes, "class  AP")
    return figure


def plot_f1(curves: Curves, *, title: str = "") -> Figure:
    """F1 against the confidence threshold, by class and for all detections together, with the best threshold."""
    figure, axes = _figure(title or "F1 and confidence", curves.protocol)
    levels = np.linspace(0, 1, 501)
    known = [curve for curve in curves.per_class if curve.truths]
    best = [_best_f1(curve) for curve in known]
    labels = [
        f"{c.name}  {f1:.3f} at {at:.3f}" if f1 else f"{c.name}  0" for c, (f1, at) in zip(known, best, strict=True)
    ]
    _draw_classes(axes, levels, [curve.f1_at(levels) for curve in known], labels, [f1 for f1, _ in best])
    f1, at = _best_f1(curves.pooled)
    if f1 and len(known) > 1:
        label = f"all classes  {f1:.3f} at {at:.3f}"
        axes.plot(levels, curves.pooled.f1_at(levels), color=_BLACK, linewidth=2.5, label=label)
    if f1:
        axes.plot([at], [f1], marker="o", markersize=8, color=_BLACK, markerfacecolor="white", markeredgewidth=2)
    _square(axes, "confidence threshold (score, 0 … 1)", "F1 (0 … 1)")
    _legend(axes, "class  best F1 at confidence")
    return figure


def plot_confusion(matrix: ConfusionMatrix, *, title: str = "") -> Figure:
    """The confusion matrix; colours are parts of each row (of the true objects of a class), numbers are counts."""
    names, count = matrix.names, len(matrix.names)
    side = float(np.clip(3.6 + 0.42 * count, 5.5, 17))
    figure, axes = _figure(title or "Confusion matrix", matrix.protocol, size_wh=(side + 1.2, side))
    totals = matrix.counts.sum(axis=1, keepdims=True)
    parts = np.where(totals > 0, matrix.counts / np.maximum(totals, 1), np.nan)
    image = axes.imshow(np.ma.masked_invalid(parts), cmap="Blues", norm=_shades())
    axes.set_facecolor("#d9d9d9")  # rows of classes that do not occur
    size = 9 if count <= _NUMBERED_CELLS else 6.5
    axes.set_xticks(range(count), [_short(name) for name in names], rotation=90, fontsize=size)
    axes.set_yticks(range(count), [_short(name) for name in names], fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= _NUMBERED_CELLS + 1:
        for i, j in np.argwhere(matrix.counts > 0).tolist():
            ink = "white" if parts[i, j] > _DARK else "black"
            axes.text(j, i, str(matrix.counts[i, j]), ha="center", va="center", color=ink, fontsize=size - 1)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, label="part of the row (0 … 1); grey: no such objects")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.set_ticklabels(["0", "0.01", "0.05", "0.1", "0.25", "0.5", "0.75", "1"])
    return figure


def plot_calibration(result: Calibration, *, title: str = "") -> Figure:
    """Reliability diagram: precision against confidence in bins of equal width, above their counts."""
    figure, axes, below = _two_panels(title or "Calibration", result.protocol)
    filled = [row for row in result.bins if row.count]
    if not filled:
        below.remove()
        axes.text(0.5, 0.5, "no detections", ha="center", va="center", color=_GREY)
        _square(axes, "confidence (score, 0 … 1)", "precision (part that is right, 0 … 1)")
        return figure
    left, width = [row.low for row in filled], [row.high - row.low for row in filled]
    precision, confidence = [row.precision or 0.0 for row in filled], [row.confidence or 0.0 for row in filled]
    axes.bar(left, precision, width, align="edge", color=_SKY, edgecolor="white", label="precision of the bin")
    axes.vlines(confidence, precision, confidence, color=_RED, linewidth=2.5, label="gap to its mean confidence")
    axes.plot([0, 1], [0, 1], color=_BLACK, linestyle="--", linewidth=1, label="perfect calibration")
    _square(axes, "", "precision (part that is right, 0 … 1)")
    axes.tick_params(labelbottom=False)
    error = result.overall
    axes.legend(
        loc="upper left",
        alignment="left",
        title=f"ECE {number(error.ece, 3)}, equal mass {number(error.ece_equal_mass, 3)}",
    )
    below.bar(left, [row.count for row in filled], width, align="edge", color=_GREY, edgecolor="white")
    below.set_yscale("log")
    below.set_ylim(0.7, 2 * max(row.count for row in filled))
    below.set_xlim(0, 1)
    _plain(below)
    below.set_xlabel("confidence (score, 0 … 1)")
    below.set_ylabel("detections")
    return figure


def plot_errors(split: ErrorSplit, *, title: str = "") -> Figure:
    """How much AP each kind of error costs, and how often it occurs."""
    figure, axes = _figure(title or f"Errors, AP {number(split.ap, 3)}", split.protocol, size_wh=(8, 4.6))
    rows: list[tuple[str, float | None, str, str]]
    rows = [(error.kind, error.ap_gain, f"{error.count}×", _BLUE) for error in split.errors]
    rows.append(("all false positives", split.false_positive_gain, "", _GREY))
    rows.append(("all false negatives", split.false_negative_gain, "", _GREY))
    gains = [0.0 if gain is None else gain for _, gain, _, _ in rows]
    places = range(len(rows))
    axes.barh(places, gains, color=[colour for *_, colour in rows])
    reach = max(max(gains), 0.01)
    for place, (gain, (_, value, count, _)) in enumerate(zip(gains, rows, strict=True)):
        text = f"{number(value, 3)}   {count}".rstrip()
        axes.text(max(gain, 0) + 0.01 * reach, place, text, va="center", fontsize=9)
    axes.axhline(len(split.errors) - 0.5, color=_GREY, linewidth=0.8)
    axes.set_yticks(places, [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *gains) * 1.05, reach * 1.25)
    axes.set_xlabel("AP gained if repaired (0 … 1; gains do not add up), and number of errors")
    _plain(axes)
    return figure


def _figure(title: str, protocol: str, *, size_wh: tuple[float, float] = (9.0, 6.0)) -> tuple[Figure, Axes]:
    figure = _empty_figure(title, protocol, size_wh)
    return figure, figure.add_subplot()


def _two_panels(title: str, protocol: str) -> tuple[Figure, Axes, Axes]:
    figure = _empty_figure(title, protocol, (6.5, 7.5))
    grid = figure.add_gridspec(2, 1, height_ratios=(4, 1))
    return figure, figure.add_subplot(grid[0]), figure.add_subplot(grid[1])


def _empty_figure(title: str, protocol: str, size_wh: tuple[float, float]) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "drawing plots", "plots") from None
    figure = Figure(figsize=size_wh, layout="constrained")
    FigureCanvasAgg(figure)
    # Class names and titles are text, not formulas: a dollar sign must not start one.
    large = max(11, round(size_wh[0]))
    figure.suptitle(f"{title}\n{protocol}", fontsize=large, parse_math=False)
    return figure


def _shades() -> PowerNorm:
    """Square roots, so that one confusion in a hundred is not as white as none."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def _draw_classes(
    axes: Axes,
    levels: NDArray[np.float64],
    lines: Sequence[NDArray[np.float64]],
    labels: Sequence[str],
    worth: Sequence[float],
) -> None:
    """A line per class; of many only the best and worst are coloured and named."""
    named = list(range(len(lines)))
    if len(lines) > _NAMED_CURVES:
        order = np.argsort([-value for value in worth], kind="stable").tolist()
        named = order[:_EXTREMES] + order[-_EXTREMES:]
        for i in set(order) - set(named):
            axes.plot(levels, lines[i], color=_GREY, linewidth=0.6, alpha=0.5)
    for place, i in enumerate(named):
        style = _DASHES[place // len(_CYCLE) % len(_DASHES)]
        axes.plot(levels, lines[i], color=_CYCLE[place % len(_CYCLE)], linestyle=style, linewidth=1.6, label=labels[i])
    if len(lines) > _NAMED_CURVES:
        rest = len(lines) - len(named)
        axes.plot([], [], color=_GREY, linewidth=0.8, label=f"{rest} classes in between")


def _best_f1(curve: Curve) -> tuple[float, float]:
    best = curve.best
    return (0.0, 0.0) if best is None else (best.f1, best.confidence)


def _square(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, title: str) -> None:
    """Beside the axes, where it covers no curve."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        axes.text(0.5, 0.5, "no objects", ha="center", va="center", color=_GREY)
        return
    legend = axes.legend(
        handles,
        [_short(label, 40) for label in labels],
        title=title,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
    )
    legend.get_frame().set_linewidth(0)


def _short(text: str, limit: int = 24) -> str:
    """Text that fits, with dollar signs that stay dollar signs."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.replace("$", r"\$")
