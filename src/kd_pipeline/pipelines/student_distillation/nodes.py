"""Nodes of student distillation. None of them ever opens the teacher."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from kd_pipeline.parameters import ArmParams, StudentParams, ViewsParams

if TYPE_CHECKING:
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.models.state_folder import StateFolder
    from kd_pipeline.soft_targets.store import SoftTargets
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    ImageSet = ModelCheckpoint = StateFolder = SoftTargets = object


def train_on_labels(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    training_states: StateFolder,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
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

    Returns:
        One checkpoint per replicate, and the history.
    """
    return _train(images, examples, splits, training_states, student, arm, views, None)


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

    Returns:
        One checkpoint per replicate, and the history.
    """
    from kd_pipeline.soft_targets.manifest import check_provenance

    check_provenance(
        soft_targets.manifest.provenance, teacher_fingerprints=teacher_card["fingerprints"]
    )
    return _train(images, examples, splits, training_states, student, arm, views, soft_targets)


def _train(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    training_states: StateFolder,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    soft_targets: SoftTargets | None,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    from kd_pipeline.data.views import ViewPolicy
    from kd_pipeline.losses.objective import Objective
    from kd_pipeline.training.settings import TrainingSettings
    from kd_pipeline.training.students import TrainingData, train_students

    shared, own = student.model_dump(mode="json"), arm.model_dump(mode="json")
    seen = views.model_dump(mode="json")
    checkpoints, history = train_students(
        TrainingData(images, examples, splits),
        soft_targets=soft_targets,
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
        parameters={**shared, **own, "views": seen},
        states=training_states,
    )
    return checkpoints, history
