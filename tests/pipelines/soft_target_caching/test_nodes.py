"""The caching nodes: the final schema, provenance of all that matters, and a summary."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.parameters import SoftTargetCachingParams, ViewsParams
from kd_pipeline.pipelines.soft_target_caching.nodes import (
    cache_soft_targets,
    summarise_soft_targets,
)
from kd_pipeline.soft_targets.store import SoftTargets

PARAMS = SoftTargetCachingParams(batch_size=7, device="cpu")
VIEWS = ViewsParams.model_validate(
    {"seed": 3, "num_views": 2, "transforms": [{"name": "shift", "max_pixels": 2}]}
)


def member(seed: int, class_names: tuple[str, ...], **facts: Any) -> ModelCheckpoint:
    classifier = build_untrained(
        architecture="small_cnn",
        arguments={"channels": [4, 8]},
        preprocessing=Preprocessing((1, 8, 8), (0.4,), (0.3,)),
        num_classes=len(class_names),
        seed=seed,
    )
    return snapshot(
        classifier,
        architecture="small_cnn",
        arguments={"channels": [4, 8]},
        class_names=class_names,
        facts=facts,
    )


@pytest.fixture
def teacher(images: ImageSet) -> list[ModelCheckpoint]:
    return [member(seed, images.class_names) for seed in (0, 1)]


@pytest.fixture
def made(teacher: list[ModelCheckpoint], images: ImageSet, splits: pd.DataFrame) -> SoftTargets:
    return cache_soft_targets(teacher, images, splits, PARAMS, VIEWS)


def test_every_member_view_and_transfer_example_has_a_row_and_no_other(
    made: SoftTargets, splits: pd.DataFrame
) -> None:
    ids = ids_with_role(splits, "transfer")
    rows = set(
        zip(made.teachers.tolist(), made.views.tolist(), made.example_ids.tolist(), strict=True)
    )
    assert rows == {(t, v, int(e)) for t in (0, 1) for v in (0, 1) for e in ids}
    assert len(made.logits) == 4 * len(ids)
    assert made.logits.dtype == np.float16


def test_the_manifest_knows_all_that_the_logits_depend_on(
    made: SoftTargets, teacher: list[ModelCheckpoint], images: ImageSet, splits: pd.DataFrame
) -> None:
    provenance = made.manifest.provenance
    assert provenance.class_names == images.class_names
    assert provenance.teacher_fingerprints == tuple(m.fingerprint for m in teacher)
    assert provenance.images_fingerprint == images.fingerprint
    assert provenance.splits_fingerprint == split_fingerprint(splits)
    assert provenance.view_policy == {
        "seed": 3,
        "transforms": [{"name": "shift", "max_pixels": 2, "padding": "zeros"}],
    }
    assert provenance.num_views == 2


def test_a_smoothed_teacher_is_remembered(images: ImageSet, splits: pd.DataFrame) -> None:
    """So that a student at a temperature above 1 can be warned of it."""
    plain = member(0, images.class_names)
    smoothed = replace(plain, facts={"parameters": {"label_smoothing": 0.1}})
    for teacher, expected in (([plain], 0.0), ([plain, smoothed], 0.1)):
        made = cache_soft_targets(teacher, images, splits, PARAMS, VIEWS)
        assert made.manifest.facts["teacher_label_smoothing"] == expected


def test_the_batch_size_changes_nothing(
    made: SoftTargets, teacher: list[ModelCheckpoint], images: ImageSet, splits: pd.DataFrame
) -> None:
    whole = cache_soft_targets(
        teacher, images, splits, SoftTargetCachingParams(batch_size=1000, device="cpu"), VIEWS
    )
    np.testing.assert_allclose(whole.logits, made.logits, atol=2e-3)


def test_a_teacher_of_other_classes_labels_nothing(images: ImageSet, splits: pd.DataFrame) -> None:
    with pytest.raises(CheckpointError, match="class 0 is 'high' where the images have 'low'"):
        cache_soft_targets([member(0, images.class_names[::-1])], images, splits, PARAMS, VIEWS)


def test_the_summary_has_a_row_per_member(made: SoftTargets, examples: pd.DataFrame) -> None:
    summary = summarise_soft_targets(made, examples)
    assert summary["teacher"].tolist() == [0, 1]
    assert summary["agreement_with_labels"].between(0, 1).all()
    unlabelled = examples.assign(label=pd.array([pd.NA] * len(examples), dtype="Int64"))
    assert summarise_soft_targets(made, unlabelled)["agreement_with_labels"].isna().all()
