"""What a student is trained to minimise: the one place where terms are weighed and averaged."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import SOFT_LOSSES, TEMPERATURE_FREE
from kd_pipeline.losses.hard import MixedLabels, label_loss
from kd_pipeline.losses.tails import check_tail
from kd_pipeline.losses.top_k import TopKLogits, ghost_buckets, without_tail


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

    soft_weight: float = 0.0
    soft_loss: str = "kl"
    temperature: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that would be ignored or mean something else."""
        if not 0 <= self.soft_weight <= 1:
            raise ParameterError("soft_weight", "be in [0, 1]", self.soft_weight)
        if self.soft_loss not in SOFT_LOSSES:
            rule = "be a known loss"
            raise ParameterError("soft_loss", rule, self.soft_loss, legal=SOFT_LOSSES)
        if not self.temperature > 0:
            raise ParameterError("temperature", "be > 0", self.temperature)
        if self.soft_loss in TEMPERATURE_FREE and self.temperature != 1:
            rule = f"be 1 for {self.soft_loss}, which has none"
            raise ParameterError("temperature", rule, self.temperature)

    def __call__(
        self,
        student_logits: Tensor,
        labels: Tensor | MixedLabels,
        teacher_logits: Tensor | TopKLogits | None = None,
        has_soft_target: Tensor | None = None,
    ) -> ObjectiveTerms:
        """Weigh and average once.

        Args:
            student_logits: [batch, num_classes].
            labels: int64 [batch], `NO_LABEL` where there is none; or those of mixed images.
            teacher_logits: [batch, num_classes], or its top k with the tail as a ghost bucket;
                needed where `soft_weight` is above 0. Of the very images that the student sees:
                a mixed image's are the teacher's own, never a mixture.
            has_soft_target: bool [batch]; None where every example has one.
        """
        # A term without weight is not computed: it would cost a step and build a graph.
        if self.soft_weight == 0:
            hard = label_loss(student_logits, labels, label_smoothing=self.label_smoothing)
            loss = hard.mean()
            return ObjectiveTerms(loss, torch.zeros_like(loss))
        soft = self._soft(student_logits, teacher_logits, has_soft_target).mean()
        if self.soft_weight == 1:
            return ObjectiveTerms(soft, soft.detach())
        hard = label_loss(student_logits, labels, label_smoothing=self.label_smoothing)
        loss = self.soft_weight * soft + (1 - self.soft_weight) * hard.mean()
        return ObjectiveTerms(loss, soft.detach())

    def _soft(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | TopKLogits | None,
        has: Tensor | None,
    ) -> Tensor:
        if teacher_logits is None:
            raise ParameterError("soft_weight", "be 0 without soft targets", self.soft_weight)
        loss = SOFT_LOSSES[self.soft_loss]
        if isinstance(teacher_logits, TopKLogits):
            check_tail(self.soft_loss, self.temperature, cached_at=teacher_logits.temperature)
            if self.soft_loss == "pseudo_label":  # No tail is ever the teacher's decision.
                num_classes = student_logits.shape[1]
                teacher_logits = without_tail(teacher_logits, num_classes=num_classes)
            else:
                student_logits, teacher_logits = ghost_buckets(student_logits, teacher_logits)
        soft = loss(student_logits, teacher_logits, temperature=self.temperature)
        return soft if has is None else soft.where(has, 0.0)
