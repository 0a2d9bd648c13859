"""Losses without a teacher: by hand, and with examples that have no label."""

import math

import pytest
import torch

from kd_pipeline.losses.hard import (
    NO_LABEL,
    MixedLabels,
    confidence_penalty,
    hard_label_loss,
    has_label,
)


def test_matches_a_value_worked_by_hand() -> None:
    student = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4 and 1/4
    labels = torch.tensor([0])
    plain = hard_label_loss(student, labels)
    smoothed = hard_label_loss(student, labels, label_smoothing=0.2)
    assert plain.item() == pytest.approx(-math.log(0.75))
    assert smoothed.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))


def test_a_batch_without_labels_costs_nothing_and_is_not_nan() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    loss = hard_label_loss(student, torch.full((3,), NO_LABEL), label_smoothing=0.1)
    loss.mean().backward()
    assert torch.equal(loss, torch.zeros(3))
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(3, 4))


def test_expects_logits_not_probabilities() -> None:
    """A sure and right student has a loss near 0, which softmax of a softmax cannot reach."""
    assert hard_label_loss(torch.tensor([[30.0, 0.0]]), torch.tensor([0])).item() < 1e-6


def mixed(own: int, partner: int, weight: float) -> MixedLabels:
    return MixedLabels(torch.tensor([own]), torch.tensor([partner]), torch.tensor([weight]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_label_is_cross_entropy_with_the_mixed_target(smoothing: float) -> None:
    student = torch.tensor([[1.0, -0.5, 0.2]])
    target = torch.tensor([[0.7, 0.0, 0.3]])
    loss = hard_label_loss(student, mixed(0, 2, 0.7), label_smoothing=smoothing)
    expected = torch.nn.functional.cross_entropy(
        student, target, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(loss, expected)


def test_an_unmixed_image_of_a_mixing_policy_loses_nothing() -> None:
    student = torch.tensor([[1.0, -0.5, 0.2]])
    alone = mixed(0, NO_LABEL, 1.0)
    assert has_label(alone).item()
    assert torch.equal(hard_label_loss(student, alone), hard_label_loss(student, alone.labels))


def test_a_partner_that_is_not_mixed_in_cannot_make_a_loss_nan() -> None:
    student = torch.tensor([[0.0, -math.inf]])  # Infinite loss where the label is 1.
    assert hard_label_loss(student, mixed(0, 1, 1.0)).item() == 0


@pytest.mark.parametrize(("own", "partner"), [(NO_LABEL, 1), (1, NO_LABEL), (NO_LABEL, NO_LABEL)])
def test_half_a_label_is_none(own: int, partner: int) -> None:
    student = torch.tensor([[1.0, -0.5, 0.2]], requires_grad=True)
    labels = mixed(own, partner, 0.6)
    loss = hard_label_loss(student, labels)
    loss.sum().backward()
    assert not has_label(labels).item()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_the_image_of_the_larger_weight_names_a_mixed_image() -> None:
    assert mixed(0, 2, 0.7).dominant().item() == 0
    assert mixed(0, 2, 0.3).dominant().item() == 2
    assert mixed(0, 2, 0.5).dominant().item() == 0, "at a tie, the image itself"


def test_the_confidence_penalty_matches_a_value_worked_by_hand() -> None:
    sure = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4 and 1/4
    by_hand = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert confidence_penalty(sure).item() == pytest.approx(by_hand)
    assert confidence_penalty(torch.ones(1, 4)).item() == pytest.approx(0, abs=1e-6)
    assert confidence_penalty(100 * torch.eye(4)[:1]).item() == pytest.approx(math.log(4))


def test_the_confidence_penalty_has_the_gradients_of_minus_the_entropy() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    probabilities = student.softmax(-1)
    (expected,) = torch.autograd.grad((probabilities * probabilities.log()).sum(), student)
    (found,) = torch.autograd.grad(confidence_penalty(student).sum(), student)
    torch.testing.assert_close(found, expected)
