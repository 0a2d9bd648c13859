"""Nodes of student distillation. Only the one for a live teacher ever opens the teacher."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.block_settings import ArmParams, StudentParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.models.state_folder import StateFolder
    from kd_pipeline.soft_targets.ensemble import Mixing
    from kd_pipeline.soft_targets.store import SoftTargets
    from kd_pipeline.training.teacher_sources import Teacher
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    ImageSet = ModelCheckpoint = StateFolder = SoftTargets = Mixing = Teacher = object


def train_on_labels(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    training_states: StateFolder,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    reading: SoftTargetsParams,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train the replicates of an arm that has no teacher.

    Args:
        images: The pixels.
        examples: The labels.
        splits: Which rows are open to students, and which of their labels.
        training_states: From which a killed run resumes.
        student: `student`, what all arms share.
        arm: The arm's own block.
        views: `views`, what all arms see.
        reading: `soft_targets`: only told, so that all arms have the same parameters.

    Returns:
        One checkpoint per replicate, and the history.
    """
    return _train(images, examples, splits, training_states, student, arm, views, reading, None)


def train_on_soft_targets(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    soft_targets: SoftTargets,
    teacher_card: Mapping[str, Any],
    training_states: StateFolder,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    reading: SoftTargetsParams,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train the replicates of an arm that learns from the teacher's cached logits.

    Args:
        images: The pixels.
        examples: The labels.
        splits: Which rows are open to students, and which of their labels.
        soft_targets: The cache; refused unless it matches all the others.
        teacher_card: The identity of the teacher that is in force; not its weights.
        training_states: From which a killed run resumes.
        student: `student`, what all arms share.
        arm: The arm's own block.
        views: `views`, what all arms see.
        reading: `soft_targets`, how members are mixed and a tail is read.

    Returns:
        One checkpoint per replicate, and the history.
    """
    from kd_pipeline.soft_targets.manifest import check_provenance
    from kd_pipeline.training.teacher_sources import CachedTeacher

    check_provenance(
        soft_targets.manifest.provenance, teacher_fingerprints=teacher_card["fingerprints"]
    )
    teacher = CachedTeacher(soft_targets, _mixing(reading), reading.tail)
    return _train(images, examples, splits, training_states, student, arm, views, reading, teacher)


def train_on_live_teacher(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    checkpoints: list[ModelCheckpoint],
    training_states: StateFolder,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    reading: SoftTargetsParams,
    caching: SoftTargetCachingParams,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train the replicates of an arm beside which the teacher runs, batch by batch.

    Args:
        images: The pixels.
        examples: The labels.
        splits: Which rows are open to students, and which of their labels.
        checkpoints: The teacher's members.
        training_states: From which a killed run resumes.
        student: `student`, what all arms share.
        arm: The arm's own block.
        views: `views`, what all arms see; `num_views: null` shows a fresh one in every pass.
        reading: `soft_targets`, how members are mixed.
        caching: For the precision in which a teacher labels, and the bar that it must reach.

    Returns:
        One checkpoint per replicate, and the history.

    Raises:
        TeacherTooWeakError: If `soft_target_caching.min_validation_accuracy` is not reached.
    """
    from kd_pipeline.labelling.accuracy_gate import check_accuracy
    from kd_pipeline.training.teacher_sources import LiveTeacher

    mixing, bar = _mixing(reading), caching.min_validation_accuracy
    if bar is not None:
        computing = caching.model_dump(include={"batch_size", "device", "precision"})
        check_accuracy(checkpoints, images, examples, splits, bar=bar, mixing=mixing, **computing)
    teacher = LiveTeacher(checkpoints, mixing, caching.precision)
    return _train(images, examples, splits, training_states, student, arm, views, reading, teacher)


def _mixing(reading: SoftTargetsParams) -> Mixing:
    from kd_pipeline.soft_targets.ensemble import Mixing

    return Mixing(reading.mixing, reading.member_weights)


def _train(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    training_states: StateFolder,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    reading: SoftTargetsParams,
    teacher: Teacher | None,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    from kd_pipeline.losses.objective import Objective
    from kd_pipeline.training.data import TrainingData
    from kd_pipeline.training.settings import TrainingSettings
    from kd_pipeline.training.students import train_students
    from kd_pipeline.views import ViewPolicy

    shared, own = student.model_dump(mode="json"), arm.model_dump(mode="json")
    told = {"views": views.model_dump(mode="json"), "soft_targets": reading.model_dump(mode="json")}
    checkpoints, history = train_students(
        TrainingData(images, examples, splits),
        teacher=teacher,
        objective=Objective(
            soft_weight=arm.soft_weight,
            soft_loss=arm.soft_loss,
            temperature=arm.temperature,
            label_smoothing=arm.label_smoothing,
        ),
        model=shared["model"],
        settings=TrainingSettings(**shared["training"]),
        seed=student.seed,
        num_replicates=student.num_replicates,
        policy=ViewPolicy(**views.policy_arguments()),
        num_views=views.num_views,
        parameters={**shared, **own, **told},
        states=training_states,
    )
    return checkpoints, history
