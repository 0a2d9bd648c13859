"""What a student is trained to minimise: the one place where terms are weighed and averaged."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import SOFT_LOSSES
from kd_pipeline.losses.hard import hard_label_loss


class ObjectiveTerms(NamedTuple):
    """Batch means, scalars; `loss` is what is minimised, the others are before weighing."""

    loss: Tensor
    hard_loss: Tensor
    soft_loss: Tensor


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
        if self.soft_loss == "logit_mse" and self.temperature != 1:
            rule = "be 1 for logit_mse, which has none"
            raise ParameterError("temperature", rule, self.temperature)

    def __call__(
        self,
        student_logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None = None,
        has_soft_target: Tensor | None = None,
    ) -> ObjectiveTerms:
        """Weigh and average once.

        Args:
            student_logits: [batch, num_classes].
            labels: int64 [batch], `NO_LABEL` where there is none.
            teacher_logits: [batch, num_classes]; needed where `soft_weight` is above 0.
            has_soft_target: bool [batch]; None where every example has one.
        """
        # With no weight it is only reported: no graph is built for it.
        scored = student_logits if self.soft_weight < 1 else student_logits.detach()
        hard_mean = hard_label_loss(scored, labels, label_smoothing=self.label_smoothing).mean()
        if self.soft_weight == 0:
            return ObjectiveTerms(hard_mean, hard_mean.detach(), hard_mean.new_zeros(()))
        if teacher_logits is None:
            raise ParameterError("soft_weight", "be 0 without soft targets", self.soft_weight)
        soft = SOFT_LOSSES[self.soft_loss](
            student_logits, teacher_logits, temperature=self.temperature
        )
        if has_soft_target is not None:
            soft = soft.where(has_soft_target, 0.0)
        soft_mean = soft.mean()
        loss = self.soft_weight * soft_mean
        if self.soft_weight < 1:
            loss = loss + (1 - self.soft_weight) * hard_mean
        return ObjectiveTerms(loss, hard_mean.detach(), soft_mean.detach())
