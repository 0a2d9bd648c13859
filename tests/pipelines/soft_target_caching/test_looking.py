"""The nodes that look at the cache: tables and figures, mixed as students mix."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.pipelines.soft_target_caching.looking import (
    draw_soft_targets,
    summarise_soft_targets,
)
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets
from kd_pipeline.views import ViewPolicy
from kd_pipeline.views.settings import ViewsParams

GEOMETRIC, ARITHMETIC = SoftTargetsParams(), SoftTargetsParams(mixing="arithmetic")
VIEWS = ViewsParams.model_validate(
    {"seed": 3, "num_views": 2, "transforms": [{"name": "shift", "max_pixels": 2}]}
)


@pytest.fixture
def made(images: ImageSet, splits: pd.DataFrame, tmp_path: Path) -> SoftTargets:
    ids = ids_with_role(splits, "transfer")
    logits = np.random.default_rng(0).normal(0, 3, (2, 2, len(ids), 3)).astype(np.float32)
    policy = ViewPolicy(**VIEWS.policy_arguments()).description
    provenance = Provenance(images.class_names, ("a", "b"), "i", "s", policy, 2)
    return write_soft_targets(tmp_path / "store", list(logits), ids, provenance=provenance)


def test_the_summary_has_a_row_per_member_and_one_mixed_as_students_mix(
    made: SoftTargets, examples: pd.DataFrame
) -> None:
    summary, pairs, *figures = summarise_soft_targets(made, examples, GEOMETRIC)
    assert summary["teacher"].tolist() == ["0", "1", "mixed"]
    assert summary["agreement_with_labels"].between(0, 1).all()
    assert set(pairs["class_a"]) | set(pairs["class_b"]) == {"low", "middle", "high"}
    assert [type(figure) for figure in figures] == [Figure, Figure]
    other, *_ = summarise_soft_targets(made, examples, ARITHMETIC)
    pd.testing.assert_frame_equal(summary[:2], other[:2])
    assert summary["entropy_at_1"][2] < other["entropy_at_1"][2]


def test_without_labels_agreement_is_not_known(made: SoftTargets, examples: pd.DataFrame) -> None:
    unlabelled = examples.assign(label=pd.array([pd.NA] * len(examples), dtype="Int64"))
    summary, *_ = summarise_soft_targets(made, unlabelled, GEOMETRIC)
    assert summary["agreement_with_labels"].isna().all()


def test_twelve_views_are_drawn(
    made: SoftTargets, images: ImageSet, examples: pd.DataFrame
) -> None:
    figure = draw_soft_targets(made, images, examples, GEOMETRIC, VIEWS)
    drawn = [axes for panel in figure.subfigs for axes in panel.axes if axes.images]
    assert len(drawn) == 3 + 4 + 4  # Sure ones are one per class, and there are three.
