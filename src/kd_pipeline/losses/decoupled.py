"""Losses that weigh the label's class and the other classes apart; both need labels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.config import NonNegativeFloat
from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.record import (
    SoftLoss,
    cross_entropy,
    kl_divergence,
    log_softmaxes,
    times_squared,
)
from kd_pipeline.losses.settings import SoftLossParams


class DkdParams(SoftLossParams):
    """Settings of `dkd`; the defaults are the authors' for ResNet-32x4 and ResNet-8x4."""

    target_weight: NonNegativeFloat = 1.0
    """The authors' α."""
    non_target_weight: NonNegativeFloat = 8.0
    """The authors' β: 8, 6 or 2, by pair of teacher and student."""


class NkdParams(SoftLossParams):
    """Settings of `nkd`; the default is the authors'."""

    non_target_weight: NonNegativeFloat = 1.5
    """The authors' γ."""


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    labels: Tensor,
    label_mask: Tensor,
    settings: DkdParams,
) -> Tensor:
    """Decoupled KD: the KL divergence in two parts of fixed weights, times temperature².

    Of the label's class against all others together, and of the distribution over these others.
    In the KL divergence the second part has the teacher's probability of any other class as its
    weight, which is near 0 where the teacher is sure (Zhao et al. 2022, arXiv:2203.08679, §3).

    Authors' settings on CIFAR-100: temperature 4, hard weight 1 beside it, so `soft_weight` 0.5,
    and a linear warm-up over 20 epochs of 240. Pitfalls: part of the gain may be that weight, as
    plain distillation gains from 4 or 8 times its own too (mdistiller, issue 19); with strong
    training on ImageNet nothing is left of it (Hao et al. 2023, arXiv:2305.15781).

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        teacher_logits: Same shape; no gradient flows into them.
        temperature: Divides both sets of logits.
        labels: int64 [batch].
        label_mask: bool [batch]; where it is False there is no class to decouple, and the loss is
            the plain `kl`.
        settings: The weights of the two parts.

    Returns:
        One loss per example, shape [batch], float32, in nats times temperature²; zero exactly
        where the two distributions agree.

    Raises:
        ParameterError: If the shapes differ, or there are two classes: one other class is no
            distribution.
    """
    if student_logits.shape[-1] < 3:
        rule = "be another than dkd for two classes, which leave one beside the label's"
        raise ParameterError("soft_loss", rule, student_logits.shape[-1])
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    target, others = map(kl_divergence, _decouple(student, labels), _decouple(teacher, labels))
    decoupled = settings.target_weight * target + settings.non_target_weight * others
    loss = torch.where(label_mask, decoupled, kl_divergence(student, teacher))
    return times_squared(loss, temperature)


def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    labels: Tensor,
    label_mask: Tensor,
    settings: NkdParams,
) -> Tensor:
    """Normalised KD: cross-entropy whose other classes are made to add up to 1 on both sides.

    The label's class has the teacher's probability of it as its weight, at temperature 1; the
    other classes are tempered and multiplied by temperature² (Yang et al. 2023, arXiv:2303.13005).

    Authors' settings: temperature 1, hard weight 1 beside it, so `soft_weight` 0.5. Pitfall: of
    two classes only the first part is left.

    Args and Raises as in `dkd_loss`, but for two classes, which are no error; where `label_mask`
    is False the loss is the plain `cross_entropy`.

    Returns:
        One loss per example, shape [batch], float32, in nats; not zero where the two agree.
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    (_, student_others), (_, teacher_others) = (_decouple(s, labels) for s in (student, teacher))
    others = settings.non_target_weight * cross_entropy(student_others, teacher_others)
    plain, at = cross_entropy(student, teacher), labels.clamp(min=0)[..., None]
    untempered = log_softmaxes(student_logits, teacher_logits, 1)
    student_label, teacher_label = (logs.gather(-1, at).squeeze(-1) for logs in untempered)
    normalised = times_squared(others, temperature) - teacher_label.exp() * student_label
    return torch.where(label_mask, normalised, times_squared(plain, temperature))


def _decouple(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Split log-probabilities by the label, any class standing in for one that is missing.

    Returns:
        Those of the label's class and of all others together, [batch, 2], and those of each other
        class given that it is not the label's, [batch, num_classes]. The label's own entry is 0 on
        both sides there, which adds nothing to a divergence.
    """
    is_label = F.one_hot(labels.clamp(min=0), log_probs.shape[-1]).bool()
    others = log_probs.masked_fill(is_label, -math.inf)
    any_other = torch.logsumexp(others, dim=-1, keepdim=True)
    label = log_probs.gather(-1, labels.clamp(min=0)[..., None])
    return torch.cat([label, any_other], dim=-1), (others - any_other).masked_fill(is_label, 0.0)


DECOUPLED = {
    "dkd": SoftLoss(dkd_loss, needs_labels=True, settings=DkdParams),
    "nkd": SoftLoss(nkd_loss, needs_labels=True, settings=NkdParams),
}
