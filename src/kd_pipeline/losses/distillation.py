"""Losses over all classes that pull a student towards its teacher, and the table of all losses.

`SOFT_LOSSES` names every loss; `SoftLoss` in `record.py` is what such a loss states of itself.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.losses.decoupled import DECOUPLED
from kd_pipeline.losses.record import (
    SoftLoss,
    check_shapes,
    cross_entropy,
    kl_divergence,
    log_softmaxes,
    times_squared,
)
from kd_pipeline.losses.relational import RELATIONAL
from kd_pipeline.losses.top_k import gather_other_classes, keep_listed_classes
from kd_pipeline.losses.transformed import TRANSFORMED


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """KL divergence of the student from the teacher's soft targets, times temperature².

    The factor temperature² keeps this term's gradients on the scale of the hard-label term
    whatever the temperature (Hinton et al. 2015, §2, arXiv:1503.02531).

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        teacher_logits: Same shape; no gradient flows into them.
        temperature: Divides both sets of logits; > 0, and 1.0 leaves them as they are.

    Returns:
        One loss per example, shape [batch], float32, in nats times temperature²; zero exactly
        where the two distributions agree.

    Raises:
        ParameterError: If the shapes differ.
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    return times_squared(kl_divergence(student, teacher), temperature)


def soft_cross_entropy_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """Cross-entropy of the student against the teacher's soft targets, times temperature².

    The same gradients as `soft_target_loss`: the two differ by the teacher's own entropy, so
    that this one is not zero where the two agree (Hinton et al. 2015, §2).

    Args and Raises as in `soft_target_loss`.

    Returns:
        One loss per example, shape [batch], float32, in nats times temperature².
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    return times_squared(cross_entropy(student, teacher), temperature)


def reverse_kl_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """KL divergence of the teacher's soft targets from the student, times temperature².

    It punishes mass where the teacher has none, and not mass that is missing: a student that is
    too small gives up classes that the teacher finds unlikely instead of spreading over all (Gu et
    al. 2024, arXiv:2306.08543, §2, on text). Pitfall: its gradients vanish where the student is
    sure, whether or not the teacher is.

    Args and Raises as in `soft_target_loss`.

    Returns:
        One loss per example, shape [batch], float32, in nats times temperature²; zero exactly
        where the two distributions agree.
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    return times_squared(kl_divergence(teacher, student), temperature)


def jensen_shannon_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """Jensen-Shannon divergence of student and soft targets (Lin 1991), times temperature².

    The mean of the KL divergences of the two from their even mixture: symmetric, and at most
    log 2, so that no single example dominates a batch (Agarwal et al. 2024, arXiv:2306.13649, use
    it to distil text models). Pitfall: where the two nearly agree it is a quarter of the KL
    divergence; compare it at its own `soft_weight`.

    Args and Raises as in `soft_target_loss`.

    Returns:
        One loss per example, shape [batch], float32, in [0, log 2] nats times temperature².
    """
    student, teacher = log_softmaxes(student_logits, teacher_logits, temperature)
    mixture = torch.logaddexp(student, teacher) - math.log(2)
    both = kl_divergence(mixture, teacher) + kl_divergence(mixture, student)
    return times_squared(0.5 * both, temperature)


def logit_mse_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Half the mean squared difference of the zero-mean logits.

    The limit of `soft_target_loss` as the temperature goes to infinity (Hinton et al. 2015,
    §2.1; Ba and Caruana 2014): logits count only up to a constant, so both are centred first.

    Args and Raises as in `soft_target_loss`.

    Returns:
        One loss per example, shape [batch], float32, in squared logits.
    """
    check_shapes(student_logits, teacher_logits)
    difference = student_logits.float() - teacher_logits.detach().float()
    difference = difference - difference.mean(dim=-1, keepdim=True)
    return 0.5 * difference.square().mean(dim=-1)


def pseudo_label_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy against the teacher's decision: its argmax as if it were the label (Lee 2013).

    The control for soft targets: it takes the place of their loss, and all else stays, so that
    what the two differ in is the softness alone.

    Args and Raises as in `soft_target_loss`.

    Returns:
        One loss per example, shape [batch], float32, in nats.
    """
    check_shapes(student_logits, teacher_logits)
    return F.cross_entropy(student_logits.float(), teacher_logits.argmax(dim=-1), reduction="none")


SOFT_LOSSES: dict[str, SoftLoss] = {
    "kl": SoftLoss(soft_target_loss, read_top_k=gather_other_classes),
    "cross_entropy": SoftLoss(soft_cross_entropy_loss, read_top_k=gather_other_classes),
    "logit_mse": SoftLoss(logit_mse_loss, uses_temperature=False),
    "pseudo_label": SoftLoss(
        pseudo_label_loss, uses_temperature=False, read_top_k=keep_listed_classes
    ),
    "reverse_kl": SoftLoss(reverse_kl_loss, read_top_k=gather_other_classes),
    "jensen_shannon": SoftLoss(jensen_shannon_loss, read_top_k=gather_other_classes),
    **DECOUPLED,
    **RELATIONAL,
    **TRANSFORMED,
}
