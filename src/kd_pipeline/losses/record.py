"""What a loss against the teacher's logits states of itself, and what several of them share.

Such a loss is a pure function of student_logits and teacher_logits [batch, num_classes] to one
value per example, float32 [batch]; no gradient flows into the teacher's logits. `SoftLoss` states
what else it takes; `Objective` passes just that.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.settings import SoftLossParams
from kd_pipeline.losses.top_k import ReadTopK


@dataclass(frozen=True)
class SoftLoss:
    """A loss against the teacher's logits, and what it takes beside the two sets of logits."""

    function: Callable[..., Tensor]
    uses_temperature: bool = True
    """Takes `temperature`; a loss without one is refused at any temperature but 1."""
    needs_labels: bool = False
    """Takes `labels`, int64 [batch], and `label_mask`, bool [batch], False where there is none."""
    over_batch: bool = False
    """An example's value depends on the others: rows without a soft target are not among them."""
    read_top_k: ReadTopK | None = None
    """How it is computed from a top-k cache; None where it needs the logit of every class."""
    settings: type[SoftLossParams] = SoftLossParams
    """Type of its block in YAML. A type with fields of its own is passed on as `settings`."""


def standardised(record: SoftLoss) -> SoftLoss:
    """The same loss on standardised logits: those of each row have mean 0 and deviation 1.

    Sun et al. 2024 (arXiv:2403.01427, §4): the student is to rank the classes as the teacher does,
    and need not match the range of its logits. The temperature divides the standardised logits.

    Authors' settings on CIFAR-100: temperature 2, weights 0.1 hard and 9 soft. Pitfalls: that
    weight is ten times the one of the plain distillation beside it, and may be most of the gain;
    nothing holds the scale of the student's logits, and their own logs end at an NLL of 3.88 with
    an accuracy of 76.3 %; an ensemble as the teacher lost 2 points until it was tuned again.
    It needs the logit of every class.
    """
    plain = record.function

    @wraps(plain)
    def loss(student_logits: Tensor, teacher_logits: Tensor, **arguments: Any) -> Tensor:
        check_shapes(student_logits, teacher_logits)
        student, teacher = _standardise(student_logits), _standardise(teacher_logits.detach())
        return plain(student, teacher, **arguments)

    return replace(record, function=loss, read_top_k=None)


def _standardise(logits: Tensor) -> Tensor:
    # Its epsilon, 1e-5 beside the variance, keeps gradients finite where all logits are alike.
    return F.layer_norm(logits.float(), logits.shape[-1:])


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Tempered log-probabilities, float32."""
    # In float32: half precision loses the small probabilities that carry the knowledge.
    logits = logits.float()
    # At temperature 1 the division and its gradient are a tenth of a tiny student's step.
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def log_softmaxes(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Both log-probabilities, the teacher's without a gradient.

    Raises:
        ParameterError: If the shapes differ.
    """
    check_shapes(student_logits, teacher_logits)
    student = log_softmax(student_logits, temperature)
    return student, log_softmax(teacher_logits.detach(), temperature)


def kl_divergence(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """KL divergence of the student's from the teacher's distribution in nats, [batch]."""
    pointwise = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True)
    return pointwise.sum(dim=-1)


def cross_entropy(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Cross-entropy of the student's against the teacher's distribution in nats, [batch]."""
    return -(teacher_log_probs.exp() * student_log_probs).sum(dim=-1)


def times_squared(loss: Tensor, temperature: float) -> Tensor:
    """Multiply by temperature², which keeps gradients on their scale (Hinton et al. 2015, §2)."""
    return loss if temperature == 1 else loss * temperature**2


def check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise a ParameterError if the shapes differ."""
    if student_logits.shape != teacher_logits.shape:
        shapes = tuple(student_logits.shape), tuple(teacher_logits.shape)
        raise ParameterError("student_logits and teacher_logits", "have one shape", shapes)
