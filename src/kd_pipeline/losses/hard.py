"""Losses without a teacher: against labels, which some examples lack, and against confidence."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NO_LABEL = -1
"""The label of an example that has none."""


class MixedLabels(NamedTuple):
    """The labels of images that are two images in one (mixup, CutMix)."""

    labels: Tensor
    """int64 [batch], of the image itself; `NO_LABEL` where there is none."""
    partner_labels: Tensor
    """int64 [batch], of the image mixed in."""
    image_weight: Tensor
    """float32 [batch], of the image itself; 1 where nothing was mixed in."""

    def dominant(self) -> Tensor:
        """The label of the image with the larger weight, int64 [batch]."""
        return torch.where(self.image_weight >= 0.5, self.labels, self.partner_labels)


def hard_label_loss(
    student_logits: Tensor, labels: Tensor | MixedLabels, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy against labels, with label smoothing (Szegedy et al. 2015, §7).

    Labels of mixed images are weighed as their images are (Zhang et al. 2018). An image mixed with
    one that has no label has none either: half of a label would teach the student that the image
    shows that class alone.

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        labels: int64 [batch]; `NO_LABEL` where there is none.
        label_smoothing: Share of each target spread evenly over all classes; in [0, 1).

    Returns:
        One loss per example, shape [batch], float32, in nats; exactly 0, with no gradient, where
        there is no label, so that a batch without any label is 0 and not NaN.
    """
    if isinstance(labels, MixedLabels):
        own = hard_label_loss(student_logits, labels.labels, label_smoothing=label_smoothing)
        other = hard_label_loss(
            student_logits, labels.partner_labels, label_smoothing=label_smoothing
        )
        mixed = labels.image_weight * own + (1 - labels.image_weight) * other
        mixed = torch.where(labels.image_weight == 1, own, mixed)
        return mixed.where(has_label(labels), 0.0)
    return F.cross_entropy(
        student_logits.float(),
        labels,
        ignore_index=NO_LABEL,
        label_smoothing=label_smoothing,
        reduction="none",
    )


def confidence_penalty(student_logits: Tensor) -> Tensor:
    """KL divergence of the uniform distribution from the student's: log num_classes - entropy.

    Its gradients are those of minus the entropy, the penalty of Pereyra et al. 2017
    (arXiv:1701.06548); label smoothing is the divergence in the other direction. It needs no label.

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].

    Returns:
        One value per example, shape [batch], float32, in [0, log num_classes] nats.
    """
    log_probs = F.log_softmax(student_logits.float(), dim=-1)
    return math.log(student_logits.shape[-1]) + (log_probs.exp() * log_probs).sum(dim=-1)


def has_label(labels: Tensor | MixedLabels) -> Tensor:
    """Which examples have a label, bool [batch]; a mixed one needs both of its own."""
    if isinstance(labels, Tensor):
        return labels != NO_LABEL
    alone = labels.image_weight == 1
    return (labels.labels != NO_LABEL) & ((labels.partner_labels != NO_LABEL) | alone)
