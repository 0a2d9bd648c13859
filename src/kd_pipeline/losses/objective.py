"""What a student is trained to minimise: the one place where terms are weighed and averaged."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.hard import (
    MixedLabels,
    confidence_penalty,
    hard_label_loss,
    has_label,
)
from kd_pipeline.losses.record import SoftLoss
from kd_pipeline.losses.settings import ObjectiveParams, SoftLossParams
from kd_pipeline.teacher_logits import TeacherLogits


class ObjectiveTerms(NamedTuple):
    """Batch means: scalars, or [replicates]."""

    loss: Tensor
    """What is minimised."""
    soft_loss: Tensor
    """The soft term before weighing, without a graph; 0 where it has no weight."""


@dataclass(frozen=True)
class Objective:
    """(1 - soft_weight) x hard term + soft_weight x soft term, averaged over the batch.

    An example without a label has no hard term and one without a soft target no soft term. Both
    terms are divided by the whole batch, so that an example weighs the same in every batch. A
    confidence penalty is added with a weight of its own, for every example.
    """

    params: ObjectiveParams
    num_replicates: int = 1
    """Where above 1, a batch holds the batches of so many students, one after another."""

    def __call__(
        self,
        student_logits: Tensor,
        labels: Tensor | MixedLabels,
        teacher_logits: TeacherLogits[Tensor] | None = None,
        has_soft_target: Tensor | None = None,
        *,
        progress: float = 1.0,
    ) -> ObjectiveTerms:
        """Weigh and average once.

        Args:
            student_logits: [batch, num_classes].
            labels: int64 [batch], `NO_LABEL` where there is none; or those of mixed images.
            teacher_logits: [batch, num_classes], or the top k with a tail; needed where
                `self.soft_weight` is above 0. Of the very images that the student is shown: a mixed
                image's are the teacher's own, never a mixture of two.
            has_soft_target: bool [batch]; None where every example has one.
            progress: Share of all steps that are done once this one is, in (0, 1].
        """
        weight = self.soft_weight(progress)
        terms = self._weigh(weight, student_logits, labels, teacher_logits, has_soft_target)
        if self.params.confidence_penalty == 0:
            return terms
        penalty = self.params.confidence_penalty * self._mean(confidence_penalty(student_logits))
        return terms._replace(loss=terms.loss + penalty)

    def soft_weight(self, progress: float) -> float:
        """The soft term's weight once this share of all steps is done; 0 needs no teacher."""
        return self.params.soft_weight * self.params.soft_weight_schedule.factor(progress)

    def _weigh(
        self,
        weight: float,
        student_logits: Tensor,
        labels: Tensor | MixedLabels,
        teacher_logits: TeacherLogits[Tensor] | None,
        has_soft_target: Tensor | None,
    ) -> ObjectiveTerms:
        smoothing = self.params.label_smoothing
        # A term without weight is not computed: it would cost a step and build a graph.
        if weight == 0:
            hard = hard_label_loss(student_logits, labels, label_smoothing=smoothing)
            loss = self._mean(hard)
            return ObjectiveTerms(loss, torch.zeros_like(loss))
        soft = self._mean(self._soft(student_logits, labels, teacher_logits, has_soft_target))
        if weight == 1:
            return ObjectiveTerms(soft, soft.detach())
        hard = hard_label_loss(student_logits, labels, label_smoothing=smoothing)
        return ObjectiveTerms(weight * soft + (1 - weight) * self._mean(hard), soft.detach())

    def _mean(self, losses: Tensor) -> Tensor:
        if self.num_replicates == 1:
            return losses.mean()
        return torch.unflatten(losses, 0, (self.num_replicates, -1)).mean(dim=1)

    def _soft(
        self,
        student_logits: Tensor,
        labels: Tensor | MixedLabels,
        teacher: TeacherLogits[Tensor] | None,
        has_soft_target: Tensor | None,
    ) -> Tensor:
        if teacher is None:
            rule = "be 0 without soft targets"
            raise ParameterError("soft_weight", rule, self.params.soft_weight)
        record, rows = self._record, {"student": student_logits, "teacher": teacher.logits}
        if record.read_top_k is not None:
            rows["student"], rows["teacher"] = record.read_top_k(
                student_logits, teacher, self.params.temperature
            )
        if record.needs_labels:
            rows |= _labels_for_loss(labels)
        if has_soft_target is None:
            return self._per_example(**rows)
        if not record.over_batch:
            return self._per_example(**rows).where(has_soft_target, 0.0)
        # The others would be part of what is computed over the batch.
        at = has_soft_target.nonzero().squeeze(1)
        if len(at) == 0:
            return student_logits.sum(dim=1) * 0.0
        soft = self._per_example(**{name: values[at] for name, values in rows.items()})
        return soft.new_zeros(len(has_soft_target)).index_copy(0, at, soft)

    def _per_example(self, student: Tensor, teacher: Tensor, **labels: Tensor) -> Tensor:
        return self._record.function(student, teacher, **labels, **self._fixed)

    @cached_property
    def _record(self) -> SoftLoss:
        return self.params.soft_loss.record

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        """What the loss takes beside tensors."""
        params, record = self.params, self._record
        fixed: dict[str, Any] = {}
        if record.uses_temperature:
            fixed["temperature"] = params.temperature
        if record.settings is not SoftLossParams:
            fixed["settings"] = params.soft_loss
        return fixed


def _labels_for_loss(labels: Tensor | MixedLabels) -> dict[str, Tensor]:
    if isinstance(labels, MixedLabels):
        rule = "be one that needs no labels where views mix two images"
        raise ParameterError("soft_loss", rule, "a loss that needs them")
    return {"labels": labels, "label_mask": has_label(labels)}
