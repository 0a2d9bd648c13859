"""Nodes of teacher training."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from kd_pipeline.training.block_settings import TeacherParams

if TYPE_CHECKING:
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.models.state_folder import StateFolder
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    ImageSet = ModelCheckpoint = StateFolder = object


def train_teacher(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    training_states: StateFolder,
    params: TeacherParams,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train the teacher's members, or adopt given ones.

    Args:
        images: The pixels.
        examples: The labels.
        splits: Whose role `teacher_train` is trained on.
        training_states: From which a killed run resumes.
        params: `teacher` in parameters_teacher_training.yml.

    Returns:
        One checkpoint per member, and the history (empty for given teachers).
    """
    from kd_pipeline.tracking.fetch import fetched
    from kd_pipeline.training.data import TrainingData
    from kd_pipeline.training.settings import TrainingSettings
    from kd_pipeline.training.teachers import HISTORY_COLUMNS, adopt_given, train_teachers

    data = TrainingData(images, examples, splits)
    settings = params.model_dump(mode="json")
    if params.given:
        with fetched(settings["given"]) as given:
            return adopt_given(data, given), pd.DataFrame(columns=HISTORY_COLUMNS)
    checkpoints, history = train_teachers(
        data,
        model=settings["model"],
        pretrained=settings["pretrained"],
        settings=TrainingSettings(**settings["training"]),
        label_smoothing=params.label_smoothing,
        transforms=settings["transforms"],
        seed=params.seed,
        num_members=params.num_members,
        parameters=settings,
        states=training_states,
    )
    return checkpoints, history


def describe_teacher(checkpoints: list[ModelCheckpoint]) -> dict[str, Any]:
    """Put the teacher's identity on a card that outlives its weights.

    The students check their soft targets against the card, so that a cache of an older teacher
    is refused and yet the teacher's own files are never opened.

    Args:
        checkpoints: One per member.
    """
    from kd_pipeline.models.checkpoint import identity_card

    return identity_card(checkpoints)
