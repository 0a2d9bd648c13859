"""Figures of a sweep: the history of each search, importances, and slices.

`trials` has one row per trial: `arm`, `trial`, `state`, the metric, and a column per parameter.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_pipeline.evaluation.figures import STYLE, tidy
from kd_pipeline.evaluation.roles import colours, label

_PANELS_IN_A_ROW = 3


def history_figure(trials: pd.DataFrame, metric: str, *, maximised: bool) -> Figure:
    """Every trial's value in the order of the trials, and the best so far as a line."""
    figure = Figure((8.0, 4.5), **STYLE)
    axes = figure.subplots()
    shades = colours(list(trials["arm"].unique()))
    for arm, rows in trials.groupby("arm", sort=False):
        number = np.arange(1, len(rows) + 1)
        complete = (rows["state"] == "complete").to_numpy()
        values = rows[metric].to_numpy(float)
        best = pd.Series(np.where(complete, values, np.nan))
        best = (best.cummax() if maximised else best.cummin()).ffill()
        _draw_trials(axes, number, values, complete, shades[str(arm)])
        axes.plot(number, best, color=shades[str(arm)], label=label(str(arm)))
    axes.set_xlabel("trial (filled: complete, hollow: pruned; line: the best so far)")
    axes.set_ylabel(metric)
    axes.legend(frameon=False)
    tidy(axes, grid="both")
    return figure


def importance_figure(importances: Mapping[str, Mapping[str, float]]) -> Figure:
    """The share of the metric's variation that each parameter explains, by arm."""
    names = sorted({name for shares in importances.values() for name in shares})
    shades = colours(list(importances))
    figure = Figure((8.0, 1.5 + 0.45 * max(1, len(names))), **STYLE)
    axes = figure.subplots()
    height = 0.8 / max(1, len(importances))
    for at, (arm, shares) in enumerate(importances.items()):
        rows = [row + (at - (len(importances) - 1) / 2) * height for row in range(len(names))]
        widths = [shares.get(name, 0.0) for name in names]
        axes.barh(rows, widths, height, color=shades[arm], label=label(arm))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance (PED-ANOVA, complete trials; the parameters of an arm add up to 1)")
    axes.legend(frameon=False)
    tidy(axes, grid="x")
    return figure


def slice_figure(
    trials: pd.DataFrame, metric: str, parameters: Sequence[str], *, log: Collection[str]
) -> Figure:
    """The metric against each parameter, one panel for each; those in `log` on a log scale."""
    names = [name for name in parameters if name in trials]
    num_rows = -(-len(names) // _PANELS_IN_A_ROW)
    num_columns = min(len(names), _PANELS_IN_A_ROW)
    figure = Figure((4.2 * num_columns, 3.6 * num_rows), **STYLE)
    panels = np.asarray(figure.subplots(num_rows, num_columns, squeeze=False)).ravel()
    for unused in panels[len(names) :]:
        unused.remove()
    shades = colours(list(trials["arm"].unique()))
    for axes, name in zip(panels, names, strict=False):
        _draw_slice(axes, trials[trials[name].notna()], name, metric, shades)
        if name in log:
            axes.set_xscale("log")
    return figure


def _draw_slice(
    axes: Axes, trials: pd.DataFrame, name: str, metric: str, shades: Mapping[str, str]
) -> None:
    column = trials[name]
    is_number = column.map(lambda value: isinstance(value, int | float)).all()
    values = column.astype(float) if is_number else column.astype(str)
    for arm, rows in trials.groupby("arm", sort=False):
        complete = (rows["state"] == "complete").to_numpy()
        at = values.loc[rows.index].to_numpy()
        _draw_trials(axes, at, rows[metric].to_numpy(float), complete, shades[str(arm)])
    axes.set_xlabel(name, fontsize=8)
    axes.set_ylabel(metric, fontsize=8)
    tidy(axes, grid="both")


def _draw_trials(
    axes: Axes, at: "np.ndarray", values: "np.ndarray", complete: "np.ndarray", shade: str
) -> None:
    """Dots: filled for complete trials, hollow for pruned ones."""
    style: dict[str, Any] = {
        "linestyle": "",
        "marker": "o",
        "markersize": 5,
        "color": shade,
        "alpha": 0.8,
    }
    axes.plot(at[complete], values[complete], **style)
    axes.plot(at[~complete], values[~complete], **style, markerfacecolor="none")
