"""Losses that compare correlations, and not distributions."""

import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.config import NonNegativeFloat
from kd_pipeline.losses.record import SoftLoss, check_shapes, times_squared
from kd_pipeline.losses.settings import SoftLossParams

_NO_DEVIATION = 1e-4
"""Probabilities whose deviations have a smaller norm are taken as all alike: the correlation of
such is noise, and its gradient has no bound."""


class DistParams(SoftLossParams):
    """Settings of `dist`; the defaults are those of the authors' code for ImageNet."""

    between_weight: NonNegativeFloat = 1.0
    """Of the relation between the classes of an example; the authors' β."""
    within_weight: NonNegativeFloat = 1.0
    """Of the relation within a class between the examples of a batch; the authors' γ."""


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, settings: DistParams
) -> Tensor:
    """DIST: 1 - Pearson's correlation of the probabilities, between and within classes.

    A student so need not match a stronger teacher's probabilities, but their order and spacing
    (Huang et al. 2022, arXiv:2205.10536). Between classes each example is correlated over its
    classes; within a class, the batch is, over its examples. The latter is one number for a batch,
    the mean over classes, and **every example carries it whole**: their mean is the published loss,
    and an example's value depends on the others of its batch. Rows without a soft target are left
    out of the batch first; of a batch of one it is 1 and teaches nothing.

    Authors' settings: weights 1 and 1 beside hard weight 1, temperature 1 on ImageNet and, by the
    author's advice, 4 on CIFAR-100. Their code multiplies by temperature², as here; the pseudocode
    in the paper's appendix does not. Pitfall: of two classes the part between them is a sign and
    has no gradient.

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        teacher_logits: Same shape; no gradient flows into them.
        temperature: Divides both sets of logits.
        settings: The weights of the two parts.

    Returns:
        One loss per example, shape [batch], float32, in [0, 2 x (sum of weights)] times
        temperature².

    Raises:
        ParameterError: If the shapes differ.
    """
    check_shapes(student_logits, teacher_logits)
    student = (student_logits.float() / temperature).softmax(dim=-1)
    teacher = (teacher_logits.detach().float() / temperature).softmax(dim=-1)
    between = 1 - _correlation(student, teacher, dim=-1)
    within = 1 - _correlation(student, teacher, dim=-2).mean(dim=-1, keepdim=True)
    loss = settings.between_weight * between + settings.within_weight * within
    return times_squared(loss, temperature)


def _correlation(one: Tensor, other: Tensor, *, dim: int) -> Tensor:
    """Pearson's correlation along a dimension."""
    one, other = (values - values.mean(dim=dim, keepdim=True) for values in (one, other))
    return F.cosine_similarity(one, other, dim=dim, eps=_NO_DEVIATION)


RELATIONAL = {"dist": SoftLoss(dist_loss, over_batch=True, settings=DistParams)}
