"""The loss against labels, for batches in which some examples have none."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.errors import ParameterError

NO_LABEL = -1
"""The label of an example that has none."""


class MixedLabels(NamedTuple):
    """The labels of images that are two images in one (mixup, CutMix)."""

    own: Tensor
    """int64 [batch], `NO_LABEL` where there is none."""
    partner: Tensor
    """int64 [batch], of the image mixed in."""
    own_share: Tensor
    """float32 [batch], of the first image; 1 where nothing was mixed in."""

    def dominant(self) -> Tensor:
        """The label of the larger share, int64 [batch]."""
        return torch.where(self.own_share >= 0.5, self.own, self.partner)


def hard_label_loss(
    student_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy against labels, with label smoothing (Szegedy et al. 2015, §7).

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        labels: int64 [batch]; `NO_LABEL` where there is none.
        label_smoothing: Share of each target spread evenly over all classes; in [0, 1).

    Returns:
        One loss per example, shape [batch], float32, in nats; exactly 0, with no gradient, where
        there is no label, so that a batch without any label is 0 and not NaN.

    Raises:
        ParameterError: If the smoothing is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ParameterError("label_smoothing", "be in [0, 1)", label_smoothing)
    return F.cross_entropy(
        student_logits.float(),
        labels,
        ignore_index=NO_LABEL,
        label_smoothing=label_smoothing,
        reduction="none",
    )


def mixed_label_loss(
    student_logits: Tensor, labels: MixedLabels, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy against both labels of a mixed image, by their shares (Zhang et al. 2018).

    An image mixed with one that has no label has none either: half of a label would teach the
    student that the image shows that class alone.

    Args:
        student_logits: Unnormalised scores, shape [batch, num_classes].
        labels: Of both images.
        label_smoothing: As in `hard_label_loss`.

    Returns:
        One loss per example, shape [batch], float32, in nats.
    """
    own = hard_label_loss(student_logits, labels.own, label_smoothing=label_smoothing)
    other = hard_label_loss(student_logits, labels.partner, label_smoothing=label_smoothing)
    mixed = labels.own_share * own + (1 - labels.own_share) * other
    mixed = torch.where(labels.own_share == 1, own, mixed)
    return mixed.where(labelled(labels), 0.0)


def labelled(labels: Tensor | MixedLabels) -> Tensor:
    """Which examples have a label, bool [batch]; a mixed one needs both of its own."""
    if isinstance(labels, Tensor):
        return labels != NO_LABEL
    alone = labels.own_share == 1
    return (labels.own != NO_LABEL) & ((labels.partner != NO_LABEL) | alone)


def label_loss(
    student_logits: Tensor, labels: Tensor | MixedLabels, *, label_smoothing: float
) -> Tensor:
    """The loss against labels of either kind."""
    loss = hard_label_loss if isinstance(labels, Tensor) else mixed_label_loss
    return loss(student_logits, labels, label_smoothing=label_smoothing)  # type: ignore[arg-type]
