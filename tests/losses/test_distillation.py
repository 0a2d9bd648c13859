"""Soft losses: values worked by hand, laws that hold for any logits, what they reject."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import (
    SOFT_LOSSES,
    logit_mse_loss,
    pseudo_label_loss,
    soft_cross_entropy_loss,
    soft_target_loss,
)


def logits(seed: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) * 3


def compute(name: str, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """A loss of the table, handed what its record asks for."""
    record = SOFT_LOSSES[name]
    arguments = {"temperature": temperature} if record.uses_temperature else {}
    return record.function(student, teacher, **arguments)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    (value,) = torch.autograd.grad(loss.sum(), student)
    return value


def test_kl_matches_a_value_worked_by_hand() -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0]])  # soft targets 3/4 and 1/4
    student = torch.tensor([[0.0, 0.0]])  # probabilities 1/2 and 1/2
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_target_loss(student, teacher, temperature=1.0).item() == pytest.approx(by_hand)


def test_kl_at_temperature_two_matches_a_value_worked_by_hand() -> None:
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])  # halved: 3/4 and 1/4
    student = torch.tensor([[0.0, 0.0]])
    by_hand = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert soft_target_loss(student, teacher, temperature=2.0).item() == pytest.approx(by_hand)


def test_logit_mse_matches_a_value_worked_by_hand() -> None:
    student, teacher = torch.tensor([[5.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    # Centred difference +1 and -1: half of the mean square is 1/2.
    assert logit_mse_loss(student, teacher).item() == pytest.approx(0.5)


@given(seed=st.integers(0, 2**16), temperature=st.floats(0.5, 20.0))
def test_kl_is_zero_only_where_student_agrees(seed: int, temperature: float) -> None:
    teacher = logits(seed)
    student = teacher.clone()
    student[0] = logits(seed + 1)[0]
    loss = soft_target_loss(student, teacher, temperature=temperature)
    assert loss.shape == (4,)
    assert loss[0] > 0
    torch.testing.assert_close(loss[1:], torch.zeros(3))


@given(seed=st.integers(0, 2**16), temperature=st.floats(0.5, 20.0))
def test_cross_entropy_is_kl_plus_the_teachers_entropy(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    probabilities = torch.softmax(teacher / temperature, dim=-1)
    entropy = -(probabilities * probabilities.log()).sum(dim=-1) * temperature**2
    torch.testing.assert_close(
        soft_cross_entropy_loss(student, teacher, temperature=temperature),
        soft_target_loss(student, teacher, temperature=temperature) + entropy,
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("name", ["kl", "cross_entropy"])
def test_gradient_is_logit_matching_at_high_temperature(name: str) -> None:
    """Hinton et al. 2015, §2.1: zero-mean logits, temperature to infinity: (student - teacher)/N.

    Dropping temperature² makes this gradient a million times too small.
    """
    student, teacher = (x - x.mean(dim=-1, keepdim=True) for x in (logits(0), logits(1)))
    student.requires_grad_()
    found = gradient(compute(name, student, teacher, 1000.0), student)
    expected = (student - teacher).detach() / student.shape[-1]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_logit_mse_is_the_limit_of_kl() -> None:
    student, teacher = logits(0).double(), logits(1).double()
    torch.testing.assert_close(
        soft_target_loss(student, teacher, temperature=300.0),
        logit_mse_loss(student, teacher),
        rtol=5e-2,
        atol=1e-2,
    )


def test_pseudo_labels_match_a_value_worked_by_hand_and_ignore_the_teachers_doubts() -> None:
    student = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4 and 1/4
    for sure in (0.1, 50.0):
        loss = pseudo_label_loss(student, torch.tensor([[0.0, sure]]))
        assert loss.item() == pytest.approx(-math.log(0.25))


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
@given(shift=st.floats(-50, 50))
def test_logits_count_only_up_to_a_constant(name: str, shift: float) -> None:
    student, teacher = logits(0), logits(1)
    torch.testing.assert_close(
        compute(name, student + shift, teacher - shift),
        compute(name, student, teacher),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
def test_no_gradient_flows_into_the_teacher_and_half_precision_is_computed_in_full(
    name: str,
) -> None:
    student = logits(0).bfloat16().requires_grad_()
    teacher = logits(1).requires_grad_()
    loss = compute(name, student, teacher)
    loss.sum().backward()
    assert teacher.grad is None
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
def test_the_loss_of_an_example_is_the_same_alone_and_in_a_batch(name: str) -> None:
    student, teacher = logits(0), logits(1)
    alone = [compute(name, student[row : row + 1], teacher[row : row + 1]) for row in range(4)]
    torch.testing.assert_close(compute(name, student, teacher), torch.cat(alone))


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
def test_rejects_unequal_shapes(name: str) -> None:
    rule = "`student_logits and teacher_logits` must have one shape, got ((4, 5), (4, 4))"
    with pytest.raises(ParameterError, match=f"^{re.escape(rule)}$"):
        compute(name, logits(0), logits(1)[:, :4])
