"""Students: one arm's replicates, alike in everything but seed, and alike between arms."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.splits import student_rows
from kd_pipeline.errors import ParameterError
from kd_pipeline.memory import MemoryBudget, open_budget
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed
from kd_pipeline.training.engine import TrainingPlan
from kd_pipeline.training.initial import initial_model
from kd_pipeline.training.rows import arm_rows, make_rows, transfer_partners
from kd_pipeline.training.settings import OF_TEACHING_STUDENTS, ArmParams, StudentParams
from kd_pipeline.training.teacher_sources import Teacher
from kd_pipeline.training.trainer import train_each
from kd_pipeline.views.settings import ViewsParams


def train_students(
    data: LabelledImages,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    *,
    teacher: Teacher | None,
    states: StateFolder,
    parameters: Mapping[str, Any] | None = None,
    extra_epochs: int = 0,
    budget: MemoryBudget | None = None,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train one arm's replicates.

    Initial weights, batch order, views and number of steps depend on nothing of the arm: two
    arms that learn from the same rows are shown the same batches.

    A killed run resumes from `states`. `parameters` are further settings to log and to keep with
    the checkpoints; `teacher` is None for arms that learn from labels alone; `extra_epochs` are
    those of a control beyond what all arms share. Pixels and soft targets are held in memory while
    they fit the `budget`; None is `auto`.

    Returns:
        One checkpoint per replicate, and the history: a row per replicate and epoch.

    Raises:
        ParameterError: If the arm asks for a teacher and has none.
    """
    shared = student.for_arm(arm)
    student = shared.longer(extra_epochs)
    _check_teacher(teacher, data, arm, views)
    plan = _plan(data, student, arm, views, teacher, budget or open_budget())
    ids = student_rows(data.splits)["example_id"].to_numpy()
    initial = initial_model(data, student.model, student.pretrained, ids)
    facts: dict[str, Any] = {
        "teacher": list(teacher.fingerprints) if teacher else [],
        "teacher_ensemble": _ensemble(teacher),
        "parameters": _parameters(student, arm, views) | dict(parameters or {}),
        # Evaluation refuses to compare arms that differ in any of these; `extra_epochs` is apart.
        "shared": {
            "seed": student.seed,
            "model": student.model.model_dump(mode="json"),
            **initial.provenance,
            "training": shared.training.model_dump(mode="json"),
            "views": plan.views_description,
        },
    }
    if extra_epochs:
        facts["extra_epochs"] = extra_epochs
    return train_each(
        _replicates(plan, student),
        initial=initial,
        data=data,
        model=student.model,
        facts=facts,
        states=states,
        quantisation=student.quantisation,
        costs=_caching_costs(teacher),
    )


def _check_teacher(
    teacher: Teacher | None, data: LabelledImages, arm: ArmParams, views: ViewsParams
) -> None:
    if teacher is not None:
        teacher.check(data, arm, views)
    elif arm.soft_weight > 0:
        rule = "be 0 for an arm without a teacher"
        raise ParameterError("soft_weight", rule, arm.soft_weight)


def _caching_costs(teacher: Teacher | None) -> dict[str, float]:
    caching = teacher.caching_seconds if teacher else 0.0
    return {} if caching is None else {"cost/caching_seconds": caching}


def _plan(
    data: LabelledImages,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    teacher: Teacher | None,
    budget: MemoryBudget,
) -> TrainingPlan:
    training = student.training
    # In the order in which they are given memory: validation is read least often.
    rows = arm_rows(data, arm, training, budget, has_teacher=teacher is not None)
    partners = None
    if views.policy.mixes:
        partners = transfer_partners(data, training, budget, beside=rows)
    targets = None
    if teacher is not None and arm.soft_weight > 0:
        targets = teacher.open(rows, arm, training, budget)
    return TrainingPlan(
        rows=rows,
        validation=make_rows(data, data.ids("validation"), training, budget),
        objective=arm,
        training=training,
        steps_per_epoch=math.ceil(len(student_rows(data.splits)) / training.batch_size),
        seed=student.seed,
        teacher=targets,
        policy=views.policy,
        num_views=views.num_views,
        partners=partners,
    )


def _replicates(plan: TrainingPlan, student: StudentParams) -> list[TrainingPlan]:
    numbers = range(student.num_replicates)
    seeds = (derive_seed(student.seed, "replicate", number) for number in numbers)
    return [replace(plan, seed=own, replicate=number) for number, own in enumerate(seeds)]


def _parameters(student: StudentParams, arm: ArmParams, views: ViewsParams) -> dict[str, Any]:
    """What MLflow lists of a student's settings, under the same names in every arm."""
    own = arm.model_dump(mode="json", exclude=set(OF_TEACHING_STUDENTS))
    # `train_each` adds the quantisation: the training in float, and its key, is the same without.
    # `pretrained` is left out for the same reason where it is null.
    left_out = {"quantisation", *(() if student.pretrained else ("pretrained",))}
    shared = student.model_dump(mode="json", exclude=left_out)
    return {**shared, **own, "views": views.model_dump(mode="json")}


def _ensemble(teacher: Teacher | None) -> dict[str, Any] | None:
    """How several members were averaged: part of which teacher a student learnt from."""
    if teacher is None or len(teacher.fingerprints) == 1:
        return None
    return teacher.params.describe(len(teacher.fingerprints))
