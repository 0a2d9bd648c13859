"""Objective: the terms are weighed and averaged once, whatever is missing."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import SOFT_LOSSES, soft_target_loss
from kd_pipeline.losses.hard import NO_LABEL, MixedLabels, confidence_penalty, hard_label_loss
from kd_pipeline.losses.objective import Objective
from kd_pipeline.losses.record import SoftLoss
from kd_pipeline.losses.settings import ObjectiveParams, SoftLossParams
from kd_pipeline.teacher_logits import TeacherLogits

LABELS = torch.tensor([0, 2, 1, 1])


def logits(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


SOFT = TeacherLogits(logits(1))


def objective(**settings: Any) -> Objective:
    return Objective(ObjectiveParams(**settings))


@pytest.mark.parametrize("soft_weight", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_weight_weighs_the_soft_term_and_its_rest_the_hard_one(
    soft_weight: float, temperature: float, smoothing: float
) -> None:
    """Also at weight 1: the factor temperature² is on every path."""
    student, teacher = logits(0), logits(1)
    minimised = objective(
        soft_weight=soft_weight, temperature=temperature, label_smoothing=smoothing
    )
    terms = minimised(student, LABELS, TeacherLogits(teacher))
    soft = soft_target_loss(student, teacher, temperature=temperature).mean()
    hard = hard_label_loss(student, LABELS, label_smoothing=smoothing).mean()
    torch.testing.assert_close(terms.loss, soft_weight * soft + (1 - soft_weight) * hard)
    torch.testing.assert_close(terms.soft_loss, soft if soft_weight else torch.zeros(()))


def test_examples_without_a_label_or_a_soft_target_lack_just_that_term() -> None:
    student, teacher = logits(0), logits(1)
    labels = LABELS.clone()
    labels[0] = NO_LABEL
    has_soft = torch.tensor([True, True, False, True])
    terms = objective(soft_weight=0.5)(student, labels, TeacherLogits(teacher), has_soft)
    soft = soft_target_loss(student, teacher, temperature=1.0)[has_soft].sum() / 4
    hard = hard_label_loss(student, LABELS)[1:].sum() / 4
    torch.testing.assert_close(terms.loss, 0.5 * soft + 0.5 * hard)


def test_a_batch_without_any_label_is_finite() -> None:
    student = logits(0).requires_grad_()
    labels = torch.full((4,), NO_LABEL)
    for soft_weight in (0.0, 0.5, 1.0):
        loss = objective(soft_weight=soft_weight)(student, labels, TeacherLogits(logits(1))).loss
        assert torch.isfinite(loss)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(gradient).all()


def test_a_term_without_weight_is_not_computed() -> None:
    """At weight 1 labels of no class are not read; at weight 0 there need be no soft targets."""
    no_class = torch.full((4,), 99)
    assert torch.isfinite(objective(soft_weight=1.0)(logits(0), no_class, SOFT).loss)
    assert torch.isfinite(objective(soft_weight=0.0)(logits(0), LABELS).loss)


def test_a_soft_weight_without_soft_targets_is_refused() -> None:
    rule = "^`soft_weight` must be 0 without soft targets, got 0.5$"
    with pytest.raises(ParameterError, match=rule):
        objective(soft_weight=0.5)(logits(0), LABELS)


class FocalParams(SoftLossParams):
    """Settings of the loss below."""

    exponent: float = 1.0


def target_class_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    labels: Tensor,
    label_mask: Tensor,
    settings: FocalParams,
) -> Tensor:
    """A loss that needs all there is, as decoupled KD does."""
    student, teacher = (
        (values / temperature).softmax(1).gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
        for values in (student_logits, teacher_logits)
    )
    return ((student - teacher).abs() ** settings.exponent).where(label_mask, 0.0)


@pytest.fixture
def own_loss(monkeypatch: pytest.MonkeyPatch) -> str:
    record = SoftLoss(target_class_loss, needs_labels=True, settings=FocalParams)
    monkeypatch.setitem(SOFT_LOSSES, "target_class", record)
    return "target_class"


def test_a_loss_is_handed_the_temperature_labels_mask_and_arguments_that_its_record_names(
    own_loss: str,
) -> None:
    labels = LABELS.clone()
    labels[2] = NO_LABEL
    student, teacher = logits(0), logits(1)
    block = {"name": own_loss, "exponent": 2.0}
    minimised = objective(soft_loss=block, soft_weight=1.0, temperature=3.0)
    loss = minimised(student, labels, TeacherLogits(teacher)).loss
    difference = (student / 3).softmax(1) - (teacher / 3).softmax(1)
    own = difference.gather(1, labels.clamp(min=0)[:, None]).squeeze(1) ** 2
    torch.testing.assert_close(loss, (own * torch.tensor([1, 1, 0, 1])).mean())
    assert minimised.params.model_dump(mode="json")["soft_loss"] == {
        **block,
        "standardise_logits": False,
    }


def test_a_loss_that_needs_labels_is_refused_where_views_mix_two_images(own_loss: str) -> None:
    mixed = MixedLabels(LABELS, LABELS, torch.full((4,), 0.5))
    minimised = objective(soft_loss=own_loss, soft_weight=1.0)
    rule = "be one that needs no labels where views mix two images, got 'a loss that needs them'$"
    with pytest.raises(ParameterError, match=f"^`soft_loss` must {rule}"):
        minimised(logits(0), mixed, TeacherLogits(logits(1)))


def test_a_loss_over_the_batch_is_computed_from_rows_with_a_soft_target_alone() -> None:
    """DIST correlates over the batch: what stands in for a missing target must not count."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    has = torch.tensor([True, False, True, True])
    minimised = objective(soft_loss="dist", soft_weight=1.0, temperature=2.0)
    with_gap = minimised(student, LABELS, TeacherLogits(teacher), has).loss
    alone = minimised(student[has], LABELS[has], TeacherLogits(teacher[has])).loss
    torch.testing.assert_close(with_gap, 0.75 * alone)  # Divided by the whole batch.
    (gradient,) = torch.autograd.grad(with_gap, student)
    assert not gradient[1].any()
    assert gradient[has].any()


def test_a_batch_without_any_soft_target_is_zero_also_for_a_loss_over_the_batch() -> None:
    student = logits(0).requires_grad_()
    none = torch.zeros(4, dtype=torch.bool)
    minimised = objective(soft_loss="dist", soft_weight=1.0)
    loss = minimised(student, LABELS, TeacherLogits(logits(1)), none).loss
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(4, 3))


def test_a_users_loss_is_handed_no_empty_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        assert len(student_logits) > 0
        return (student_logits - teacher_logits).pow(2).sum(dim=1)

    module = ModuleType("loss_of_full_batches")
    module.refuse = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    minimised = objective(soft_loss="module:loss_of_full_batches:refuse", soft_weight=1.0)
    none = torch.zeros(4, dtype=torch.bool)
    assert minimised(logits(0), LABELS, TeacherLogits(logits(1)), none).loss == 0


SCHEDULE = {"warmup_fraction": 0.5, "stop_fraction": 0.8}


@pytest.mark.parametrize(
    ("progress", "share"), [(0.1, 0.2), (0.25, 0.5), (0.5, 1), (0.8, 1), (0.9, 0), (1.0, 0)]
)
def test_the_weight_follows_its_schedule_and_the_hard_term_gets_the_rest(
    progress: float, share: float
) -> None:
    student, teacher = logits(0), TeacherLogits(logits(1))
    minimised = objective(soft_weight=0.6, soft_weight_schedule=SCHEDULE)
    found = minimised(student, LABELS, teacher, progress=progress)
    expected = objective(soft_weight=0.6 * share)(student, LABELS, teacher)
    torch.testing.assert_close(found.loss, expected.loss)


def test_a_confidence_penalty_is_added_whatever_the_other_terms_weigh() -> None:
    student, teacher = logits(0), TeacherLogits(logits(1))
    labels = torch.tensor([0, NO_LABEL, 1, NO_LABEL])
    for soft_weight, weight in ((0.0, 0.3), (0.5, 0.3), (1.0, 1.0)):
        plain = objective(soft_weight=soft_weight)(student, labels, teacher)
        penalised = objective(soft_weight=soft_weight, confidence_penalty=weight)
        found = penalised(student, labels, teacher)
        added = weight * confidence_penalty(student).mean()
        torch.testing.assert_close(found.loss, plain.loss + added)
        assert torch.equal(found.soft_loss, plain.soft_loss)


@pytest.mark.parametrize("soft_weight", [0.0, 0.5, 1.0])
def test_the_batches_of_several_students_have_a_loss_each(soft_weight: float) -> None:
    params = ObjectiveParams(soft_weight=soft_weight, confidence_penalty=0.3)
    students, teachers = (logits(0), logits(2)), (logits(1), logits(3))
    alone = [
        Objective(params)(student, LABELS, TeacherLogits(teacher))
        for student, teacher in zip(students, teachers, strict=True)
    ]
    labels, teacher = LABELS.repeat(2), TeacherLogits(torch.cat(teachers))
    together = Objective(params, 2)(torch.cat(students), labels, teacher)
    torch.testing.assert_close(together.loss, torch.stack([one.loss for one in alone]))
    torch.testing.assert_close(together.soft_loss, torch.stack([one.soft_loss for one in alone]))
