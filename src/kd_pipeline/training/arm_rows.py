"""Which rows an arm learns from."""

import numpy as np
import pandas as pd
import torch

from kd_pipeline.errors import DataError
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.predict import resolve_device
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.rows import TrainingRows
from kd_pipeline.training.settings import TrainingSettings


def arm_rows(
    data: TrainingData,
    open_rows: pd.DataFrame,
    objective: Objective,
    settings: TrainingSettings,
    *,
    has_teacher: bool,
) -> TrainingRows:
    """The rows that an arm can learn from: those with a label or a soft target that it uses.

    Args:
        data: Images, examples and splits.
        open_rows: As `student_rows` gives them.
        objective: The arm's loss.
        settings: How it trains.
        has_teacher: Whether the transfer set has soft targets for it.

    Raises:
        DataError: If no row is left.
    """
    device = resolve_device(settings.device)
    ids = open_rows["example_id"].to_numpy(np.int64)
    in_transfer = torch.tensor(open_rows["in_transfer"].to_list())
    use_label = torch.tensor(open_rows["use_label"].to_list())
    labels = data.labels_of(ids).where(use_label, NO_LABEL)
    has_soft = in_transfer & (has_teacher and objective.soft_weight > 0)
    used = has_soft | ((labels != NO_LABEL) & (objective.soft_weight < 1))
    if not used.any():
        raise DataError(
            "no example is left to learn from: no student row has a usable label; set "
            "`transfer_split.transfer.labelled` or leave the arm out"
        )
    kept, has_soft = ids[used.numpy()], has_soft[used]
    return TrainingRows(
        example_ids=torch.as_tensor(kept).to(device),
        pixels_of=data.pixels_of(kept, settings),
        labels=labels[used].to(device),
        has_soft_target=None if bool(has_soft.all()) else has_soft.to(device),
    )
