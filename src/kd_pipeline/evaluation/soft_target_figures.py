"""Figures of a cache of soft targets, built without pyplot and so without global state."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_pipeline.evaluation.figures import STYLE, shorten, tidy
from kd_pipeline.soft_targets.inspection import (
    CONFIDENT,
    DISAGREEING,
    ENSEMBLE,
    ENTROPY,
    UNCERTAIN,
    VERDICTS,
    Pick,
)
from kd_pipeline.views import ViewRenderer

# Okabe & Ito 2008, as in `roles`.
_ENSEMBLE_COLOUR = "#000000"
_MEMBER_COLOUR = "#0072B2"
_VERDICTS = {
    "right": ("as the label", "#0072B2"),
    "wrong": ("against the label", "#D55E00"),
    "unlabelled": ("no label known", "#B0B0B0"),
}
_TEMPERATURE_COLOURS = ("#0072B2", "#E69F00")
_ROW_TITLES = {
    CONFIDENT: "most confident,\none per class",
    UNCERTAIN: "least confident",
    DISAGREEING: "most confident\nagainst the label",
}


def entropy_figure(summary: pd.DataFrame) -> Figure:
    """Mean entropy against temperature for each row of `soft_target_summary`, and its maximum."""
    columns = [name for name in summary.columns if name.startswith(ENTROPY)]
    temperatures = [float(name.removeprefix(ENTROPY)) for name in columns]
    limit = float(summary["uniform_entropy"].iloc[0])
    figure = Figure((6.8, 4.4), **STYLE)
    axes = figure.subplots()
    axes.axhline(limit, color="#7F7F7F", linestyle="--", linewidth=1)
    axes.annotate(f"all classes alike: {limit:.2f}", (0, limit), xytext=(4, -3),
                  xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="left", va="top", fontsize=9, color="#606060")  # fmt: skip
    for place, (_, row) in enumerate(summary.iterrows()):
        is_ensemble, is_last = str(row["teacher"]) == ENSEMBLE, place == len(summary) - 1
        name = "the ensemble" if is_ensemble else "a member" if place == 0 else None
        axes.plot(temperatures, row[columns].to_numpy(dtype=float), marker="o", markersize=4,
                  color=_ENSEMBLE_COLOUR if is_ensemble else _MEMBER_COLOUR, label=name,
                  linewidth=2.2 if is_last else 1.0, alpha=1.0 if is_last else 0.7)  # fmt: skip
    background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    for temperature, entropy in zip(temperatures, summary.iloc[-1][columns], strict=True):
        axes.annotate(f"{entropy:.2f}", (temperature, entropy), xytext=(4, -14),
                      textcoords="offset points", fontsize=8, bbox=background)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(temperatures, [f"{temperature:g}" for temperature in temperatures])
    axes.minorticks_off()
    axes.set_ylim(0, limit * 1.08)
    axes.set_xlabel("temperature")
    axes.set_ylabel("mean entropy of the soft targets, nats")
    if len(summary) > 1:
        axes.legend(frameon=False, fontsize=9, loc="center right")
    tidy(axes, grid="both")
    return figure


def confidence_figure(confidences: pd.DataFrame, *, temperature: float) -> Figure:
    """The result of `confidence_histogram`, at the temperature at which it was counted."""
    figure = Figure((6.8, 4.4), **STYLE)
    axes = figure.subplots()
    edges = [*confidences["low"], float(confidences["high"].iloc[-1])]
    total = int(confidences[list(VERDICTS)].to_numpy().sum())
    # Not stacked: heights on a logarithmic axis do not add up.
    for verdict in VERDICTS:
        counts = confidences[verdict].to_numpy(dtype=float)
        if counts.sum():
            words, colour = _VERDICTS[verdict]
            share = f"{words}: {100 * counts.sum() / total:.1f} %"
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.12)
            axes.stairs(counts, edges, color=colour, linewidth=1.8, baseline=None, label=share)
    # Nearly all rows are in the last bin.
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 2 * max(confidences[list(VERDICTS)].to_numpy().max(), 1))
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"confidence in the top class at temperature {temperature:g}")
    axes.set_ylabel("rows of the cache (views counted; logarithmic)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3,
                  frameon=False, fontsize=9)  # fmt: skip
    tidy(axes, grid="y")
    return figure


@dataclass(frozen=True)
class Picture:
    """A view that the teacher labelled."""

    pixels: NDArray[np.float32]
    """[channels, height, width] in [0, 1]."""
    image_weight: float = 1.0
    """Of the example itself, where policies mix two images."""


def render_picks(picks: Sequence[Pick], renderer: ViewRenderer) -> list[Picture]:
    """Render the views of `pick_examples`; the renderer is that of the cached views."""
    if not picks:
        return []
    all_ids = renderer.pixels.example_ids
    ids = torch.tensor([pick.example_id for pick in picks], device=all_ids.device)
    views = torch.tensor([pick.view for pick in picks], device=all_ids.device)
    drawn = renderer.draw(torch.searchsorted(all_ids, ids), views)
    mixed, pixels = drawn.mixed, drawn.render().cpu()
    weights = [1.0] * len(picks) if mixed is None else mixed.image_weight.tolist()
    shown = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return [Picture(view.numpy(), weight) for view, weight in zip(shown, weights, strict=True)]


def grid_figure(
    picks: Sequence[Pick], pictures: Sequence[Picture], class_names: Sequence[str]
) -> Figure:
    """Each picked view beside bars of its most likely classes; the label's is in bold.

    There is one picture per pick, of `render_picks`.
    """
    kinds = Counter(pick.kind for pick in picks)
    most = max(kinds.values(), default=1)
    figure = Figure((0.9 + 3.4 * most, 0.7 + 2.0 * max(len(kinds), 1)), **STYLE)
    if not picks:
        return figure
    panels = figure.subfigures(len(kinds), 1, squeeze=False)[:, 0]
    for kind, panel in zip(kinds, panels, strict=True):
        panel.supylabel(_ROW_TITLES.get(kind, kind), fontsize=9)
        cells = panel.subplots(1, 2 * most, squeeze=False, width_ratios=[2, 3] * most)[0]
        drawn = [pair for pair in zip(picks, pictures, strict=True) if pair[0].kind == kind]
        for place, (pick, picture) in enumerate(drawn):
            _draw_image(cells[2 * place], pick, picture, class_names)
            _draw_bars(cells[2 * place + 1], pick, class_names)
        for axes in cells[2 * len(drawn) :]:
            axes.set_visible(False)
    handles, names = panels[0].axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False,
                  fontsize=9)  # fmt: skip
    return figure


def _draw_image(axes: Axes, pick: Pick, picture: Picture, class_names: Sequence[str]) -> None:
    image = np.moveaxis(picture.pixels, 0, -1).clip(0, 1)
    grey = image.shape[-1] == 1
    axes.imshow(image[..., 0] if grey else image[..., :3], cmap="gray" if grey else None,
                vmin=0, vmax=1, interpolation="nearest")  # fmt: skip
    label = "no label" if pick.label < 0 else f"label {shorten(class_names[pick.label], 14)}"
    if picture.image_weight < 1:
        label += f" ({100 * picture.image_weight:.0f} %)"
    axes.set_title(label, fontsize=8, pad=3)
    axes.set_xlabel(f"example {pick.example_id}\nview {pick.view}", fontsize=6.5, labelpad=2)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_bars(axes: Axes, pick: Pick, class_names: Sequence[str]) -> None:
    places = np.arange(len(pick.class_ids))
    height = 0.8 / len(pick.probabilities)
    for number, (temperature, shares) in enumerate(pick.probabilities.items()):
        middles, name = places - 0.4 + height * (number + 0.5), f"temperature {temperature:g}"
        axes.barh(middles, shares, height, color=_TEMPERATURE_COLOURS[number], label=name)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.set_yticks(places, [shorten(class_names[index], 12) for index in pick.class_ids])
    for text, index in zip(axes.get_yticklabels(), pick.class_ids, strict=True):
        text.set_fontweight("bold" if index == pick.label else "normal")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.tick_params(labelsize=7, length=0)
    tidy(axes, grid="x")
