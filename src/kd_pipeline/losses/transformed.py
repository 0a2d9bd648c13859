"""Losses in which the teacher alone is tempered, as a power of its probabilities."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kd_pipeline.losses.record import SoftLoss, check_shapes, kl_divergence, log_softmax
from kd_pipeline.losses.settings import SoftLossParams


class TtmParams(SoftLossParams):
    """Settings of `ttm` and `wttm`; the default is that of the authors' worked example."""

    exponent: Annotated[float, Field(ge=0.01, le=1.0)] = 0.1
    """The authors' γ: 1 / temperature, of the teacher alone."""


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, *, settings: TtmParams) -> Tensor:
    """Transformed teacher matching: KL divergence from a power of the teacher's probabilities.

    The power, made to add up to 1, is the teacher at temperature 1 / exponent; the student stays
    at temperature 1 and so learns probabilities that are as flat as that (Zheng and Yang 2024,
    arXiv:2402.11148, §3). There is no factor temperature².

    Authors' settings, for VGG-13 and VGG-8 on CIFAR-100: exponent 0.1, weights 1 hard and 45 soft,
    so `soft_weight` 0.978. Pitfalls: the student is made to be as unsure as that power, which its
    NLL and ECE show; the weight is 50 times that of plain distillation.

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        teacher_logits: Same shape; no gradient flows into them.
        settings: The exponent; at 1 this is `kl` at temperature 1.

    Returns:
        One loss per example, shape [batch], float32, in nats; zero where the student has the
        transformed distribution.

    Raises:
        ParameterError: If the shapes differ.
    """
    check_shapes(student_logits, teacher_logits)
    teacher = log_softmax(teacher_logits.detach(), 1 / settings.exponent)
    return kl_divergence(log_softmax(student_logits, 1), teacher)


def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, *, settings: TtmParams) -> Tensor:
    """Weighted `ttm_loss`: times the sum of the powers of the teacher's probabilities.

    That sum is 1 for a teacher that is sure, and num_classes^(1 - exponent) for one that finds all
    classes alike: uncertain examples weigh more (Zheng and Yang 2024, §4).

    Authors' settings are by pair; their example combines exponent 0.2 at weight 4 with a loss on
    features. Pitfall: with many classes the weights span orders of magnitude.

    Args and Raises as in `ttm_loss`.

    Returns:
        One loss per example, shape [batch], float32, in nats times that sum.
    """
    log_probs = log_softmax(teacher_logits.detach(), 1)
    power_sum = torch.logsumexp(settings.exponent * log_probs, dim=-1).exp()
    return power_sum * ttm_loss(student_logits, teacher_logits, settings=settings)


TRANSFORMED = {
    "ttm": SoftLoss(ttm_loss, uses_temperature=False, settings=TtmParams),
    "wttm": SoftLoss(wttm_loss, uses_temperature=False, settings=TtmParams),
}
