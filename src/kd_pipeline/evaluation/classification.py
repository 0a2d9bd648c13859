"""How good a classifier's logits are, measured against the labels."""

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from kd_pipeline.errors import DataError

TOP_K = 5


def classification_metrics(
    logits: Tensor, labels: Tensor, *, num_bins: int
) -> dict[str, float | int]:
    """Measure accuracy, likelihood and calibration on a labelled set.

    Args:
        logits: Unnormalised scores, float [num_examples, num_classes].
        labels: int64 [num_examples].
        num_bins: Equal-width bins of confidence for the expected calibration error.

    Returns:
        `test/accuracy`; `test/top5_accuracy` (of the best min(5, num_classes), so 1 where there
        are no more than five classes); `test/errors`, a count; `test/nll` in nats; `test/ece`
        (Guo et al. 2017, arXiv:1706.04599); `test/brier`, the sum over classes of the squared
        difference to the one-hot label, in [0, 2]. All but the count are means over examples.

    Raises:
        DataError: If the shapes do not fit, there is no example, or a logit is not finite.
    """
    _check(logits, labels)
    num_classes = logits.shape[1]
    probabilities = functional.softmax(logits.double(), dim=1)
    one_hot = functional.one_hot(labels, num_classes)
    brier = (probabilities - one_hot).square().sum(dim=1).mean()
    accuracy, top5 = (
        multiclass_accuracy(probabilities, labels, num_classes, average="micro", top_k=top_k)
        for top_k in (1, min(TOP_K, num_classes))
    )
    ece = multiclass_calibration_error(
        probabilities, labels, num_classes, n_bins=num_bins, norm="l1"
    )
    return {
        "test/accuracy": accuracy.double().item(),
        "test/top5_accuracy": top5.double().item(),
        "test/errors": int((probabilities.argmax(dim=1) != labels).sum()),
        "test/nll": functional.cross_entropy(logits.double(), labels).item(),
        "test/ece": ece.double().item(),
        "test/brier": brier.item(),
    }


def example_table(logits: Tensor, labels: Tensor) -> pd.DataFrame:
    """Say for every example what was predicted and how well.

    Args:
        logits: float [num_examples, num_classes].
        labels: int64 [num_examples].

    Returns:
        One row per example, in the order given: `label` and `predicted` (int64), `confidence`
        (the predicted class's probability), `nll` in nats, `in_top5` (bool).

    Raises:
        DataError: If the shapes do not fit, there is no example, or a logit is not finite.
    """
    _check(logits, labels)
    log_probs = functional.log_softmax(logits.double(), dim=1)
    confidence, predicted = log_probs.exp().max(dim=1)
    best = log_probs.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    return pd.DataFrame(
        {
            "label": labels.numpy(),
            "predicted": predicted.numpy(),
            "confidence": confidence.numpy(),
            "nll": functional.nll_loss(log_probs, labels, reduction="none").numpy(),
            "in_top5": (best == labels[:, None]).any(dim=1).numpy(),
        }
    )


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise DataError(
            "`logits` and `labels` must have shapes [n, num_classes] and [n] with n > 0, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not torch.isfinite(logits).all():
        raise DataError("`logits` must be finite, got NaN or infinity")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            f"`labels` must be classes of the model, 0 to {logits.shape[1] - 1}, got "
            f"{int(labels.min())} to {int(labels.max())}"
        )
