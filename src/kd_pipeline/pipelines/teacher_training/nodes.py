"""Node of teacher training."""

from typing import TYPE_CHECKING, Any

from kd_pipeline.training.settings import TeacherParams

if TYPE_CHECKING:
    from pandas import DataFrame

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.memory import MemoryBudget
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.models.state_folder import StateFolder
    from kd_pipeline.tracking.store import Store
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    DataFrame = ImageSet = MemoryBudget = ModelCheckpoint = StateFolder = Store = object


def train_teacher(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    training_states: StateFolder,
    tracking_store: Store,
    memory_budget: MemoryBudget,
    params: TeacherParams,
) -> tuple[list[ModelCheckpoint], DataFrame, dict[str, Any]]:
    """Train the teacher's members on the role `teacher_train`, or adopt given ones.

    A killed run resumes from `training_states`; given teachers in MLflow are fetched from
    `tracking_store`.

    Returns:
        One checkpoint per member (none where its logits were computed elsewhere), the history
        (empty for given teachers), and a card with the members' fingerprints: students check
        their soft targets against it, and so never need the teacher's weights.
    """
    import pandas as pd

    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.labelling.members import identity_card, read_given_logits
    from kd_pipeline.tracking.fetch import fetched
    from kd_pipeline.training.teachers import HISTORY_COLUMNS, adopt_given, train_teachers

    data = LabelledImages(images, examples, splits)
    no_history = pd.DataFrame(columns=HISTORY_COLUMNS)
    if params.given_logits:
        imported = read_given_logits(params.given_logits, data)
        return [], no_history, identity_card(imported, images.class_names)
    if params.given:
        with fetched(params.given, tracking_store) as models:
            checkpoints = adopt_given(data, params.given, models)
        return checkpoints, no_history, identity_card(checkpoints, images.class_names)
    checkpoints, history = train_teachers(data, params, training_states, memory_budget)
    return checkpoints, history, identity_card(checkpoints, images.class_names)
