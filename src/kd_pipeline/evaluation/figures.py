"""Figures of a comparison, built without pyplot and so without global state.

`predictions` has one row per role, replicate and test example; `comparison` is as in
comparison.json; the position of a class name is its label.
"""

import itertools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.roles import BASELINE, TEACHER, colours, label

STYLE: dict[str, Any] = {"dpi": 120, "layout": "constrained"}
"""Arguments of every figure."""

_MAX_CLASSES_DRAWN = 30
_MAX_CLASSES_NAMED = 20
_MAX_CLASSES_WITH_NUMBERS = 12
_NUM_BINS = 10
_MIN_EXAMPLES_IN_BIN = 10


def accuracy_figure(comparison: Mapping[str, Any]) -> Figure:
    """Every replicate's accuracy per arm, and beside it the gain with its interval."""
    arms = list(comparison["arms"])
    shades = colours(arms)
    figure = Figure((10.0, 1.6 + 0.55 * len(arms)), **STYLE)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for row, arm in enumerate(arms):
        _draw_replicates(left, row, comparison["arms"][arm]["accuracy"], shades[arm])
        if arm in comparison["gains"]:
            _draw_gain(right, row, comparison["gains"][arm]["accuracy"], shades[arm])
    if comparison["teacher"] is not None:
        accuracy, top = 100 * comparison["teacher"]["accuracy"]["mean"], ("data", "axes fraction")
        left.axvline(accuracy, color="black", linestyle="--", linewidth=1)
        _write(left, f"teacher {accuracy:.2f}", (accuracy, 1), 3, xycoords=top)
    left.set_yticks(range(len(arms)), [label(arm) for arm in arms])
    left.set_ylim(len(arms) - 0.4, -0.6)
    left.set_xlabel("test accuracy, %\n(dots: replicates, line: their mean)")
    right.axvline(0, color="#7F7F7F", linewidth=1)
    interval = f"{numbers.level(comparison['method'])} interval"
    right.set_xlabel(f"gain over hard labels, points\n({interval})")
    for axes in (left, right):
        tidy(axes, grid="x")
    return figure


def reliability_figure(predictions: pd.DataFrame) -> Figure:
    """Accuracy against confidence, and the share of examples per confidence, replicates pooled."""
    roles = list(predictions["role"].unique())
    shades = colours(roles)
    figure = Figure((6.4, 7.2), **STYLE)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#B0B0B0", linestyle="--", linewidth=1)
    upper.annotate("perfectly calibrated", (0.17, 0.17), rotation=45, rotation_mode="anchor",
                   transform_rotates_text=True, xytext=(-4, 4), textcoords="offset points",
                   ha="center", fontsize=8, color="#7F7F7F")  # fmt: skip
    for role in roles:
        rows = predictions[predictions["role"] == role]
        bins = _reliability_bins(rows)
        drawn = bins[bins["count"] >= min(_MIN_EXAMPLES_IN_BIN, len(rows) // _NUM_BINS)]
        style = {"color": shades[role], "linestyle": "--" if role == TEACHER else "-",
                 "linewidth": 1.6, "marker": "o", "markersize": 4, "alpha": 0.9}  # fmt: skip
        upper.plot(drawn["confidence"], drawn["accuracy"], label=label(role), **style)
        lower.plot(bins["centre"], 100 * bins["count"] / len(rows), **style)
    upper.set_ylabel(f"share that is right (bins of {_MIN_EXAMPLES_IN_BIN} or more examples)")
    upper.set_ylim(-0.02, 1.02)
    upper.legend(frameon=False, fontsize=9, loc="upper left")
    lower.set_ylabel("share of examples, %")
    lower.set_xlabel("confidence in the predicted class")
    lower.set_xlim(0, 1.02)
    for axes in (upper, lower):
        tidy(axes, grid="both")
    return figure


def confusion_figure(predictions: pd.DataFrame, class_names: tuple[str, ...]) -> Figure:
    """One matrix per role, replicates pooled: of each true class, the share predicted as each."""
    roles = list(predictions["role"].unique())
    num_columns = min(3, len(roles))
    num_rows = -(-len(roles) // num_columns)
    figure = Figure((4.1 * num_columns + 0.7, 4.2 * num_rows), **STYLE)
    grid = np.asarray(figure.subplots(num_rows, num_columns, squeeze=False)).ravel()
    for axes in grid[len(roles) :]:
        axes.remove()
    panels = list(grid[: len(roles)])
    for axes, role in zip(panels, roles, strict=True):
        shares = _confusion(predictions[predictions["role"] == role], len(class_names))
        # The root makes a few per cent of confusion visible beside a strong diagonal.
        image = axes.imshow(np.sqrt(shares / 100), cmap="Blues", vmin=0, vmax=1)
        axes.set_title(label(role), fontsize=10)
        _name_classes(axes, class_names)
        if len(class_names) <= _MAX_CLASSES_WITH_NUMBERS:
            _write_shares(axes, shares)
    figure.supxlabel("predicted class", fontsize=10)
    figure.supylabel("true class", fontsize=10)
    ticks = np.array([0, 1, 5, 20, 50, 100])
    bar = figure.colorbar(image, ax=panels, ticks=np.sqrt(ticks / 100), shrink=0.7, pad=0.02)
    bar.set_ticklabels([f"{tick} %" for tick in ticks])
    bar.set_label("of the true class")
    return figure


def class_gain_figure(
    predictions: pd.DataFrame, comparison: Mapping[str, Any], class_names: tuple[str, ...]
) -> Figure:
    """Recall of each compared arm minus that of hard labels, sorted by the distilled arm's gain.

    Replicates are pooled. Of more than 30 classes the first 15 and the last 15 are drawn.
    """
    arms = list(comparison["gains"])
    right = (predictions["predicted"] == predictions["label"]).astype(float)
    recall = right.groupby([predictions["label"], predictions["role"]]).mean().unstack("role")
    gains = recall[arms].sub(recall[BASELINE], axis=0)
    figure = Figure((7.5, 1.8 + 0.28 * min(len(gains), _MAX_CLASSES_DRAWN)), **STYLE)
    axes = figure.subplots()
    axes.axvline(0, color=colours([BASELINE])[BASELINE], linewidth=1)
    axes.set_xlabel("recall minus that of hard labels, points")
    tidy(axes, grid="both")
    if not arms:
        return figure
    drawn, note = gains.sort_values(comparison["distilled"] or arms[0], ascending=False), ""
    if len(gains) > _MAX_CLASSES_DRAWN:
        half = _MAX_CLASSES_DRAWN // 2
        drawn = pd.concat([drawn.head(half), drawn.tail(half)])
        note = f": the {half} largest and the {half} smallest of {len(gains)}"
    shades = colours(list(comparison["arms"]))
    # Side by side: arms often gain exactly the same.
    heights = np.linspace(-0.22, 0.22, len(arms)) if len(arms) > 1 else np.zeros(1)
    for arm, marker, height in zip(arms, itertools.cycle("Dos^vP"), heights, strict=False):
        axes.plot(100 * drawn[arm], np.arange(len(drawn)) + height, marker, color=shades[arm],
                  label=label(arm), markersize=7, alpha=0.85)  # fmt: skip
    axes.set_yticks(range(len(drawn)), [shorten(class_names[index]) for index in drawn.index])
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_title(f"Gain per class{note}", fontsize=10, loc="left")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False, fontsize=9)  # fmt: skip
    return figure


def _draw_replicates(axes: Axes, row: int, spread: Mapping[str, Any], colour: str) -> None:
    values = 100 * np.array(spread["values"], dtype=float)
    offsets = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
    mean = 100 * spread["mean"]
    axes.plot([mean, mean], [row - 0.28, row + 0.28], color=colour, linewidth=2.5)
    axes.plot(values, row + offsets, "o", color=colour, alpha=0.6, markersize=7, markeredgewidth=0)
    _write(axes, f"{mean:.2f}", (mean, row - 0.28), 3)


def _draw_gain(axes: Axes, row: int, difference: Mapping[str, Any], colour: str) -> None:
    low, high = (100 * bound for bound in difference["ci95"])
    mean = 100 * difference["mean"]
    axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot([mean], [row], "D", color=colour, markersize=9, markeredgecolor="white")
    _write(axes, numbers.points(difference), (mean, row), 9)


def _write(axes: Axes, text: str, at: tuple[float, float], above: int, **options: Any) -> None:
    """Write a text so many points above a place in the axes."""
    axes.annotate(text, at, xytext=(0, above), textcoords="offset points", ha="center",
                  fontsize=9, **options)  # fmt: skip


def _reliability_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean confidence, accuracy and count per bin of equal width; empty bins are left out."""
    index = np.minimum((rows["confidence"] * _NUM_BINS).astype(int), _NUM_BINS - 1)
    right = (rows["predicted"] == rows["label"]).astype(float)
    table = rows[["confidence"]].assign(accuracy=right).groupby(index)
    bins = table.mean().assign(count=table.size())
    return bins.assign(centre=(bins.index.to_numpy() + 0.5) / _NUM_BINS)


def _confusion(rows: pd.DataFrame, num_classes: int) -> NDArray[np.float64]:
    cells = rows["label"].to_numpy() * num_classes + rows["predicted"].to_numpy()
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(100.0 * counts / np.maximum(totals, 1))


def _name_classes(axes: Axes, class_names: tuple[str, ...]) -> None:
    step = -(-len(class_names) // _MAX_CLASSES_NAMED)
    places = range(0, len(class_names), step)
    names = [shorten(class_names[place], 12) for place in places]
    long = max(map(len, names)) > 2
    axes.set_xticks(places, names, fontsize=7, rotation=90 if long else 0)
    axes.set_yticks(places, names, fontsize=7)
    axes.tick_params(length=0)


def _write_shares(axes: Axes, shares: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6.5,
                      color="white" if share > 25 else "#303030")  # fmt: skip


def shorten(name: str, longest: int = 24) -> str:
    """A name of at most so many characters."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def tidy(axes: Axes, *, grid: Literal["x", "y", "both"]) -> None:
    """Draw a light grid behind the data, and no frame at the top and on the right."""
    axes.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
