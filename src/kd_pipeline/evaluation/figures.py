"""Figures of a comparison. They are built without pyplot, so that no global state is touched."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.roles import colours, label

_DPI = 120
_TEACHER = "teacher"
_BASELINE = "student_baseline"
_DISTILLED = ("student_kd", "student_live")
_MAX_CLASSES_DRAWN = 30
_MAX_CLASSES_NAMED = 20
_MAX_CLASSES_WITH_NUMBERS = 12
_NUM_BINS = 10
_MIN_EXAMPLES_IN_BIN = 10


def accuracy_figure(comparison: Mapping[str, Any]) -> Figure:
    """Every replicate's accuracy per arm, and beside it the gain with its interval.

    Args:
        comparison: As comparison.json holds it.
    """
    arms = list(comparison["arms"])
    shades = colours(arms)
    figure = _figure(10.0, 1.6 + 0.55 * len(arms))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for row, arm in enumerate(arms):
        _draw_replicates(left, row, comparison["arms"][arm]["accuracy"], shades[arm])
        if arm in comparison["gains"]:
            _draw_gain(right, row, comparison["gains"][arm]["accuracy"], shades[arm])
    if comparison["teacher"] is not None:
        _draw_teacher(left, 100 * comparison["teacher"]["accuracy"]["mean"])
    left.set_yticks(range(len(arms)), [label(arm) for arm in arms])
    left.set_ylim(len(arms) - 0.4, -0.6)
    left.set_xlabel("test accuracy, %\n(dots: replicates, line: their mean)")
    right.axvline(0, color="#7F7F7F", linewidth=1)
    right.set_xlabel(f"gain over hard labels, points\n({_level(comparison)} interval)")
    for axes in (left, right):
        _tidy(axes, grid="x")
    return figure


def _draw_teacher(axes: Axes, accuracy: float) -> None:
    axes.axvline(accuracy, color="black", linestyle="--", linewidth=1)
    axes.annotate(f"teacher {accuracy:.2f}", (accuracy, 1), xycoords=("data", "axes fraction"),
                  xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)  # fmt: skip


def reliability_figure(predictions: pd.DataFrame) -> Figure:
    """Accuracy against confidence, and how often each confidence occurs, replicates pooled.

    Args:
        predictions: One row per role, replicate and example.
    """
    roles = list(predictions["role"].unique())
    shades = colours(roles)
    figure = _figure(6.4, 7.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#B0B0B0", linestyle="--", linewidth=1)
    upper.annotate("perfectly calibrated", (0.17, 0.17), rotation=45, rotation_mode="anchor",
                   transform_rotates_text=True, xytext=(-4, 4), textcoords="offset points",
                   ha="center", fontsize=8, color="#7F7F7F")  # fmt: skip
    for role in roles:
        rows = predictions[predictions["role"] == role]
        bins = _reliability_bins(rows)
        drawn = bins[bins["count"] >= min(_MIN_EXAMPLES_IN_BIN, len(rows) // _NUM_BINS)]
        style = _line_style(role, shades[role])
        upper.plot(drawn["confidence"], drawn["accuracy"], marker="o", label=label(role), **style)
        lower.plot(bins["centre"], 100 * bins["count"] / len(rows), marker="o", **style)
    upper.set_ylabel(f"share that is right (bins of {_MIN_EXAMPLES_IN_BIN} or more examples)")
    upper.set_ylim(-0.02, 1.02)
    upper.legend(frameon=False, fontsize=9, loc="upper left")
    lower.set_ylabel("share of examples, %")
    lower.set_xlabel("confidence in the predicted class")
    lower.set_xlim(0, 1.02)
    for axes in (upper, lower):
        _tidy(axes, grid="both")
    return figure


def confusion_figure(predictions: pd.DataFrame, class_names: tuple[str, ...]) -> Figure:
    """One matrix per role: of each true class, the share predicted as each class, in percent.

    Args:
        predictions: One row per role, replicate and example; replicates are pooled.
        class_names: Index = label.
    """
    roles = list(predictions["role"].unique())
    num_columns = min(3, len(roles))
    num_rows = -(-len(roles) // num_columns)
    figure = _figure(4.1 * num_columns + 0.7, 4.2 * num_rows)
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


def class_gain_figure(predictions: pd.DataFrame, class_names: tuple[str, ...]) -> Figure:
    """Recall of each arm minus that of hard labels, class by class, sorted by the distilled arm.

    Args:
        predictions: One row per role, replicate and example; replicates are pooled.
        class_names: Index = label. Of more than 30 classes the ends of the order are drawn.
    """
    recall = _recall(predictions)
    gains = recall.drop(columns=[_BASELINE, _TEACHER], errors="ignore").sub(
        recall[_BASELINE], axis=0
    )
    arms = list(gains.columns)
    figure = _figure(7.5, 1.8 + 0.28 * min(len(gains), _MAX_CLASSES_DRAWN))
    axes = figure.subplots()
    axes.axvline(0, color=colours([_BASELINE])[_BASELINE], linewidth=1)
    axes.set_xlabel("recall minus that of hard labels, points")
    _tidy(axes, grid="both")
    if not arms:
        return figure
    gains = gains.sort_values(next((a for a in _DISTILLED if a in arms), arms[0]), ascending=False)
    drawn, note = _ends(gains)
    shades = colours(arms)
    # Side by side: arms often gain exactly the same.
    heights = np.linspace(-0.22, 0.22, len(arms)) if len(arms) > 1 else np.zeros(1)
    for arm, marker, height in zip(arms, _markers(len(arms)), heights, strict=True):
        axes.plot(100 * drawn[arm], np.arange(len(drawn)) + height,
            marker, color=shades[arm], label=label(arm),
                  markersize=7, alpha=0.85)  # fmt: skip
    axes.set_yticks(range(len(drawn)), [_short(class_names[index]) for index in drawn.index])
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
    axes.annotate(f"{mean:.2f}", (mean, row - 0.28), xytext=(0, 3), ha="center",
                  textcoords="offset points", fontsize=9)  # fmt: skip


def _draw_gain(axes: Axes, row: int, difference: Mapping[str, Any], colour: str) -> None:
    low, high = (100 * bound for bound in difference["ci95"])
    mean = 100 * difference["mean"]
    axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot([mean], [row], "D", color=colour, markersize=9, markeredgecolor="white")
    axes.annotate(numbers.points(difference), (mean, row), xytext=(0, 9), ha="center",
                  textcoords="offset points", fontsize=9)  # fmt: skip


def _reliability_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean confidence, accuracy and count per bin of equal width; empty bins are left out."""
    index = np.minimum((rows["confidence"] * _NUM_BINS).astype(int), _NUM_BINS - 1)
    table = pd.DataFrame(
        {
            "confidence": rows["confidence"],
            "accuracy": (rows["predicted"] == rows["label"]).astype(float),
        }
    ).groupby(index)
    bins = table.mean().assign(count=table.size())
    return bins.assign(centre=(bins.index.to_numpy() + 0.5) / _NUM_BINS)


def _confusion(rows: pd.DataFrame, num_classes: int) -> NDArray[np.float64]:
    cells = rows["label"].to_numpy() * num_classes + rows["predicted"].to_numpy()
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(100.0 * counts / np.maximum(totals, 1))


def _recall(predictions: pd.DataFrame) -> pd.DataFrame:
    """Share of each class's examples that are right; one row per class, one column per role."""
    right = (predictions["predicted"] == predictions["label"]).astype(float)
    shares = right.groupby([predictions["label"], predictions["role"]], sort=False).mean()
    return shares.unstack("role").sort_index()


def _ends(gains: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    if len(gains) <= _MAX_CLASSES_DRAWN:
        return gains, ""
    half = _MAX_CLASSES_DRAWN // 2
    note = f": the {half} largest and the {half} smallest of {len(gains)}"
    return pd.concat([gains.head(half), gains.tail(half)]), note


def _name_classes(axes: Axes, class_names: tuple[str, ...]) -> None:
    step = -(-len(class_names) // _MAX_CLASSES_NAMED)
    places = range(0, len(class_names), step)
    names = [_short(class_names[place], 12) for place in places]
    long = max(map(len, names)) > 2
    axes.set_xticks(places, names, fontsize=7, rotation=90 if long else 0)
    axes.set_yticks(places, names, fontsize=7)
    axes.tick_params(length=0)


def _write_shares(axes: Axes, shares: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6.5,
                      color="white" if share > 25 else "#303030")  # fmt: skip


def _line_style(role: str, colour: str) -> dict[str, Any]:
    line = "--" if role == _TEACHER else "-"
    return {"color": colour, "linestyle": line, "linewidth": 1.6, "markersize": 4, "alpha": 0.9}


def _markers(count: int) -> list[str]:
    return [("D", "o", "s", "^", "v", "P")[index % 6] for index in range(count)]


def _level(comparison: Mapping[str, Any]) -> str:
    return f"{100 * comparison['method']['confidence_level']:g} %"


def _short(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _tidy(axes: Axes, *, grid: Any) -> None:
    axes.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
