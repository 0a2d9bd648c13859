"""The caching nodes: what is labelled, its provenance, and what is drawn of a cache."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import CheckpointError, ParameterError, TeacherTooWeakError
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.settings import Model
from kd_pipeline.pipelines.soft_target_caching.nodes import (
    cache_soft_targets,
    draw_soft_targets,
    summarise_soft_targets,
)
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training.settings import TeacherParams, Training
from kd_pipeline.views.policy import RENDERING
from kd_pipeline.views.settings import ViewsParams

CACHING = SoftTargetCachingParams(batch_size=7, device="cpu", rows_per_part=50)
VIEWS = ViewsParams(seed=3, num_views=2, transforms=[{"name": "shift", "max_pixels": 2}])
AMPLE = MemoryBudget(2**30)
GEOMETRIC, ARITHMETIC = SoftTargetsParams(), SoftTargetsParams(ensemble_average="arithmetic")


@pytest.fixture
def given(
    tables: dict[str, Any], untrained: Callable[..., ModelCheckpoint], tmp_path: Path
) -> dict[str, Any]:
    """What `cache_soft_targets` takes: a teacher of two members."""
    return tables | {
        "checkpoints": [untrained(seed) for seed in (0, 1)],
        "parts": PartsFolder(tmp_path / "parts"),
        "teacher": TeacherParams(model=Model(name="mlp"), training=Training(num_epochs=1)),
        "caching": CACHING,
        "views": VIEWS,
        "soft_target_params": GEOMETRIC,
    }


def test_every_member_view_and_transfer_example_has_a_row_and_no_other(
    given: dict[str, Any], data: LabelledImages
) -> None:
    made = cache_soft_targets(**given)
    ids = data.ids("transfer").tolist()
    rows = [(p.member, p.view, e) for p in made.parts() for e in p.example_ids.tolist()]
    assert rows == [(t, v, e) for t in (0, 1) for v in (0, 1) for e in ids]
    assert made.manifest.num_rows == 4 * len(ids)
    assert all(part.num_rows <= 50 for part in made.manifest.parts)


def test_the_manifest_names_all_that_the_logits_depend_on(
    given: dict[str, Any], data: LabelledImages
) -> None:
    provenance = cache_soft_targets(**given).manifest.provenance
    assert provenance.class_names == ("low", "middle", "high")
    assert provenance.teacher_fingerprints == tuple(m.fingerprint for m in given["checkpoints"])
    assert provenance.images_fingerprint == data.provenance["images"]
    assert provenance.splits_fingerprint == data.provenance["splits"]
    assert provenance.view_policy == {
        "seed": 3,
        "transforms": [{"name": "shift", "max_pixels": 2, "padding": "zeros"}],
        "rendering": RENDERING,
    }
    assert provenance.num_views == 2


def test_label_smoothing_of_the_teacher_is_on_record(given: dict[str, Any]) -> None:
    """So that a student at a temperature above 1 can be warned of it."""
    plain = given["checkpoints"][0]
    smoothed = replace(plain, facts={"parameters": {"label_smoothing": 0.1}})
    for teacher, expected in (([plain], 0.0), ([plain, smoothed], 0.1)):
        made = cache_soft_targets(**given | {"checkpoints": teacher})
        assert made.manifest.facts["teacher_label_smoothing"] == expected


def test_a_teacher_below_the_bar_labels_nothing(given: dict[str, Any], tmp_path: Path) -> None:
    """Untrained, it guesses."""
    given["caching"] = CACHING.model_copy(update={"min_validation_accuracy": 0.99})
    with pytest.raises(TeacherTooWeakError, match=r"min_validation_accuracy` is 0\.99"):
        cache_soft_targets(**given)
    assert not (tmp_path / "parts").exists()
    given["caching"] = CACHING.model_copy(update={"min_validation_accuracy": 0.0})
    assert cache_soft_targets(**given).manifest.num_rows > 0


def test_fresh_views_are_refused(given: dict[str, Any]) -> None:
    given["views"] = VIEWS.model_copy(update={"num_views": None})
    with pytest.raises(ParameterError, match=r"`views\.num_views` must be a number .*got None"):
        cache_soft_targets(**given)


def test_logits_computed_elsewhere_are_cached_where_there_is_no_model(
    given: dict[str, Any], data: LabelledImages, write_logits: Callable[..., TeacherParams]
) -> None:
    ids = data.ids("transfer")
    logits = np.random.default_rng(0).normal(0, 3, (len(ids), 3)).astype(np.float16)
    given |= {"checkpoints": [], "views": ViewsParams()}
    imported = write_logits(ids, logits, data.images.class_names)
    made = cache_soft_targets(**given | {"teacher": imported})
    stored = np.concatenate([part.rows.logits for part in made.parts()])
    np.testing.assert_array_equal(stored, logits)
    with pytest.raises(
        CheckpointError, match=r"teacher\.checkpoints` must hold a member, got none"
    ):
        cache_soft_targets(**given)


@pytest.fixture
def made(
    data: LabelledImages, make_cache: Callable[..., SoftTargets], tmp_path: Path
) -> SoftTargets:
    """Random logits of two members in two views."""
    count = len(data.ids("transfer"))
    logits = np.random.default_rng(0).normal(0, 3, (2, 2, count, 3)).astype(np.float32)
    return make_cache(
        tmp_path / "store",
        data.images,
        data.splits,
        logits=logits,
        teacher_fingerprints=("a", "b"),
        view_policy=VIEWS.policy.description,
        num_views=2,
    )


def test_the_summary_has_a_row_per_member_and_one_of_their_average_as_students_read_it(
    made: SoftTargets, examples: pd.DataFrame
) -> None:
    summary, pairs, *figures = summarise_soft_targets(made, examples, GEOMETRIC, AMPLE)
    assert summary["teacher"].tolist() == ["0", "1", "ensemble"]
    assert summary["agreement_with_labels"].between(0, 1).all()
    assert set(pairs["class_a"]) | set(pairs["class_b"]) == {"low", "middle", "high"}
    assert [type(figure) for figure in figures] == [Figure, Figure]
    other, *_ = summarise_soft_targets(made, examples, ARITHMETIC, AMPLE)
    pd.testing.assert_frame_equal(summary[:2], other[:2])
    assert summary["entropy_at_1"][2] < other["entropy_at_1"][2]


def test_without_labels_agreement_is_unknown(made: SoftTargets, examples: pd.DataFrame) -> None:
    unlabelled = examples.assign(label=pd.array([pd.NA] * len(examples), dtype="Int64"))
    summary, *_ = summarise_soft_targets(made, unlabelled, GEOMETRIC, AMPLE)
    assert summary["agreement_with_labels"].isna().all()


def test_views_are_drawn_of_each_kind(
    made: SoftTargets, images: ImageSet, examples: pd.DataFrame
) -> None:
    figure = draw_soft_targets(made, images, examples, GEOMETRIC, AMPLE, VIEWS)
    drawn = [axes for panel in figure.subfigs for axes in panel.axes if axes.images]
    assert len(drawn) == 3 + 4 + 4  # Sure ones are one per class, and there are three.
