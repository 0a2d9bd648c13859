"""Logits to compute with, and a loss of the table as a run calls it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.losses.settings import ObjectiveParams

NUM_CLASSES = 5


def _logits(seed: int, num_classes: int = NUM_CLASSES, scale: float = 3.0) -> Tensor:
    return torch.randn(4, num_classes, generator=torch.Generator().manual_seed(seed)) * scale


def _compute(
    loss: str | dict[str, Any],
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,
) -> Tensor:
    params = ObjectiveParams(soft_loss=loss)
    record = params.soft_loss.record
    given: dict[str, Any] = {"temperature": temperature} if record.uses_temperature else {}
    if record.needs_labels:
        labels = torch.full(student.shape[:-1], NO_LABEL) if labels is None else labels
        given |= {"labels": labels, "label_mask": labels != NO_LABEL}
    if record.settings.model_fields.keys() - {"name", "standardise_logits"}:
        given["settings"] = params.soft_loss
    return record.function(student, teacher, **given)


@pytest.fixture(scope="session")
def logits() -> Callable[..., Tensor]:
    """Logits of four examples by seed."""
    return _logits


@pytest.fixture(scope="session")
def compute() -> Callable[..., Tensor]:
    """A loss by name or block, handed what its record asks for; labels may be left out."""
    return _compute
