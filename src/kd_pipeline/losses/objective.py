"""What a student is trained to minimise: the one place where terms are weighed and averaged."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import SoftLoss
from kd_pipeline.losses.hard import MixedLabels, hard_label_loss, has_label
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.teacher_logits import TeacherLogits


class ObjectiveTerms(NamedTuple):
    """Batch means, scalars."""

    loss: Tensor
    """What is minimised."""
    soft_loss: Tensor
    """The soft term before weighing, without a graph; 0 where it has no weight."""


@dataclass(frozen=True)
class Objective:
    """(1 - soft_weight) x hard term + soft_weight x soft term, averaged over the batch.

    An example without a label has no hard term and one without a soft target no soft term. Both
    terms are divided by the whole batch, so that an example weighs the same in every batch.
    """

    params: ObjectiveParams

    def __call__(
        self,
        student_logits: Tensor,
        labels: Tensor | MixedLabels,
        teacher_logits: TeacherLogits[Tensor] | None = None,
        has_soft_target: Tensor | None = None,
    ) -> ObjectiveTerms:
        """Weigh and average once.

        Args:
            student_logits: [batch, num_classes].
            labels: int64 [batch], `NO_LABEL` where there is none; or those of mixed images.
            teacher_logits: [batch, num_classes], or the top k with a tail; needed where
                `soft_weight` is above 0. Of the very images that the student is shown: a mixed
                image's are the teacher's own, never a mixture of two.
            has_soft_target: bool [batch]; None where every example has one.
        """
        weight, smoothing = self.params.soft_weight, self.params.label_smoothing
        # A term without weight is not computed: it would cost a step and build a graph.
        if weight == 0:
            loss = hard_label_loss(student_logits, labels, label_smoothing=smoothing).mean()
            return ObjectiveTerms(loss, torch.zeros_like(loss))
        soft = self._soft(student_logits, labels, teacher_logits, has_soft_target).mean()
        if weight == 1:
            return ObjectiveTerms(soft, soft.detach())
        hard = hard_label_loss(student_logits, labels, label_smoothing=smoothing)
        return ObjectiveTerms(weight * soft + (1 - weight) * hard.mean(), soft.detach())

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
        record, teacher_logits = self._record, teacher.logits
        if record.read_top_k is not None:
            student_logits, teacher_logits = record.read_top_k(
                student_logits, teacher, self.params.temperature
            )
        arguments = self._fixed
        if record.needs_labels:
            arguments = {**arguments, **_labels_for_loss(labels)}
        soft = record.function(student_logits, teacher_logits, **arguments)
        return soft if has_soft_target is None else soft.where(has_soft_target, 0.0)

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
        if set(record.settings.model_fields) != {"name"}:
            fixed["settings"] = params.soft_loss
        return fixed


def _labels_for_loss(labels: Tensor | MixedLabels) -> dict[str, Tensor]:
    if isinstance(labels, MixedLabels):
        rule = "be one that needs no labels where views mix two images"
        raise ParameterError("soft_loss", rule, "a loss that needs them")
    return {"labels": labels, "label_mask": has_label(labels)}
