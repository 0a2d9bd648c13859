"""Figures of a cache of soft targets, built without pyplot as those of a comparison are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.soft_targets.blocks import MIXED
from kd_pipeline.soft_targets.gallery import CONFIDENT, DISAGREEING, UNCERTAIN, Pick
from kd_pipeline.soft_targets.summary import ENTROPY, VERDICTS
from kd_pipeline.views import ViewPolicy, mixing_of, render_views, view_parameters

_DPI = 120
# Okabe & Ito 2008, as in `roles`.
_MIXED_COLOUR = "#000000"
_MEMBER_COLOUR = "#0072B2"
_VERDICT_COLOURS = {"right": "#0072B2", "wrong": "#D55E00", "unlabelled": "#B0B0B0"}
_TEMPERATURE_COLOURS = ("#0072B2", "#E69F00")
_ROW_TITLES = {
    CONFIDENT: "the surest,\none per class",
    UNCERTAIN: "the least sure",
    DISAGREEING: "surest against\nthe label",
}


def entropy_figure(summary: pd.DataFrame) -> Figure:
    """Mean entropy against temperature for each member and the mixture, up to knowing nothing.

    Args:
        summary: `soft_target_summary`.
    """
    columns = [name for name in summary.columns if name.startswith(ENTROPY)]
    temperatures = [float(name.removeprefix(ENTROPY)) for name in columns]
    limit = float(summary["uniform_entropy"].iloc[0])
    figure = Figure(figsize=(6.8, 4.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.axhline(limit, color="#7F7F7F", linestyle="--", linewidth=1)
    axes.annotate(f"all classes alike: {limit:.2f}", (0, limit), xytext=(4, -3),
                  xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="left", va="top", fontsize=9, color="#606060")  # fmt: skip
    told = set()
    for _, row in summary.iterrows():
        mixed = str(row["teacher"]) == MIXED
        name = "the members mixed" if mixed else "teacher" if len(summary) == 1 else "a member"
        axes.plot(temperatures, row[columns].to_numpy(dtype=float), marker="o", markersize=4,
                  color=_MIXED_COLOUR if mixed else _MEMBER_COLOUR, label=name if name not in told
                  else None, linewidth=2.2 if mixed or len(summary) == 1 else 1.0,
                  alpha=1.0 if mixed or len(summary) == 1 else 0.7)  # fmt: skip
        told.add(name)
    _label_values(axes, temperatures, summary.iloc[-1][columns].to_numpy(dtype=float))
    axes.set_xscale("log")
    axes.set_xticks(temperatures, [f"{temperature:g}" for temperature in temperatures])
    axes.minorticks_off()
    axes.set_ylim(0, limit * 1.08)
    axes.set_xlabel("temperature")
    axes.set_ylabel("mean entropy of the soft targets, nats")
    if len(told) > 1:
        axes.legend(frameon=False, fontsize=9, loc="center right")
    _tidy(axes, grid="both")
    return figure


def confidence_figure(confidences: pd.DataFrame, *, temperature: float) -> Figure:
    """How many rows have which confidence, split by whether the label agrees.

    Args:
        confidences: As `soft_targets.summary.Summary` holds them.
        temperature: At which confidence is measured.
    """
    figure = Figure(figsize=(6.8, 4.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    edges = [*confidences["low"], float(confidences["high"].iloc[-1])]
    total = int(confidences[list(VERDICTS)].to_numpy().sum())
    # Beside each other, not stacked: heights on a logarithmic axis do not add up.
    for verdict in VERDICTS:
        counts = confidences[verdict].to_numpy(dtype=float)
        if counts.sum():
            colour = _VERDICT_COLOURS[verdict]
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.12)
            axes.stairs(counts, edges, color=colour, linewidth=1.8, baseline=None,
                        label=_verdict(verdict, counts, total))  # fmt: skip
    # The surest bin holds nearly all: a linear axis would show nothing but it.
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 2 * max(confidences[list(VERDICTS)].to_numpy().max(), 1))
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"confidence in the top class at temperature {temperature:g}")
    axes.set_ylabel("rows of the cache (views counted; logarithmic)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3,
                  frameon=False, fontsize=9)  # fmt: skip
    _tidy(axes, grid="y")
    return figure


@dataclass(frozen=True)
class Picture:
    """A view as the teacher saw it."""

    pixels: NDArray[np.float32]
    """[channels, height, width] in [0, 1]."""
    own_share: float = 1.0
    """What part of it is the example's own, where policies mix two."""


def render_picks(
    picks: Sequence[Pick],
    images: ImageSet,
    *,
    policy: ViewPolicy,
    partners: NDArray[np.int64],
) -> list[Picture]:
    """Draw and render the picked views once more.

    Args:
        picks: As `pick_examples` gives them.
        images: Where the pixels are.
        policy: By which the teacher's views were drawn.
        partners: int64 [num_partners], ascending: whom a policy that mixes draws partners from.
    """
    if not picks:
        return []
    ids = torch.tensor([pick.example_id for pick in picks])
    views = torch.tensor([pick.view for pick in picks])
    mixes = policy.mixes
    parameters = view_parameters(
        policy, ids, views, partners=torch.as_tensor(partners) if mixes else None
    )
    pixels = images.take(ids.numpy())
    mixed = mixing_of(parameters, policy, image_size=(pixels.shape[-2], pixels.shape[-1]))
    shares = [1.0] * len(picks) if mixed is None else mixed.own_share.tolist()
    rendered = render_views(
        pixels, parameters, policy, pixels_of=_pixel_reader(images) if mixes else None
    )
    shown = rendered.float() / 255 if rendered.dtype == torch.uint8 else rendered
    return [Picture(view.numpy(), share) for view, share in zip(shown, shares, strict=True)]


def grid_figure(
    picks: Sequence[Pick], pictures: Sequence[Picture], class_names: Sequence[str]
) -> Figure:
    """Each picked view beside bars of its most likely classes; the label's is in bold.

    Args:
        picks: As `pick_examples` gives them.
        pictures: One per pick: what the teacher labelled.
        class_names: Index = class.
    """
    kinds = list(dict.fromkeys(pick.kind for pick in picks))
    most = max((sum(pick.kind == kind for pick in picks) for kind in kinds), default=1)
    figure = Figure(
        figsize=(0.9 + 3.4 * most, 0.7 + 2.0 * max(len(kinds), 1)), dpi=_DPI, layout="constrained"
    )
    if not picks:
        return figure
    panels = figure.subfigures(len(kinds), 1, squeeze=False)[:, 0]
    for kind, panel in zip(kinds, panels, strict=True):
        panel.supylabel(_ROW_TITLES.get(kind, kind), fontsize=9)
        cells = panel.subplots(1, 2 * most, squeeze=False, width_ratios=[2, 3] * most)[0]
        mine = [at for at, pick in enumerate(picks) if pick.kind == kind]
        for place, at in enumerate(mine):
            _draw_image(cells[2 * place], picks[at], pictures[at], class_names)
            _draw_bars(cells[2 * place + 1], picks[at], class_names)
        for axes in cells[2 * len(mine) :]:
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
    label = "no label" if pick.label < 0 else f"label {_short(class_names[pick.label], 14)}"
    if picture.own_share < 1:
        label += f" ({100 * picture.own_share:.0f} %)"
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
    axes.set_yticks(places, [_short(class_names[index], 12) for index in pick.class_ids])
    for text, index in zip(axes.get_yticklabels(), pick.class_ids, strict=True):
        text.set_fontweight("bold" if index == pick.label else "normal")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.tick_params(labelsize=7, length=0)
    _tidy(axes, grid="x")


def _label_values(
    axes: Axes, temperatures: Sequence[float], entropies: NDArray[np.float64]
) -> None:
    for temperature, entropy in zip(temperatures, entropies, strict=True):
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
        axes.annotate(f"{entropy:.2f}", (temperature, entropy), xytext=(4, -14),
                      textcoords="offset points", fontsize=8, bbox=paper)  # fmt: skip


def _pixel_reader(images: ImageSet) -> Callable[[Tensor], Tensor]:
    return lambda ids: images.take(ids.numpy())


def _verdict(verdict: str, counts: NDArray[np.float64], total: int) -> str:
    words = {"right": "as the label", "wrong": "against the label", "unlabelled": "no label known"}
    return f"{words[verdict]}: {100 * counts.sum() / max(total, 1):.1f} %"


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _tidy(axes: Axes, *, grid: str) -> None:
    axes.grid(axis=grid, color="#E5E5E5", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
