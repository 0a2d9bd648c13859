"""Nodes of student distillation. Only the one for a live teacher ever opens the teacher."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import ArmParams, StudentParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from pandas import DataFrame

    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.memory import MemoryBudget
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.models.state_folder import StateFolder
    from kd_pipeline.soft_targets.store import SoftTargets
    from kd_pipeline.training.teacher_sources import Teacher
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    DataFrame = ImageSet = MemoryBudget = ModelCheckpoint = StateFolder = SoftTargets = object


def train_on_labels(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    training_states: StateFolder,
    memory_budget: MemoryBudget,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    soft_target_params: SoftTargetsParams,
) -> tuple[list[ModelCheckpoint], DataFrame]:
    """Train the replicates of an arm that has no teacher.

    All arms share `student` and `views`; a killed run resumes from `training_states`.
    `soft_target_params` are only logged, so that all arms have the same parameters.

    Returns:
        One checkpoint per replicate, and the history.
    """
    from kd_pipeline.data.dataset import LabelledImages

    data = LabelledImages(images, examples, splits)
    return _train(data, student, arm, views, training_states, memory_budget, soft_target_params)


def train_at_teacher_cost(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    checkpoints: list[ModelCheckpoint],
    training_states: StateFolder,
    memory_budget: MemoryBudget,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    soft_target_params: SoftTargetsParams,
) -> tuple[list[ModelCheckpoint], DataFrame]:
    """Train, as `train_on_labels`, for as many further epochs as the teacher costs.

    Of the teacher, only what it computes is counted: its logits are never used.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.training.teacher_cost import epochs_of_teacher_cost

    data = LabelledImages(images, examples, splits)
    extra = epochs_of_teacher_cost(checkpoints, data, student, views)
    return _train(
        data,
        student,
        arm,
        views,
        training_states,
        memory_budget,
        soft_target_params,
        extra_epochs=extra,
    )


def train_on_soft_targets(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    soft_targets: SoftTargets,
    teacher_card: Mapping[str, Any],
    training_states: StateFolder,
    memory_budget: MemoryBudget,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    soft_target_params: SoftTargetsParams,
) -> tuple[list[ModelCheckpoint], DataFrame]:
    """Train, as `train_on_labels`, an arm that learns from a teacher's cached logits.

    The cache is refused unless it was made from this run's data by the teacher of the card.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.training.teacher_sources import CachedTeacher

    data = LabelledImages(images, examples, splits)
    teacher = CachedTeacher(soft_targets, soft_target_params, teacher_card["fingerprints"])
    return _train(
        data, student, arm, views, training_states, memory_budget, soft_target_params, teacher
    )


def train_on_live_teacher(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    checkpoints: list[ModelCheckpoint],
    training_states: StateFolder,
    memory_budget: MemoryBudget,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    soft_target_params: SoftTargetsParams,
    caching: SoftTargetCachingParams,
) -> tuple[list[ModelCheckpoint], DataFrame]:
    """Train, as `train_on_labels`, an arm beside which the teacher runs, batch by batch.

    The teacher's precision and least accuracy are those of `caching`; its temperature is fitted on
    validation, as before a caching.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.labelling.validation import validate_teacher
    from kd_pipeline.training.teacher_sources import LiveTeacher

    data = LabelledImages(images, examples, splits)
    # First, as it refuses imported logits, which the accuracy alone would not show.
    teacher = LiveTeacher(checkpoints, soft_target_params, caching.precision)
    calibration = validate_teacher(checkpoints, data, caching, soft_target_params)
    teacher = replace(teacher, calibration=calibration)
    return _train(
        data, student, arm, views, training_states, memory_budget, soft_target_params, teacher
    )


def _train(
    data: "LabelledImages",
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    states: StateFolder,
    budget: MemoryBudget,
    soft_target_params: SoftTargetsParams,
    teacher: "Teacher | None" = None,
    extra_epochs: int = 0,
) -> tuple[list[ModelCheckpoint], DataFrame]:
    from kd_pipeline.training.students import train_students

    logged = {"soft_targets": soft_target_params.model_dump(mode="json")}
    return train_students(
        data,
        student,
        arm,
        views,
        teacher=teacher,
        states=states,
        parameters=logged,
        extra_epochs=extra_epochs,
        budget=budget,
    )


def make_trainer_of_teaching_student(
    name: str, train: Callable[..., tuple[list[ModelCheckpoint], DataFrame]]
) -> Callable[..., tuple[list[ModelCheckpoint], DataFrame, dict[str, Any]]]:
    """Make the node function of a student that teaches others, such as a teacher assistant.

    Its name is part of its seeds: it starts from weights of its own, while all students that are
    compared start alike. It trains as `train` does, and returns the student's card too. Its logits
    are computed in float: it is not fine-tuned for int8.
    """

    @wraps(train)
    def train_teaching_student(
        *, images: ImageSet, student: StudentParams, **rest: Any
    ) -> tuple[list[ModelCheckpoint], DataFrame, dict[str, Any]]:
        from kd_pipeline.labelling.members import identity_card
        from kd_pipeline.randomness import derive_seed

        # The spelling of the keys is part of every seed.
        seed = derive_seed(student.seed, "hop", name)
        own = student.model_copy(update={"seed": seed, "quantisation": None})
        checkpoints, history = train(images=images, student=own, **rest)
        return checkpoints, history, identity_card(checkpoints, images.class_names)

    # Kedro reads the order and the types of a node's inputs off the signature.
    vars(train_teaching_student)["__signature__"] = inspect.signature(train)
    return train_teaching_student
