"""TTM and WTTM: by hand, by their definition, and at exponent 1."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kd_pipeline.losses.distillation import soft_target_loss
from kd_pipeline.losses.settings import ObjectiveParams

Logits = Compute = Callable[..., Tensor]


def block(name: str, exponent: float) -> dict[str, object]:
    return {"name": name, "exponent": exponent}


def test_both_match_a_value_worked_by_hand(compute: Compute) -> None:
    teacher = torch.tensor([[0.9, 0.1]]).log()  # the square roots are 3 : 1, their sum 4 / √10
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    student = torch.zeros(1, 2)
    assert compute(block("ttm", 0.5), student, teacher).item() == pytest.approx(by_hand)
    weighted = compute(block("wttm", 0.5), student, teacher).item()
    assert weighted == pytest.approx(by_hand * 4 / math.sqrt(10), rel=1e-5)


@given(seed=st.integers(0, 2**16), exponent=st.floats(0.05, 1.0))
def test_the_student_that_fits_best_has_the_power_of_the_teachers_probabilities(
    seed: int, exponent: float, logits: Logits, compute: Compute
) -> None:
    teacher = logits(seed)
    power = teacher.softmax(-1) ** exponent
    student = (power / power.sum(-1, keepdim=True)).log()
    for name in ("ttm", "wttm"):
        loss = compute(block(name, exponent), student, teacher)
        torch.testing.assert_close(loss, torch.zeros(4), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ttm", "wttm"])
def test_at_exponent_one_both_are_kl(name: str, logits: Logits, compute: Compute) -> None:
    student, teacher = logits(0), logits(1)
    torch.testing.assert_close(
        compute(block(name, 1.0), student, teacher),
        soft_target_loss(student, teacher, temperature=1.0),
    )


@given(seed=st.integers(0, 2**16), exponent=st.floats(0.05, 1.0))
def test_gradient_is_the_difference_to_the_power_without_a_temperature(
    seed: int, exponent: float, logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(seed).requires_grad_(), logits(seed + 1)
    (found,) = torch.autograd.grad(compute(block("ttm", exponent), student, teacher).sum(), student)
    expected = student.detach().softmax(-1) - (teacher * exponent).softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_unsure_teacher_weighs_more(logits: Logits, compute: Compute) -> None:
    """Up to num_classes to the power of 1 - exponent, where it finds all classes alike."""
    student = logits(0)
    weights = [
        compute(block("wttm", 0.5), student, teacher)[0]
        / compute(block("ttm", 0.5), student, teacher)[0]
        for teacher in (40 * torch.eye(5)[:4], torch.zeros(4, 5))
    ]
    assert [weight.item() for weight in weights] == pytest.approx([1.0, math.sqrt(5)], rel=1e-4)


@pytest.mark.parametrize("exponent", [0.0, -0.5, 1.5])
def test_an_exponent_that_does_not_flatten_is_refused(exponent: float) -> None:
    with pytest.raises(ValidationError, match="exponent"):
        ObjectiveParams(soft_loss=block("ttm", exponent))
