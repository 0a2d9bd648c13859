"""Figures of a cache draw what was counted, for one teacher and many, few classes and a tail."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from kd_pipeline.data.images import ImageSet
from kd_pipeline.evaluation.soft_target_figures import (
    confidence_figure,
    entropy_figure,
    grid_figure,
    render_picks,
)
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.inspection import (
    Sample,
    confidence_histogram,
    known_labels,
    pick_examples,
    sample,
    summarise,
)
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import write_soft_targets
from kd_pipeline.views import ViewPolicy, ViewRenderer
from kd_pipeline.views.settings import ViewsParams

Make = Callable[..., Sample]


def policy(*transforms: dict[str, Any]) -> ViewPolicy:
    return ViewsParams.model_validate({"transforms": transforms}).policy


def renderer(images: ImageSet, *transforms: dict[str, Any]) -> ViewRenderer:
    pixels = images.reader(images.example_ids, device="cpu")
    return ViewRenderer(policy(*transforms), pixels, pixels)


SHIFT, MIXUP = {"name": "shift", "max_pixels": 2}, {"name": "mixup"}


@pytest.fixture
def make(images: ImageSet, tmp_path: Path) -> Make:
    def make(num_members: int = 1, encoding: Encoding | None = None) -> Sample:
        ids = images.example_ids
        shape = (num_members, 2, len(ids), len(images.class_names))
        logits = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
        fingerprints = tuple(map(str, range(num_members)))
        provenance = Provenance(images.class_names, fingerprints, "i", "s", {}, 2)
        made = write_soft_targets(
            tmp_path / "store", list(logits), ids, provenance=provenance, encoding=encoding
        )
        return sample(made, SoftTargetsParams(), MemoryBudget(2**30))

    return make


def renders(figure: Figure) -> bool:
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return buffer.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("encoding", [None, Encoding(2, 4.0)], ids=["dense", "top-k"])
@pytest.mark.parametrize("num_members", [1, 3])
def test_every_figure_renders(
    make: Make, images: ImageSet, examples: pd.DataFrame, num_members: int,
    encoding: Encoding | None,
) -> None:  # fmt: skip
    made, labels = make(num_members, encoding), known_labels(examples)
    summary = summarise(made, labels)
    picks = pick_examples(made, labels)
    pictures = render_picks(picks, renderer(images, SHIFT))
    assert renders(entropy_figure(summary))
    assert renders(confidence_figure(confidence_histogram(made, labels), temperature=1.0))
    assert renders(grid_figure(picks, pictures, images.class_names))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_entropy_is_drawn_as_it_is_tabled_up_to_the_limit(
    make: Make, examples: pd.DataFrame
) -> None:
    table = summarise(make(3), known_labels(examples))
    (axes,) = entropy_figure(table).axes
    limit, *curves = axes.lines
    assert set(limit.get_ydata()) == {np.log(3)}
    assert len(curves) == 4
    columns = [name for name in table.columns if name.startswith("entropy_at_")]
    for curve, (_, row) in zip(curves, table.iterrows(), strict=True):
        np.testing.assert_allclose(curve.get_ydata(), row[columns].to_numpy(dtype=float))
        assert curve.get_xdata().tolist() == [1, 2, 3, 4, 6, 8, 12, 20]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a member", "the ensemble"]


def test_confidence_is_split_by_the_label(make: Make, examples: pd.DataFrame) -> None:
    hidden = examples.assign(label=examples["label"].mask(examples["example_id"] > 100))
    confidences = confidence_histogram(make(), known_labels(hidden))
    figure = confidence_figure(confidences, temperature=1.0)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 3
    assert sum(float(name.split(": ")[1].removesuffix(" %")) for name in names) == pytest.approx(
        100, abs=0.2
    )
    (axes,) = figure.axes
    drawn = {tuple(patch.get_data().values) for patch in axes.patches}
    assert drawn == {tuple(confidences[v]) for v in ("right", "wrong", "unlabelled")}


def test_pictures_are_the_views_that_were_labelled(make: Make, images: ImageSet) -> None:
    picks = pick_examples(make(), pd.Series(dtype=np.int64))
    views = renderer(images, SHIFT)
    assert any(pick.view == 1 for pick in picks)
    for pick, picture in zip(picks, render_picks(picks, views), strict=True):
        position = torch.from_numpy(images.positions([pick.example_id]))
        pixels = views.draw(position, pick.view).render()
        np.testing.assert_allclose(picture.pixels, pixels[0].numpy() / 255, rtol=1e-6)
        assert picture.image_weight == 1.0


def test_the_title_of_a_mixed_picture_has_the_weight_of_the_image(
    make: Make, images: ImageSet, examples: pd.DataFrame
) -> None:
    picks = pick_examples(make(), known_labels(examples))
    views = renderer(images, MIXUP)
    pictures = render_picks(picks, views)
    positions = torch.from_numpy(images.positions([pick.example_id for pick in picks]))
    mixed = views.draw(positions, torch.tensor([pick.view for pick in picks])).mixed
    assert mixed is not None
    assert [picture.image_weight for picture in pictures] == mixed.image_weight.tolist()
    figure = grid_figure(picks, pictures, images.class_names)
    titles = [axes.get_title() for panel in figure.subfigs for axes in panel.axes]
    shown = f"({100 * pictures[0].image_weight:.0f} %)"
    assert any(shown in title for title in titles)


def test_nothing_to_show_is_an_empty_figure(images: ImageSet) -> None:
    assert render_picks([], renderer(images)) == []
    assert renders(grid_figure([], [], images.class_names))
