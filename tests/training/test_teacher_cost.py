"""What a teacher costs in epochs of a student."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.splits import student_rows
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.settings import StudentParams, TeacherParams
from kd_pipeline.training.teacher_cost import epochs_of_teacher_cost
from kd_pipeline.training.teachers import train_teachers
from kd_pipeline.views.settings import ViewsParams

VIEWS = ViewsParams(num_views=3, transforms=[{"name": "horizontal_flip"}])


def mlp(width: int) -> dict[str, Any]:
    return {"name": "mlp", "arguments": {"hidden": [width]}}


def macs(width: int, data: LabelledImages) -> int:
    pixels = math.prod(data.images.pixels.shape[1:])
    return width * (pixels + len(data.images.class_names))


@pytest.fixture
def student() -> StudentParams:
    return StudentParams(model=mlp(2), training={"num_epochs": 2, "batch_size": 16})


@pytest.fixture
def teachers(data: LabelledImages, tmp_path: Path) -> list[ModelCheckpoint]:
    training = {"num_epochs": 4, "batch_size": 8, "device": "cpu"}
    params = TeacherParams(num_members=2, model=mlp(10), training=training)
    checkpoints, _ = train_teachers(data, params, states=StateFolder(tmp_path))
    return checkpoints


def test_training_costs_three_passes_and_labelling_one(
    data: LabelledImages, student: StudentParams, teachers: list[ModelCheckpoint]
) -> None:
    rows, of_teacher = len(student_rows(data.splits)), macs(10, data)
    shown = teachers[0].facts["steps"] * 8
    assert shown == 4 * 8 * math.ceil(len(data.ids("teacher_train")) / 8)
    spent = 2 * of_teacher * (3 * shown + 3 * rows)
    epoch = 3 * macs(2, data) * 16 * math.ceil(rows / 16)
    assert epochs_of_teacher_cost(teachers, data, student, VIEWS) == math.ceil(spent / epoch)


def test_of_a_given_teacher_without_record_only_labelling_is_counted(
    data: LabelledImages,
    student: StudentParams,
    teachers: list[ModelCheckpoint],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    given = [replace(teacher, facts={}) for teacher in teachers]
    # Two members, five times the width, three views, a third of a training's passes.
    whole = {"batch_size": len(student_rows(data.splits))}
    training = student.training.model_copy(update=whole)
    student = student.model_copy(update={"training": training})
    assert epochs_of_teacher_cost(given, data, student, VIEWS) == 2 * 5 * 3 // 3
    assert "the training of a given teacher is not on record" in caplog.text
    assert "as much as 10 epochs" in caplog.text


def test_labelling_is_of_the_transfer_set_alone(
    data: LabelledImages, student: StudentParams, teachers: list[ModelCheckpoint]
) -> None:
    transfer = data.splits.index[data.splits["role"] == "transfer"]
    few = replace(data, splits=data.splits.drop(transfer[::2]))
    given = [replace(teacher, facts={}) for teacher in teachers]
    labelled = len(few.ids("transfer")) * 3
    assert len(student_rows(few.splits)) > len(few.ids("transfer"))
    epoch = 3 * macs(2, data) * 16 * math.ceil(len(student_rows(few.splits)) / 16)
    spent = 2 * macs(10, data) * labelled
    assert epochs_of_teacher_cost(given, few, student, VIEWS) == math.ceil(spent / epoch)
