"""The accuracy gate: a teacher worse than the bar on validation labels nothing."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.errors import DataError, TeacherTooWeakError
from kd_pipeline.labelling.accuracy_gate import check_accuracy, validation_accuracy
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.imported_logits import imported_checkpoint
from kd_pipeline.soft_targets.ensemble import Mixing


def oracle(
    images: ImageSet, examples: pd.DataFrame, ids: np.ndarray, *, num_wrong: int, strength: float
) -> ModelCheckpoint:
    """Right with the given strength of logit on all but the first few of these examples."""
    labels = examples.set_index("example_id")["label"].reindex(ids).to_numpy(int)
    told = np.where(np.arange(len(ids)) < num_wrong, (labels + 1) % 3, labels)
    return imported_checkpoint(
        ids,
        (strength * np.eye(3)[told]).astype(np.float32),
        class_names=images.class_names,
        shape=(1, 8, 8),
        images_fingerprint=images.fingerprint,
        facts={},
    )


def measure(
    teacher: list[ModelCheckpoint],
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    *,
    bar: float,
    mixing: Mixing | None = None,
) -> float:
    return check_accuracy(
        teacher,
        images,
        examples,
        splits,
        bar=bar,
        mixing=mixing or Mixing(),
        batch_size=7,
        device="cpu",
        precision="float32",
    )


def test_the_bar_is_reached_or_the_run_stops(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame
) -> None:
    ids = ids_with_role(splits, "validation")
    teacher = [oracle(images, examples, ids, num_wrong=3, strength=5)]
    accuracy = (len(ids) - 3) / len(ids)
    assert measure(teacher, images, examples, splits, bar=accuracy) == pytest.approx(accuracy)
    message = (
        r"`soft_target_caching\.min_validation_accuracy` is 0\.99, and the teacher reaches "
        rf"{accuracy:.4f} on {len(ids)} validation images"
    )
    with pytest.raises(TeacherTooWeakError, match=message):
        measure(teacher, images, examples, splits, bar=0.99)


def test_members_are_one_teacher_mixed_as_the_students_mix_them(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame
) -> None:
    """The weaker voice is always wrong: only a mixture that heeds it more than the other fails."""
    ids = ids_with_role(splits, "validation")
    right = oracle(images, examples, ids, num_wrong=0, strength=5)
    wrong = oracle(images, examples, ids, num_wrong=len(ids), strength=4)
    data = images, examples, splits
    assert measure([right, wrong], *data, bar=1.0) == 1.0
    weighted = Mixing(weights=(0.2, 0.8))
    with pytest.raises(TeacherTooWeakError, match=r"reaches 0\.0000"):
        measure([right, wrong], *data, bar=0.1, mixing=weighted)


def test_only_labelled_validation_images_count(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame
) -> None:
    ids = ids_with_role(splits, "validation")
    teacher = [oracle(images, examples, ids, num_wrong=2, strength=5)]
    partly = examples.copy()
    partly.loc[partly["example_id"].isin(ids[:2]), "label"] = pd.NA
    assert measure(teacher, images, partly, splits, bar=1.0) == 1.0
    none = examples.assign(label=pd.array([pd.NA] * len(examples), dtype="Int64"))
    with pytest.raises(DataError, match="needs validation images with labels, got none"):
        measure(teacher, images, none, splits, bar=0.0)


def test_imported_logits_that_leave_validation_out_cannot_be_judged(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame
) -> None:
    ids = ids_with_role(splits, "transfer")
    teacher = [oracle(images, examples, ids, num_wrong=0, strength=5)]
    with pytest.raises(DataError, match="must cover the validation set, on which `soft_target"):
        measure(teacher, images, examples, splits, bar=0.5)


def test_measuring_alone_knows_no_bar(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame
) -> None:
    ids = ids_with_role(splits, "validation")
    settings: dict[str, Any] = {"batch_size": 7, "device": "cpu", "precision": "float32"}

    def accuracy(of: np.ndarray, labels: pd.DataFrame) -> float:
        model = [oracle(images, examples, of, num_wrong=3, strength=5)]
        return validation_accuracy(model, images, labels, splits, mixing=Mixing(), **settings)

    none = examples.assign(label=pd.array([pd.NA] * len(examples), dtype="Int64"))
    assert accuracy(ids, examples) == pytest.approx((len(ids) - 3) / len(ids))
    assert math.isnan(accuracy(ids, none))
    assert math.isnan(accuracy(ids[1:], examples))
    partly = examples.copy()
    partly.loc[partly["example_id"] == ids[0], "label"] = pd.NA
    assert accuracy(ids[1:], partly) == pytest.approx((len(ids) - 4) / (len(ids) - 1))
