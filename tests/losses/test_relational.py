"""DIST: by hand, what correlations do not depend on, and the part that is over the batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

Logits = Compute = Callable[..., Tensor]
BETWEEN = {"name": "dist", "within_weight": 0.0}
WITHIN = {"name": "dist", "between_weight": 0.0}


def test_matches_correlations_that_numpy_computes(logits: Logits, compute: Compute) -> None:
    student, teacher = logits(0), logits(1)
    one, other = ((x / 2).softmax(-1).numpy() for x in (student, teacher))
    between = [1 - np.corrcoef(one[row], other[row])[0, 1] for row in range(4)]
    within = np.mean([1 - np.corrcoef(one[:, at], other[:, at])[0, 1] for at in range(5)])
    block = {"name": "dist", "between_weight": 2.0, "within_weight": 3.0}
    loss = compute(block, student, teacher, temperature=2.0)
    expected = 4 * (2 * torch.tensor(between) + 3 * within)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)


def test_opposite_orders_cost_two_and_equal_ones_nothing(compute: Compute) -> None:
    teacher = torch.tensor([[0.1, 0.3, 0.6]]).log()
    opposite = torch.tensor([[0.5667, 0.3667, 0.0667]]).log()  # 2/3 less the teacher's
    assert compute(BETWEEN, teacher, teacher).item() == pytest.approx(0, abs=1e-5)
    assert compute(BETWEEN, opposite, teacher).item() == pytest.approx(2, abs=1e-3)


def test_a_student_whose_probabilities_are_a_linear_function_of_the_teachers_has_learnt_all(
    compute: Compute, logits: Logits
) -> None:
    teacher = logits(0).softmax(-1)
    student = 0.4 * teacher + 0.6 / teacher.shape[-1]
    loss = compute("dist", student.log(), teacher.log())
    torch.testing.assert_close(loss, torch.zeros(4), rtol=0, atol=1e-5)


def test_every_example_carries_the_part_over_the_batch_whole(
    logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0), logits(1)
    within = compute(WITHIN, student, teacher)
    assert (within == within[0]).all()
    torch.testing.assert_close(
        compute("dist", student, teacher), compute(BETWEEN, student, teacher) + within
    )


def test_the_part_over_the_batch_depends_on_the_other_examples(
    logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0), logits(1)
    assert (
        compute(WITHIN, student[:3], teacher[:3])[0] - compute(WITHIN, student, teacher)[0]
    ) != 0
    torch.testing.assert_close(
        compute(BETWEEN, student[:3], teacher[:3]), compute(BETWEEN, student, teacher)[:3]
    )


@pytest.mark.parametrize("num_rows", [0, 1])
def test_a_batch_too_small_for_a_correlation_teaches_nothing_within_classes(
    num_rows: int, logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0)[:num_rows].requires_grad_(), logits(1)[:num_rows]
    loss = compute(WITHIN, student, teacher)
    loss.sum().backward()
    assert torch.equal(loss, torch.ones(num_rows))
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_probabilities_that_are_all_but_alike_have_no_correlation(
    logits: Logits, compute: Compute
) -> None:
    """Theirs would be one of rounding errors."""
    teacher = logits(1)
    loss = compute(BETWEEN, 1e-6 * teacher, teacher)
    torch.testing.assert_close(loss, torch.ones(4), atol=0.02, rtol=0)
