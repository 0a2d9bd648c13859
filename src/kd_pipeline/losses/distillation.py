"""Losses that pull a student's class distribution towards its teacher's."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.errors import ParameterError


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
        ParameterError: If the shapes differ or the temperature is not positive.
    """
    _check(student_logits, teacher_logits, temperature)
    student_log_probs = _log_softmax(student_logits, temperature)
    teacher_log_probs = _log_softmax(teacher_logits.detach(), temperature)
    pointwise = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True)
    return _times_squared(pointwise.sum(dim=-1), temperature)


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
    _check(student_logits, teacher_logits, temperature)
    student_log_probs = _log_softmax(student_logits, temperature)
    teacher_probs = _log_softmax(teacher_logits.detach(), temperature).exp()
    return _times_squared(-(teacher_probs * student_log_probs).sum(dim=-1), temperature)


def logit_mse_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Half the mean squared difference of the zero-mean logits.

    The limit of `soft_target_loss` as the temperature goes to infinity (Hinton et al. 2015,
    §2.1; Ba and Caruana 2014): logits count only up to a constant, so both are centred first.

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        teacher_logits: Same shape; no gradient flows into them.
        temperature: Must be 1: this loss has none, and another value would be a silent no-op.

    Returns:
        One loss per example, shape [batch], float32, in squared logits.
    """
    _check(student_logits, teacher_logits, temperature)
    _check_has_none(temperature, "logit_mse")
    student = student_logits.float()
    teacher = teacher_logits.detach().float()
    difference = (student - teacher) - (student - teacher).mean(dim=-1, keepdim=True)
    return 0.5 * difference.square().mean(dim=-1)


def pseudo_label_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """Cross-entropy against the teacher's decision: its argmax as if it were the label (Lee 2013).

    The control for soft targets: it takes the place of their loss, and all else stays, so that
    what the two differ in is the softness alone.

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        teacher_logits: Same shape; no gradient flows into them.
        temperature: Must be 1: a decision has none, and another value would be a silent no-op.

    Returns:
        One loss per example, shape [batch], float32, in nats.
    """
    _check(student_logits, teacher_logits, temperature)
    _check_has_none(temperature, "pseudo_label")
    return F.cross_entropy(student_logits.float(), teacher_logits.argmax(dim=-1), reduction="none")


TEMPERATURE_FREE = ("logit_mse", "pseudo_label")
"""Losses that would ignore a temperature."""

SOFT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "kl": soft_target_loss,
    "cross_entropy": soft_cross_entropy_loss,
    "logit_mse": logit_mse_loss,
    "pseudo_label": pseudo_label_loss,
}


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    # In float32: half precision loses the small probabilities that carry the knowledge.
    logits = logits.float()
    # At temperature 1 the division and its gradient are a tenth of a tiny student's step.
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _times_squared(loss: Tensor, temperature: float) -> Tensor:
    return loss if temperature == 1 else loss * temperature**2


def _check_has_none(temperature: float, name: str) -> None:
    if temperature != 1:
        raise ParameterError("temperature", f"be 1 for {name}, which has none", temperature)


def _check(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    if student_logits.shape != teacher_logits.shape:
        shapes = tuple(student_logits.shape), tuple(teacher_logits.shape)
        raise ParameterError("student_logits and teacher_logits", "have one shape", shapes)
    if not temperature > 0:
        raise ParameterError("temperature", "be > 0", temperature)
