"""Objective: the terms are weighed and averaged once, whatever is missing."""

import pytest
import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import soft_target_loss
from kd_pipeline.losses.hard import NO_LABEL, hard_label_loss
from kd_pipeline.losses.objective import Objective

LABELS = torch.tensor([0, 2, 1, 1])


def logits(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("soft_weight", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_weight_weighs_the_soft_term_and_its_rest_the_hard_one(
    soft_weight: float, temperature: float
) -> None:
    """Also at weight 1: the factor temperature² is on every path."""
    student, teacher = logits(0), logits(1)
    terms = Objective(soft_weight=soft_weight, temperature=temperature)(student, LABELS, teacher)
    soft = soft_target_loss(student, teacher, temperature=temperature).mean()
    hard = hard_label_loss(student, LABELS).mean()
    torch.testing.assert_close(terms.loss, soft_weight * soft + (1 - soft_weight) * hard)
    torch.testing.assert_close(terms.soft_loss, soft if soft_weight else torch.zeros(()))


def test_examples_without_a_label_or_a_soft_target_lack_just_that_term() -> None:
    student, teacher = logits(0), logits(1)
    labels = LABELS.clone()
    labels[0] = NO_LABEL
    has_soft = torch.tensor([True, True, False, True])
    terms = Objective(soft_weight=0.5)(student, labels, teacher, has_soft)
    soft = soft_target_loss(student, teacher, temperature=1.0)[has_soft].sum() / 4
    hard = hard_label_loss(student, LABELS)[1:].sum() / 4
    torch.testing.assert_close(terms.loss, 0.5 * soft + 0.5 * hard)


def test_a_batch_without_any_label_is_finite() -> None:
    student = logits(0).requires_grad_()
    labels = torch.full((4,), NO_LABEL)
    for soft_weight in (0.0, 0.5, 1.0):
        loss = Objective(soft_weight=soft_weight)(student, labels, logits(1)).loss
        assert torch.isfinite(loss)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(gradient).all()


def test_a_soft_weight_without_soft_targets_is_refused() -> None:
    with pytest.raises(ParameterError, match="`soft_weight` must be 0 without soft targets"):
        Objective(soft_weight=0.5)(logits(0), LABELS)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"soft_weight": 1.5}, "soft_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"soft_loss": "mse"}, "soft_loss"),
        ({"soft_loss": "logit_mse", "temperature": 2.0}, "temperature"),
    ],
)
def test_rejects_settings_that_are_wrong_or_would_be_ignored(
    settings: dict[str, float], name: str
) -> None:
    with pytest.raises(ParameterError, match=f"`{name}` must"):
        Objective(**settings)
