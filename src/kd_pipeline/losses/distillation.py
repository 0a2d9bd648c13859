"""Losses that pull a student's class distribution towards its teacher's, and their table.

A loss is a pure function of student_logits and teacher_logits [batch, num_classes] to one value
per example, float32 [batch]. `SoftLoss` states what else it takes; `Objective` passes just that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.settings import SoftLossParams
from kd_pipeline.teacher_logits import TeacherLogits, tail_logit, with_tail

ReadTopK = Callable[[Tensor, TeacherLogits[Tensor], float], tuple[Tensor, Tensor]]
"""Maps student logits, the teacher's top k and the temperature to two logits of one shape."""


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
    _check_shapes(student_logits, teacher_logits)
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
    _check_shapes(student_logits, teacher_logits)
    student_log_probs = _log_softmax(student_logits, temperature)
    teacher_probs = _log_softmax(teacher_logits.detach(), temperature).exp()
    return _times_squared(-(teacher_probs * student_log_probs).sum(dim=-1), temperature)


def logit_mse_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Half the mean squared difference of the zero-mean logits.

    The limit of `soft_target_loss` as the temperature goes to infinity (Hinton et al. 2015,
    §2.1; Ba and Caruana 2014): logits count only up to a constant, so both are centred first.

    Args and Raises as in `soft_target_loss`.

    Returns:
        One loss per example, shape [batch], float32, in squared logits.
    """
    _check_shapes(student_logits, teacher_logits)
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
    _check_shapes(student_logits, teacher_logits)
    return F.cross_entropy(student_logits.float(), teacher_logits.argmax(dim=-1), reduction="none")


def gather_other_classes(
    student_logits: Tensor, teacher: TeacherLogits[Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    """Gather all classes beyond the teacher's top k into one, on both sides.

    The softmax of each result at the temperature is the distribution over k classes and "any
    other", exactly; how the student shares its mass among the others is left to the labels.

    Returns:
        The student's and the teacher's logits, each [batch, k + 1], all other classes last.
    """
    if teacher.class_ids is None:
        return student_logits, teacher.logits
    # In float32: half precision loses the small probabilities that are added up.
    student = student_logits.float()
    top = student.gather(1, teacher.class_ids)
    tail = tail_logit(student, teacher.class_ids, temperature=temperature)
    return torch.cat([top, tail[:, None]], dim=1), with_tail(teacher)


def keep_listed_classes(
    student_logits: Tensor, teacher: TeacherLogits[Tensor], _temperature: float
) -> tuple[Tensor, Tensor]:
    """Give no class beyond the top k any mass, for a loss that needs the best class alone.

    Returns:
        The student's logits as they are, and the teacher's, minus infinity beyond the top k.
    """
    if teacher.class_ids is None:
        return student_logits, teacher.logits
    nothing = torch.full_like(student_logits, -math.inf, dtype=teacher.logits.dtype)
    return student_logits, nothing.scatter(1, teacher.class_ids, teacher.logits)


def spread_tail(
    teacher: TeacherLogits[Tensor], *, num_classes: int, temperature: float
) -> TeacherLogits[Tensor]:
    """Share the tail's mass evenly among the classes beyond the top k.

    Returns:
        Logits of all classes, which hold at this temperature alone.
    """
    if teacher.class_ids is None or teacher.tail_logits is None:
        return teacher
    num_others = num_classes - teacher.class_ids.shape[1]
    each = teacher.tail_logits - temperature * math.log(num_others)
    spread = each[:, None].expand(-1, num_classes)
    return TeacherLogits(spread.scatter(1, teacher.class_ids, teacher.logits))


@dataclass(frozen=True)
class SoftLoss:
    """A loss against the teacher's logits, and what it takes beside the two sets of logits."""

    function: Callable[..., Tensor]
    uses_temperature: bool = True
    """Takes `temperature`; a loss without one is refused at any temperature but 1."""
    needs_labels: bool = False
    """Takes `labels`, int64 [batch], and `label_mask`, bool [batch], False where there is none."""
    read_top_k: ReadTopK | None = None
    """How it is computed from a top-k cache; None where it needs the logit of every class."""
    settings: type[SoftLossParams] = SoftLossParams
    """Type of its block in YAML. A type with fields beside `name` is passed on as `settings`."""


SOFT_LOSSES: dict[str, SoftLoss] = {
    "kl": SoftLoss(soft_target_loss, read_top_k=gather_other_classes),
    "cross_entropy": SoftLoss(soft_cross_entropy_loss, read_top_k=gather_other_classes),
    "logit_mse": SoftLoss(logit_mse_loss, uses_temperature=False),
    "pseudo_label": SoftLoss(
        pseudo_label_loss, uses_temperature=False, read_top_k=keep_listed_classes
    ),
}


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    # In float32: half precision loses the small probabilities that carry the knowledge.
    logits = logits.float()
    # At temperature 1 the division and its gradient are a tenth of a tiny student's step.
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _times_squared(loss: Tensor, temperature: float) -> Tensor:
    return loss if temperature == 1 else loss * temperature**2


def _check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        shapes = tuple(student_logits.shape), tuple(teacher_logits.shape)
        raise ParameterError("student_logits and teacher_logits", "have one shape", shapes)
