"""The accuracy gate: a teacher worse than the bar on validation labels nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, DataError, TeacherTooWeakError
from kd_pipeline.labelling.accuracy_gate import check_accuracy
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.soft_targets.imported import ImportedLogits
from kd_pipeline.soft_targets.settings import SoftTargetsParams


def oracle(
    data: LabelledImages, *, num_wrong: int, strength: float = 5.0, role: str = "validation"
) -> ImportedLogits:
    """Right with the given strength of logit on all but the first few of these examples."""
    ids = data.ids(role)
    labels = data.labels_of(ids).numpy()
    decided = np.where(np.arange(len(ids)) < num_wrong, (labels + 1) % 3, labels)
    logits = (strength * np.eye(3)[decided]).astype(np.float32)
    return ImportedLogits(ids, logits, data.images.class_names)


def check(
    data: LabelledImages, *teacher: Any, bar: float | None, **soft_targets: Any
) -> float | None:
    caching = SoftTargetCachingParams(batch_size=7, device="cpu", min_validation_accuracy=bar)
    return check_accuracy(teacher, data, caching, SoftTargetsParams(**soft_targets))


def test_the_bar_is_reached_or_the_run_stops(data: LabelledImages) -> None:
    count = len(data.ids("validation"))
    accuracy = (count - 3) / count
    teacher = oracle(data, num_wrong=3)
    assert check(data, teacher, bar=accuracy) == pytest.approx(accuracy)
    message = (
        r"`soft_target_caching\.min_validation_accuracy` is 0\.99, and the teacher reaches "
        rf"{accuracy:.4f} on {count} validation images"
    )
    with pytest.raises(TeacherTooWeakError, match=message):
        check(data, teacher, bar=0.99)


def test_without_a_bar_nothing_is_measured(data: LabelledImages) -> None:
    assert check(data, oracle(data, num_wrong=0, role="transfer"), bar=None) is None


def test_a_teacher_of_other_classes_is_named_as_such_and_not_as_weak(
    data: LabelledImages, untrained: Callable[..., ModelCheckpoint]
) -> None:
    with pytest.raises(CheckpointError, match=r"`teacher\.checkpoints` must have the images' cl"):
        check(data, untrained(class_names=("high", "middle", "low")), bar=1.0)


def test_members_are_one_teacher_averaged_as_for_the_students(data: LabelledImages) -> None:
    """The weaker member is always wrong: only an average that weighs it more fails."""
    right = oracle(data, num_wrong=0)
    wrong = oracle(data, num_wrong=len(data.ids("validation")), strength=4)
    assert check(data, right, wrong, bar=1.0) == 1.0
    with pytest.raises(TeacherTooWeakError, match=r"reaches 0\.0000"):
        check(data, right, wrong, bar=0.1, member_weights=(0.2, 0.8))


def test_only_labelled_validation_images_count(data: LabelledImages) -> None:
    teacher = oracle(data, num_wrong=2)
    partly = data.examples.copy()
    partly.loc[partly["example_id"].isin(data.ids("validation")[:2]), "label"] = pd.NA
    assert check(replace(data, examples=partly), teacher, bar=1.0) == 1.0
    none = data.examples.assign(label=pd.array([pd.NA] * len(partly), dtype="Int64"))
    with pytest.raises(DataError, match="needs validation images with labels, got none"):
        check(replace(data, examples=none), teacher, bar=0.0)


def test_imported_logits_that_leave_validation_out_cannot_be_judged(data: LabelledImages) -> None:
    with pytest.raises(DataError, match="must cover the validation set, on which `soft_target"):
        check(data, oracle(data, num_wrong=0, role="transfer"), bar=0.5)
