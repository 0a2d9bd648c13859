"""hard_label_loss: by hand, and with examples that have no label."""

import math

import pytest
import torch

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.hard import NO_LABEL, hard_label_loss


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


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_rejects_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(ParameterError, match=r"`label_smoothing` must be in \[0, 1\), got"):
        hard_label_loss(torch.zeros(1, 2), torch.tensor([0]), label_smoothing=smoothing)
