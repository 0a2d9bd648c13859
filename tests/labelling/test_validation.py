"""The accuracy gate and the fitted temperature: what a teacher reaches on validation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, DataError, TeacherTooWeakError
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.validation import fit_calibration, validate_teacher
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.soft_targets.ensemble import average_logits
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


def check(data: LabelledImages, *teacher: Any, bar: float | None, **soft_targets: Any) -> None:
    caching = SoftTargetCachingParams(batch_size=7, device="cpu", min_validation_accuracy=bar)
    validate_teacher(teacher, data, caching, SoftTargetsParams(**soft_targets))


def test_the_bar_is_reached_or_the_run_stops(data: LabelledImages) -> None:
    count = len(data.ids("validation"))
    accuracy = (count - 3) / count
    teacher = oracle(data, num_wrong=3)
    check(data, teacher, bar=accuracy)
    message = (
        r"`soft_target_caching\.min_validation_accuracy` is 0\.99, and the teacher reaches "
        rf"{accuracy:.4f} on {count} validation images"
    )
    with pytest.raises(TeacherTooWeakError, match=message):
        check(data, teacher, bar=0.99)


def test_imported_logits_without_validation_rows_need_no_bar(data: LabelledImages) -> None:
    check(data, oracle(data, num_wrong=0, role="transfer"), bar=None)


def test_a_teacher_of_other_classes_is_named_as_such_and_not_as_weak(
    data: LabelledImages, untrained: Callable[..., ModelCheckpoint]
) -> None:
    with pytest.raises(CheckpointError, match=r"`teacher\.checkpoints` must have the images' cl"):
        check(data, untrained(class_names=("high", "middle", "low")), bar=1.0)


def test_members_are_one_teacher_averaged_as_for_the_students(data: LabelledImages) -> None:
    """The weaker member is always wrong: only an average that weighs it more fails."""
    right = oracle(data, num_wrong=0)
    wrong = oracle(data, num_wrong=len(data.ids("validation")), strength=4)
    check(data, right, wrong, bar=1.0)
    with pytest.raises(TeacherTooWeakError, match=r"reaches 0\.0000"):
        check(data, right, wrong, bar=0.1, member_weights=(0.2, 0.8))


def test_only_labelled_validation_images_count(data: LabelledImages) -> None:
    teacher = oracle(data, num_wrong=2)
    partly = data.examples.copy()
    partly.loc[partly["example_id"].isin(data.ids("validation")[:2]), "label"] = pd.NA
    check(replace(data, examples=partly), teacher, bar=1.0)
    none = data.examples.assign(label=pd.array([pd.NA] * len(partly), dtype="Int64"))
    with pytest.raises(DataError, match="needs validation images with labels, got none"):
        check(replace(data, examples=none), teacher, bar=0.0)


def test_imported_logits_that_leave_validation_out_cannot_be_judged(data: LabelledImages) -> None:
    with pytest.raises(DataError, match="must cover the validation set, on which `soft_target"):
        check(data, oracle(data, num_wrong=0, role="transfer"), bar=0.5)


def test_the_fitted_temperature_of_a_teacher_whose_logits_are_too_large(
    data: LabelledImages,
) -> None:
    """Right on 8 of 9 with one strength: at the best temperature its confidence is 8/9."""
    count = len(data.ids("validation"))
    caching = SoftTargetCachingParams(batch_size=7, device="cpu")
    teacher = oracle(data, num_wrong=1, strength=20.0)
    calibration = validate_teacher([teacher], data, caching, SoftTargetsParams())
    assert calibration is not None
    fitted = calibration.temperatures
    best = 20.0 / np.log(2 * (count - 1))  # The odds are count - 1, of two other classes each.
    assert fitted == {"geometric": pytest.approx(best, rel=1e-3), "arithmetic": fitted["geometric"]}
    assert calibration.shares == (1.0,)
    assert calibration.num_examples == count


@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
def test_the_average_of_the_members_is_calibrated_and_not_each_of_them(kind: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 500, 3, generator=generator)
    labels = torch.randint(0, 3, (500,), generator=generator)
    labels[:300] = logits.mean(0).argmax(-1)[:300]
    params = SoftTargetsParams(ensemble_average=kind, member_weights=(3.0, 1.0))
    fitted = fit_calibration(logits, labels, params)
    assert fitted is not None
    assert fitted.shares == (0.75, 0.25)
    average = average_logits(logits, params, temperature=1.0).double()

    def nll(temperature: float) -> float:
        return torch.nn.functional.cross_entropy(average / temperature, labels).item()

    best = fitted.temperatures[kind]
    assert nll(best) < min(nll(0.95 * best), nll(1.05 * best), nll(1.0))


def test_a_temperature_that_validation_does_not_determine_is_refused_where_it_is_asked_for(
    data: LabelledImages,
) -> None:
    teacher, caching = oracle(data, num_wrong=0), SoftTargetCachingParams(device="cpu")
    assert validate_teacher([teacher], data, caching, SoftTargetsParams()) is None
    asked = SoftTargetsParams(teacher_calibration="temperature")
    with pytest.raises(DataError, match="some but not most of which"):
        validate_teacher([teacher], data, caching, asked)
    elsewhere = oracle(data, num_wrong=0, role="transfer")
    with pytest.raises(DataError, match=r"on which `soft_targets\.teacher_calibration` is meas"):
        validate_teacher([elsewhere], data, caching, asked)
