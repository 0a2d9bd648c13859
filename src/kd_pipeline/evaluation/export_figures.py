"""The figure of exported files: accuracy against size and latency."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from kd_pipeline.evaluation.exported import CHECKPOINT
from kd_pipeline.evaluation.figures import STYLE, tidy
from kd_pipeline.evaluation.roles import colours, label

_MARKERS = ("o", "s", "^", "D", "v", "P")


def export_figure(comparison: Mapping[str, Any]) -> Figure:
    """Each exported file's accuracy over its bytes, and over its latency for one image."""
    files = [file for file in comparison["files"] if file["target"] != CHECKPOINT]
    figure = Figure((11.0, 4.8), **STYLE)
    if not files:
        figure.text(0.5, 0.5, "Nothing was exported.", ha="center")
        return figure
    left, right = figure.subplots(1, 2, sharey=True)
    shades = colours(list(dict.fromkeys(file["role"] for file in files)))
    kinds = list(dict.fromkeys((file["target"], file["precision"]) for file in files))
    markers = dict(zip(kinds, _MARKERS * len(kinds), strict=False))
    for file in files:
        style = {
            "color": shades[file["role"]],
            "marker": markers[file["target"], file["precision"]],
            "markerfacecolor": shades[file["role"]] if file["precision"] != "float32" else "none",
        }
        _draw(left, file, file.get("flash_bytes", file.get("size_bytes")), style)
        _draw(right, file, file.get("latency_p50_ms_batch_1_threads_1"), style)
    left.set_xlabel("bytes that ship (C: flash)")
    right.set_xlabel("median milliseconds per image, one thread of this machine")
    left.set_ylabel("test accuracy, %\n(bars: standard deviation over replicates)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        tidy(axes, grid="both")
    _add_legend(figure, right, shades, markers)
    return figure


def _draw(axes: Axes, file: Mapping[str, Any], at: float | None, style: dict[str, Any]) -> None:
    if at is None:
        return
    accuracy = file["accuracy"]
    deviation = None if accuracy["std"] is None else 100 * accuracy["std"]
    axes.errorbar(at, 100 * accuracy["mean"], yerr=deviation, markersize=8, capsize=3, **style)


def _add_legend(
    figure: Figure,
    axes: Axes,
    shades: Mapping[str, str],
    markers: Mapping[tuple[str, str], str],
) -> None:
    """Colours are models, markers formats; float32 is hollow."""
    for role, colour in shades.items():
        axes.plot([], [], color=colour, linewidth=4, label=label(role))
    for (target, precision), marker in markers.items():
        face = "none" if precision == "float32" else "#555555"
        axes.plot([], [], color="#555555", marker=marker, markerfacecolor=face, linestyle="",
                  label=f"{target} {precision}")  # fmt: skip
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
