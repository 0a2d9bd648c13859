"""The loss against labels, for batches in which some examples have none."""

import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.errors import ParameterError

NO_LABEL = -1
"""The label of an example that has none."""


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
