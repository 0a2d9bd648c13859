"""Top-k teachers: buckets by closed form, tails at the declared temperature, refusals."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_pipeline.losses.distillation import soft_target_loss
from kd_pipeline.losses.objective import Objective
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.losses.top_k import gather_other_classes, keep_listed_classes, spread_tail
from kd_pipeline.teacher_logits import TeacherLogits


def top_k(teacher: Tensor, *, k: int, temperature: float) -> TeacherLogits[Tensor]:
    top = teacher.topk(k)
    others = teacher.scatter(1, top.indices, -math.inf)
    tail = temperature * torch.logsumexp(others / temperature, dim=1)
    return TeacherLogits(top.values, top.indices, tail)


def classes(top: TeacherLogits[Tensor]) -> Tensor:
    assert top.class_ids is not None
    return top.class_ids


def logits(seed: int, num_classes: int = 12) -> Tensor:
    return 4 * torch.randn(5, num_classes, generator=torch.Generator().manual_seed(seed))


@given(k=st.integers(1, 11), temperature=st.sampled_from([0.5, 1.0, 4.0, 20.0]))
def test_buckets_are_the_sums_of_the_full_distributions(k: int, temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    top = top_k(teacher, k=k, temperature=temperature)
    buckets = gather_other_classes(student, top, temperature)
    for bucketed, full in zip(buckets, (student, teacher), strict=True):
        probabilities = (full / temperature).softmax(1)
        known = probabilities.gather(1, classes(top))
        expected = torch.cat([known, 1 - known.sum(1, keepdim=True)], dim=1)
        torch.testing.assert_close((bucketed / temperature).softmax(1), expected)


def test_a_tail_of_one_class_is_the_dense_loss() -> None:
    student, teacher = logits(0), logits(1)
    objective = Objective(ObjectiveParams(soft_weight=1.0, temperature=4.0))
    dense = objective(student, torch.zeros(5).long(), TeacherLogits(teacher))
    top = top_k(teacher, k=11, temperature=4.0)
    bucketed = objective(student, torch.zeros(5).long(), top)
    torch.testing.assert_close(bucketed.loss, dense.loss)


@given(k=st.integers(1, 11))
def test_the_bucketed_loss_is_never_above_the_dense_one(k: int) -> None:
    """Merging outcomes can only lose divergence (the data-processing inequality)."""
    student, teacher = logits(0), logits(1)
    buckets = gather_other_classes(student, top_k(teacher, k=k, temperature=2.0), 2.0)
    merged = soft_target_loss(*buckets, temperature=2.0)
    assert (merged <= soft_target_loss(student, teacher, temperature=2.0) + 1e-5).all()


def test_no_gradient_separates_the_classes_of_the_tail() -> None:
    """Inside the bucket, the student's own proportions stay: its gradient follows them."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    top = top_k(teacher, k=3, temperature=1.0)
    soft_target_loss(*gather_other_classes(student, top, 1.0), temperature=1.0).sum().backward()
    assert student.grad is not None
    inside = torch.ones_like(student, dtype=torch.bool).scatter(1, classes(top), False)
    shares = student.detach().masked_fill(~inside, -math.inf).softmax(1)
    tail_gradient = student.grad.masked_fill(~inside, 0.0)
    expected = shares * tail_gradient.sum(1, keepdim=True)
    torch.testing.assert_close(tail_gradient, expected)
    assert torch.isfinite(student.grad).all()


@given(k=st.integers(1, 11), temperature=st.sampled_from([1.0, 4.0]))
def test_a_spread_tail_keeps_the_top_and_shares_the_rest_evenly(k: int, temperature: float) -> None:
    teacher = logits(1)
    top = top_k(teacher, k=k, temperature=temperature)
    dense = spread_tail(top, num_classes=12, temperature=temperature)
    spread = (dense.logits / temperature).softmax(1)
    full = (teacher / temperature).softmax(1)
    torch.testing.assert_close(spread.gather(1, classes(top)), full.gather(1, classes(top)))
    rest = spread.scatter(1, classes(top), math.nan)
    assert (rest.nan_to_num(1).min(1).values - rest.nan_to_num(0).max(1).values).abs().max() < 1e-6
    torch.testing.assert_close(spread.sum(1), torch.ones(5))


def test_a_pseudo_label_is_the_best_class_even_where_the_tail_is_heavier() -> None:
    teacher = torch.tensor([[1.0, 0.9, 0.9, 0.9, 0.9]])
    top = top_k(teacher, k=1, temperature=20.0)
    assert top.tail_logits is not None
    assert top.tail_logits > top.logits[0, 0]
    student = torch.tensor([[0.3, 1.0, -1.0, 0.0, 0.2]])
    objective = Objective(ObjectiveParams(soft_weight=1.0, soft_loss="pseudo_label"))
    loss = objective(student, torch.tensor([-1]), top).loss
    torch.testing.assert_close(loss, -student.log_softmax(1)[0, 0])
    assert keep_listed_classes(student, top, 1.0)[1].argmax() == 0
    half = objective(student.bfloat16(), torch.tensor([-1]), top).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss, rtol=1e-2, atol=1e-2)
