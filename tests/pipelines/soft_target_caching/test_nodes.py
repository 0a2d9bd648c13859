"""The caching nodes: the final schema, and provenance of all that matters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.errors import CheckpointError, ParameterError, TeacherTooWeakError
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.pipelines.soft_target_caching.nodes import cache_soft_targets
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.views.policy import RENDERING
from kd_pipeline.views.settings import ViewsParams

PARAMS = SoftTargetCachingParams(batch_size=7, device="cpu", rows_per_part=50)
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
def given(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame, tmp_path: Path
) -> dict[str, Any]:
    """What the node takes beside the teacher."""
    return {
        "images": images,
        "examples": examples,
        "splits": splits,
        "parts": PartsFolder(tmp_path / "parts"),
        "params": PARAMS,
        "views": VIEWS,
        "reading": SoftTargetsParams(),
    }


@pytest.fixture
def made(teacher: list[ModelCheckpoint], given: dict[str, Any]) -> SoftTargets:
    return cache_soft_targets(teacher, **given)


def test_every_member_view_and_transfer_example_has_a_row_and_no_other(
    made: SoftTargets, splits: pd.DataFrame
) -> None:
    ids = ids_with_role(splits, "transfer").tolist()
    rows = [(p.member, p.view, e) for p in made.parts() for e in p.example_ids.tolist()]
    assert rows == [(t, v, e) for t in (0, 1) for v in (0, 1) for e in ids]
    assert made.manifest.num_rows == 4 * len(ids)
    assert all(part.num_rows <= 50 for part in made.manifest.parts)


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
        "rendering": RENDERING,
    }
    assert provenance.num_views == 2


def test_a_smoothed_teacher_is_remembered(given: dict[str, Any]) -> None:
    """So that a student at a temperature above 1 can be warned of it."""
    plain = member(0, given["images"].class_names)
    smoothed = replace(plain, facts={"parameters": {"label_smoothing": 0.1}})
    for teacher, expected in (([plain], 0.0), ([plain, smoothed], 0.1)):
        made = cache_soft_targets(teacher, **given)
        assert made.manifest.facts["teacher_label_smoothing"] == expected


def test_the_batch_size_changes_nothing(
    teacher: list[ModelCheckpoint], given: dict[str, Any], tmp_path: Path
) -> None:
    small = cache_soft_targets(teacher, **given)
    given |= {"params": PARAMS.model_copy(update={"batch_size": 1000})}
    whole = cache_soft_targets(teacher, **given | {"parts": PartsFolder(tmp_path / "whole")})
    for one, other in zip(small.parts(), whole.parts(), strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=2e-3)


def test_a_teacher_of_other_classes_labels_nothing(given: dict[str, Any]) -> None:
    other = member(0, given["images"].class_names[::-1])
    with pytest.raises(CheckpointError, match="class 0 is 'high' where the images have 'low'"):
        cache_soft_targets([other], **given)


def test_a_teacher_below_the_bar_labels_nothing(
    teacher: list[ModelCheckpoint], given: dict[str, Any], tmp_path: Path
) -> None:
    """Untrained, it guesses."""
    given |= {"params": PARAMS.model_copy(update={"min_validation_accuracy": 0.99})}
    with pytest.raises(TeacherTooWeakError, match=r"min_validation_accuracy` is 0\.99"):
        cache_soft_targets(teacher, **given)
    assert not (tmp_path / "parts").exists()
    given |= {"params": PARAMS.model_copy(update={"min_validation_accuracy": 0.0})}
    assert cache_soft_targets(teacher, **given).manifest.num_rows > 0


def test_fresh_views_are_refused(teacher: list[ModelCheckpoint], given: dict[str, Any]) -> None:
    given |= {"views": VIEWS.model_copy(update={"num_views": None})}
    with pytest.raises(ParameterError, match=r"`views\.num_views` must be a number .*got None"):
        cache_soft_targets(teacher, **given)


def test_the_encoding_is_that_of_the_parameters(
    teacher: list[ModelCheckpoint], given: dict[str, Any]
) -> None:
    params = SoftTargetCachingParams(top_k=2, temperature=4.0, device="cpu")
    made = cache_soft_targets(teacher[:1], **given | {"params": params})
    assert (made.manifest.encoding.top_k, made.manifest.encoding.temperature) == (2, 4.0)
    assert next(made.parts()).logits.shape[1] == 2
