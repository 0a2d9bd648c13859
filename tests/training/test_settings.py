"""Settings of training: a teacher is trained or given, and a student may be of its own size."""

from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.training.settings import (
    ArmParams,
    Quantisation,
    StudentParams,
    TeacherParams,
)

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


@pytest.mark.parametrize("block", ["int8", {"name": "int8"}])
def test_quantisation_goes_by_its_name_or_a_block(block: Any) -> None:
    student = StudentParams(**TRAINED, quantisation=block)
    assert student.quantisation == Quantisation(name="int8", num_epochs=5, lr_factor=0.1)
    assert StudentParams.model_validate(student.model_dump()) == student
    assert StudentParams(**TRAINED).quantisation is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantisation": "int4"}, "Input should be 'int8'"),
        ({"quantisation": {"num_epochs": 3}}, r"quantisation.name\n  Field required"),
        ({"quantisation": {"name": "int8", "lr_factor": 0}}, "greater than 0"),
        ({"quantisation": {"name": "int8", "epochs": 3}}, "Extra inputs"),
        (
            {"quantisation": "int8", "training": {"num_epochs": 1, "max_weight_norm": 2.0}},
            "`training.max_weight_norm` must be null with `quantisation`.* got 2.0",
        ),
    ],
)
def test_what_is_no_quantisation_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StudentParams(**(TRAINED | changes))
