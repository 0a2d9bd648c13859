"""Accuracy on the validation set; a teacher that is too weak is stopped before it teaches."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.errors import DataError, TeacherTooWeakError
from kd_pipeline.labelling.predictor import open_predictor
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.imported_logits import check_covers, covers
from kd_pipeline.soft_targets.ensemble import Mixing, mix_logits

_BAR = "soft_target_caching.min_validation_accuracy"


def check_accuracy(
    teacher: Sequence[ModelCheckpoint],
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    *,
    bar: float,
    mixing: Mixing,
    batch_size: int,
    device: str,
    precision: str,
) -> float:
    """Measure a teacher on the validation set and refuse one below a bar.

    The clean validation images are read, never the test set. Several members are one teacher,
    mixed as the students mix them, at temperature 1.

    Args:
        teacher: One checkpoint per member.
        images: Where the pixels are.
        examples: The labels.
        splits: Whose role `validation` is read.
        bar: Accuracy that must be reached, in [0, 1].
        mixing: How members are mixed.
        batch_size: Images at a time.
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16`.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        TeacherTooWeakError: If it is below the bar.
        DataError: If no validation image has a label, or imported logits leave some of them out.
    """
    ids, _ = _labelled_validation(examples, splits)
    if len(ids) == 0:
        raise DataError(f"`{_BAR}` needs validation images with labels, got none")
    for member in teacher:
        check_covers(member, ids, what=f"the validation set, on which `{_BAR}` is met")
    accuracy = validation_accuracy(
        teacher,
        images,
        examples,
        splits,
        mixing=mixing,
        batch_size=batch_size,
        device=device,
        precision=precision,
    )
    if accuracy < bar:
        raise TeacherTooWeakError(
            f"`{_BAR}` is {bar:g}, and the teacher reaches {accuracy:.4f} on {len(ids)} "
            "validation images: it teaches nobody"
        )
    return accuracy


def validation_accuracy(
    members: Sequence[ModelCheckpoint],
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    *,
    mixing: Mixing,
    batch_size: int,
    device: str,
    precision: str,
) -> float:
    """Measure a model on the clean validation images that have labels; the test set is not read.

    Args:
        members: One checkpoint per member; several are one model, mixed at temperature 1.
        images: Where the pixels are.
        examples: The labels.
        splits: Whose role `validation` is read.
        mixing: How members are mixed.
        batch_size: Images at a time.
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16`.

    Returns:
        The accuracy, in [0, 1]; NaN where no validation image has a label, or imported logits
        leave some of those out.
    """
    ids, labels = _labelled_validation(examples, splits)
    if len(ids) == 0 or not all(covers(member, ids) for member in members):
        return math.nan
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
    }
    logits = [
        open_predictor(member, images, **settings).logits(ids, description="validate")
        for member in members
    ]
    mixed = mix_logits(torch.stack(logits).numpy(), mixing=mixing, temperature=1.0)
    return float((mixed.argmax(axis=1) == labels).mean())


def _labelled_validation(
    examples: pd.DataFrame, splits: pd.DataFrame
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ids = ids_with_role(splits, "validation")
    labels = examples.set_index("example_id")["label"].reindex(ids)
    known = labels.notna().to_numpy()
    return ids[known], labels[known].to_numpy(np.int64)
