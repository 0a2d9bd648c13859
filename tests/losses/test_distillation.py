"""Losses over all classes: values worked by hand, laws that hold for any logits, refusals."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import (
    SOFT_LOSSES,
    jensen_shannon_loss,
    logit_mse_loss,
    pseudo_label_loss,
    reverse_kl_loss,
    soft_cross_entropy_loss,
    soft_target_loss,
)

Logits = Compute = Callable[..., Tensor]
DIVERGENCES = ("kl", "reverse_kl", "jensen_shannon")
TEACHER = torch.tensor([[math.log(3.0), 0.0]])
"""Soft targets 3/4 and 1/4; a student of equal logits has 1/2 and 1/2."""
seeds, temperatures = st.integers(0, 2**16), st.floats(0.5, 20.0)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    (value,) = torch.autograd.grad(loss.sum(), student)
    return value


def test_kl_matches_a_value_worked_by_hand() -> None:
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    loss = soft_target_loss(torch.zeros(1, 2), TEACHER, temperature=1.0)
    assert loss.item() == pytest.approx(by_hand)


def test_kl_at_temperature_two_matches_a_value_worked_by_hand() -> None:
    by_hand = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    loss = soft_target_loss(torch.zeros(1, 2), 2 * TEACHER, temperature=2.0)
    assert loss.item() == pytest.approx(by_hand)


def test_reverse_kl_matches_a_value_worked_by_hand() -> None:
    by_hand = 4 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    loss = reverse_kl_loss(torch.zeros(1, 2), 2 * TEACHER, temperature=2.0)
    assert loss.item() == pytest.approx(by_hand)


def test_jensen_shannon_matches_a_value_worked_by_hand() -> None:
    of_student = 0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)
    of_teacher = 0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)
    loss = jensen_shannon_loss(torch.zeros(1, 2), 2 * TEACHER, temperature=2.0)
    assert loss.item() == pytest.approx(4 * 0.5 * (of_student + of_teacher))


def test_logit_mse_matches_a_value_worked_by_hand() -> None:
    student, teacher = torch.tensor([[5.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    # Centred difference +1 and -1: half of the mean square is 1/2.
    assert logit_mse_loss(student, teacher).item() == pytest.approx(0.5)


def test_pseudo_labels_match_a_value_worked_by_hand_and_ignore_the_teachers_doubts() -> None:
    student = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4 and 1/4
    for sure in (0.1, 50.0):
        loss = pseudo_label_loss(student, torch.tensor([[0.0, sure]]))
        assert loss.item() == pytest.approx(-math.log(0.25))


@pytest.mark.parametrize("name", DIVERGENCES)
@given(seed=seeds, temperature=temperatures)
def test_a_divergence_is_zero_only_where_student_agrees(
    name: str, seed: int, temperature: float, logits: Logits, compute: Compute
) -> None:
    teacher = logits(seed)
    student = teacher.clone()
    student[0] = logits(seed + 1)[0]
    loss = compute(name, student, teacher, temperature=temperature)
    assert loss.shape == (4,)
    assert loss[0] > 0
    torch.testing.assert_close(loss[1:], torch.zeros(3))


@given(seed=seeds, temperature=temperatures)
def test_cross_entropy_is_kl_plus_the_teachers_entropy(
    seed: int, temperature: float, logits: Logits
) -> None:
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
@given(seed=seeds, temperature=temperatures)
def test_gradient_is_temperature_times_the_difference_of_the_probabilities(
    name: str, seed: int, temperature: float, logits: Logits, compute: Compute
) -> None:
    """Hinton et al. 2015, equation 2, times temperature²."""
    student, teacher = logits(seed).requires_grad_(), logits(seed + 1)
    found = gradient(compute(name, student, teacher, temperature=temperature), student)
    of_student, of_teacher = ((x / temperature).softmax(-1) for x in (student.detach(), teacher))
    expected = temperature * (of_student - of_teacher)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@given(seed=seeds, temperature=temperatures)
def test_reverse_kl_is_kl_with_the_roles_exchanged(
    seed: int, temperature: float, logits: Logits
) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    torch.testing.assert_close(
        reverse_kl_loss(student, teacher, temperature=temperature),
        soft_target_loss(teacher, student, temperature=temperature),
    )


@given(seed=seeds, temperature=temperatures)
def test_jensen_shannon_is_symmetric_and_at_most_log_two(
    seed: int, temperature: float, logits: Logits
) -> None:
    student, teacher = logits(seed, scale=30.0), logits(seed + 1, scale=30.0)
    loss = jensen_shannon_loss(student, teacher, temperature=temperature)
    other = jensen_shannon_loss(teacher, student, temperature=temperature)
    torch.testing.assert_close(loss, other, rtol=1e-4, atol=1e-4)
    assert (loss <= math.log(2) * temperature**2 * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("name", "share"),
    [("kl", 1), ("cross_entropy", 1), ("reverse_kl", 1), ("jensen_shannon", 1 / 4)],
)
def test_gradient_is_logit_matching_at_high_temperature(
    name: str, share: float, logits: Logits, compute: Compute
) -> None:
    """Hinton et al. 2015, §2.1: zero-mean logits, temperature to infinity: (student - teacher)/N.

    Dropping temperature² makes this gradient a million times too small.
    """
    student, teacher = (x - x.mean(dim=-1, keepdim=True) for x in (logits(0), logits(1)))
    student.requires_grad_()
    found = gradient(compute(name, student, teacher, temperature=1000.0), student)
    expected = share * (student - teacher).detach() / student.shape[-1]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("name", ["kl", "reverse_kl"])
def test_logit_mse_is_the_limit_of_the_divergences(
    name: str, logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0), logits(1)
    torch.testing.assert_close(
        compute(name, student, teacher, temperature=300.0),
        logit_mse_loss(student, teacher),
        rtol=5e-2,
        atol=1e-2,
    )


LABELS = torch.tensor([0, 3, 4, 1])


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "no labels"])
@given(shift=st.floats(-50, 50))
@settings(max_examples=10)
def test_logits_count_only_up_to_a_constant(
    name: str, labels: Tensor | None, shift: float, logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0), logits(1)
    torch.testing.assert_close(
        compute(name, student + shift, teacher - shift, labels=labels),
        compute(name, student, teacher, labels=labels),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
def test_no_gradient_flows_into_the_teacher_and_half_precision_is_computed_in_full(
    name: str, logits: Logits, compute: Compute
) -> None:
    student = logits(0).bfloat16().requires_grad_()
    teacher = logits(1).requires_grad_()
    loss = compute(name, student, teacher, labels=LABELS)
    loss.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.any()
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    "name", sorted(name for name, loss in SOFT_LOSSES.items() if not loss.over_batch)
)
def test_the_loss_of_an_example_is_the_same_alone_and_in_a_batch(
    name: str, logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0), logits(1)
    rows = [slice(row, row + 1) for row in range(4)]
    alone = [compute(name, student[row], teacher[row], labels=LABELS[row]) for row in rows]
    torch.testing.assert_close(compute(name, student, teacher, labels=LABELS), torch.cat(alone))


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
@pytest.mark.parametrize("scale", [0.0, 1.0, 3e4], ids=["all alike", "usual", "largest cached"])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "no labels"])
def test_any_batch_is_finite_with_finite_gradients(
    name: str, scale: float, labels: Tensor | None, logits: Logits, compute: Compute
) -> None:
    """Also one without a single label, and a student whose head starts at zero."""
    student, teacher = logits(0, scale=min(scale, 50.0)).requires_grad_(), logits(1, scale=scale)
    loss = compute(name, student, teacher, labels=labels)
    assert loss.shape == (4,)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient(loss, student)).all()


@pytest.mark.parametrize("name", sorted(SOFT_LOSSES))
def test_rejects_unequal_shapes(name: str, logits: Logits, compute: Compute) -> None:
    rule = "`student_logits and teacher_logits` must have one shape, got ((4, 5), (4, 4))"
    with pytest.raises(ParameterError, match=f"^{re.escape(rule)}$"):
        compute(name, logits(0), logits(1)[:, :4])
