"""Settings of training: a teacher is trained or given, and a student may be of its own size."""

from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.training.settings import ArmParams, StudentParams, TeacherParams

TRAINED = {"model": {"name": "mlp"}, "training": {"num_epochs": 1}}
LOGITS = {"kind": "logits", "file": "logits.npz"}
CHECKPOINT = {"kind": "checkpoint", "folder": "teacher"}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "give `model` and `training`, or `given`"),
        ({"model": {"name": "mlp"}}, "give `model` and `training`, or `given`"),
        ({"given": [LOGITS, LOGITS]}, r"`num_members` must be .* `given` teachers \(2\), got 1"),
        ({"given": [LOGITS, CHECKPOINT], "num_members": 2}, "logits alone or models alone"),
        (TRAINED | {"transforms": [{"name": "mixup"}, {"name": "cutmix"}]}, "at most one of"),
        (TRAINED | {"temperature": 2.0}, "Extra inputs"),
    ],
)
def test_what_is_no_teacher_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherParams.model_validate(block)


def test_a_teacher_of_logits_is_one_without_models() -> None:
    assert len(TeacherParams(given=[LOGITS]).given_logits) == 1
    assert TeacherParams(given=[CHECKPOINT]).given_logits == ()


def test_a_student_that_teaches_replaces_just_what_it_names() -> None:
    student = StudentParams(seed=3, **TRAINED)
    assert student.for_arm(ArmParams(temperature=2.0)) == student
    own = student.for_arm(ArmParams(model={"name": "small_cnn"}, num_replicates=2))
    assert (own.model.name, own.num_replicates) == ("small_cnn", 2)
    assert (own.seed, own.training) == (student.seed, student.training)
