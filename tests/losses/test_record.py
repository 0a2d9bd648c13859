"""Standardised logits, a wrapper of every loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_pipeline.losses.distillation import SOFT_LOSSES, soft_target_loss

Logits = Compute = Callable[..., Tensor]
LABELS = torch.tensor([0, 3, 4, 1])


def standardised(name: str) -> dict[str, Any]:
    return {"name": name, "standardise_logits": True}


def test_kl_of_standardised_logits_matches_a_value_worked_by_hand(compute: Compute) -> None:
    """Rows of three with deviation √6: (-√1.5, 0, √1.5), divided by the temperature."""
    student, teacher = torch.tensor([[1.0, 4.0, 7.0]]), torch.tensor([[30.0, 20.0, 10.0]])
    z = torch.tensor([[-(1.5**0.5), 0.0, 1.5**0.5]])
    expected = soft_target_loss(z, -z, temperature=2.0)
    found = compute(standardised("kl"), student, teacher, temperature=2.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
@given(scale=st.floats(0.5, 20.0), shift=st.floats(-20, 20))
@settings(max_examples=10)
def test_neither_scale_nor_shift_of_the_logits_counts(
    name: str, scale: float, shift: float, logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0), logits(1)
    torch.testing.assert_close(
        compute(standardised(name), scale * student + shift, teacher / scale, labels=LABELS),
        compute(standardised(name), student, teacher, labels=LABELS),
        rtol=1e-3,
        atol=1e-3,
    )


def test_squared_error_of_standardised_logits_is_one_minus_their_correlation(
    logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0), logits(1)
    pairs = zip(student, teacher, strict=True)
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]
    loss = compute(standardised("logit_mse"), student, teacher)
    torch.testing.assert_close(loss, 1 - torch.stack(correlations), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
def test_logits_that_are_all_alike_give_finite_gradients(
    name: str, logits: Logits, compute: Compute
) -> None:
    student, teacher = torch.zeros(4, 5, requires_grad=True), logits(1).requires_grad_()
    loss = compute(standardised(name), student, teacher, labels=LABELS)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None
