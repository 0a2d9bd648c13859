"""The metrics of a model on the test set: one record each.

A new metric takes one record: it is then in metrics.csv and in MLflow and, as the record's fields
have it, in comparison.json and in the tables of the report and the terminal.
torch is imported by the functions: tables need the records alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation import numbers

if TYPE_CHECKING:
    from torch import Tensor

    from kd_pipeline.models.calibration import Calibration

TOP_K = 5
ARMS, CALIBRATION = "arms", "calibration"
"""The tables of the report that have a column per metric."""


@dataclass(frozen=True, eq=False)
class LabelledLogits:
    """One model's logits on the test set, and what they are measured against."""

    logits: Tensor  # float32 [num_examples, num_classes]
    labels: Tensor  # int64 [num_examples]
    teacher_logits: Tensor | None  # as `logits`; None where there is no agreement to measure
    num_bins: int  # of the calibration error
    calibration: Calibration | None = None  # fitted on validation; None where it was not

    def __post_init__(self) -> None:
        """Refuse logits that are not finite."""
        if not self.logits.isfinite().all():
            raise DataError("`logits` must be finite, got NaN or infinity")

    @property
    def num_classes(self) -> int:
        """Width of `logits`."""
        return self.logits.shape[1]

    @cached_property
    def probabilities(self) -> Tensor:
        """float64 [num_examples, num_classes]."""
        return self.logits.double().softmax(dim=1)

    @cached_property
    def calibrated(self) -> LabelledLogits | None:
        """The same with the logits divided by the fitted temperature; None without one."""
        if self.calibration is None:
            return None
        logits = self.logits.double() / self.calibration.temperature
        return replace(self, logits=logits, calibration=None)


@dataclass(frozen=True)
class Metric:
    """A number per model: how it is computed, and where and how it is shown."""

    name: str  # as in MLflow
    compute: Callable[[LabelledLogits], float]
    show: Callable[[Mapping[str, Any]], str] = numbers.decimals
    heading: str = ""  # in the report's tables, where it has one
    short_heading: str = ""  # in the terminal's
    tables: tuple[str, ...] = (ARMS,)  # of the report, that have the heading
    summarised: bool = False  # in comparison.json, as tables need it
    lower_is_better: bool = False
    against_teacher: bool = False  # NaN without the teacher's logits
    min_classes: int = 2  # of tables that show it
    per_example: Callable[[pd.DataFrame], pd.Series | None] | None = None
    """Its value per row of `predictions`, where students are compared by it in pairs; the function
    returns None for predictions that do not have it."""

    @property
    def key(self) -> str:
        """The name in comparison.json."""
        return self.name.removeprefix("test/").replace("/", "_")


def _accuracy(model: LabelledLogits) -> float:
    return (model.probabilities.argmax(dim=1) == model.labels).float().mean().item()


def _top5_accuracy(model: LabelledLogits) -> float:
    best = model.probabilities.topk(min(TOP_K, model.num_classes), dim=1).indices
    return (best == model.labels[:, None]).any(dim=1).float().mean().item()


def _errors(model: LabelledLogits) -> int:
    return int((model.probabilities.argmax(dim=1) != model.labels).sum())


def _nll(model: LabelledLogits) -> float:
    """In nats."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(model.logits.double(), model.labels).item()


def _ece(model: LabelledLogits) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599).

    Bins of equal width hold their lower bound; a confidence of 1 has one of its own.
    """
    import torch

    confidence, predicted = model.probabilities.max(dim=1)
    confidence, is_right = confidence.float(), (predicted == model.labels).float()
    bounds = torch.linspace(0, 1, model.num_bins + 1)
    bins = torch.bucketize(confidence, bounds, right=True) - 1
    sums = torch.zeros(2, len(bounds)).index_add(1, bins, torch.stack([is_right, confidence]))
    count = torch.bincount(bins, minlength=len(bounds))
    gaps = (sums[0] / count - sums[1] / count).nan_to_num().abs()
    return (gaps * (count / count.sum())).sum().item()


def _brier(model: LabelledLogits) -> float:
    """Sum over classes of the squared difference to the one-hot label, in [0, 2]."""
    from torch.nn.functional import one_hot

    wanted = one_hot(model.labels, model.num_classes)
    return (model.probabilities - wanted).square().sum(dim=1).mean().item()


def _teacher_agreement(model: LabelledLogits) -> float:
    """Share of examples on which both predict the same class (Stanton 2021, arXiv:2106.05945)."""
    if model.teacher_logits is None:
        return math.nan
    same = model.logits.argmax(dim=1) == model.teacher_logits.argmax(dim=1)
    return same.double().mean().item()


def _teacher_kl(model: LabelledLogits) -> float:
    """Mean KL(teacher || student) in nats, at temperature 1."""
    from torch.nn.functional import kl_div

    if model.teacher_logits is None:
        return math.nan
    student = model.logits.double().log_softmax(dim=1)
    teacher = model.teacher_logits.double().log_softmax(dim=1)
    # Rounding leaves about -1e-17 where the two are equal.
    return max(0.0, kl_div(student, teacher, reduction="batchmean", log_target=True).item())


def _if_calibrated(
    compute: Callable[[LabelledLogits], float],
) -> Callable[[LabelledLogits], float]:
    """A metric of the calibrated logits; NaN where no temperature was fitted."""
    return lambda model: math.nan if model.calibrated is None else compute(model.calibrated)


def _calibration_temperature(model: LabelledLogits) -> float:
    return math.nan if model.calibration is None else model.calibration.temperature


def _calibration_examples(model: LabelledLogits) -> float:
    return math.nan if model.calibration is None else model.calibration.num_examples


METRICS = (
    Metric("test/accuracy", _accuracy, numbers.percent, "accuracy %", "accuracy %", summarised=True,
           per_example=lambda rows: rows["predicted"] == rows["label"]),
    Metric("test/top5_accuracy", _top5_accuracy, numbers.percent,
           "top-5 %", "top-5 %", summarised=True, min_classes=2 * TOP_K),
    Metric("test/errors", _errors, numbers.count, "errors", summarised=True),
    Metric("test/nll", _nll, numbers.decimals, "NLL", "NLL", summarised=True,
           tables=(ARMS, CALIBRATION), per_example=lambda rows: rows["nll"], lower_is_better=True),
    Metric("test/nll_calibrated", _if_calibrated(_nll), numbers.decimals, "NLL, calibrated",
           summarised=True, tables=(CALIBRATION,),
           per_example=lambda rows: rows.get("nll_calibrated"), lower_is_better=True),
    Metric("test/ece", _ece, numbers.decimals, "ECE", "ECE", summarised=True,
           tables=(ARMS, CALIBRATION)),
    Metric("test/ece_calibrated", _if_calibrated(_ece), numbers.decimals, "ECE, calibrated",
           summarised=True, tables=(CALIBRATION,)),
    Metric("calibration/temperature", _calibration_temperature, numbers.decimals, "temperature",
           summarised=True, tables=(CALIBRATION,)),
    Metric("calibration/examples", _calibration_examples, summarised=True),
    Metric("test/brier", _brier),
    Metric("test/teacher_agreement", _teacher_agreement, numbers.percent,
           "agreement with the teacher %", "agreement %", summarised=True, against_teacher=True),
    Metric("test/teacher_kl", _teacher_kl, against_teacher=True),
)  # fmt: skip


def measure(model: LabelledLogits) -> dict[str, float]:
    """All metrics by name; NaN for those against the teacher where there is none."""
    return {metric.name: metric.compute(model) for metric in METRICS}


def example_table(model: LabelledLogits) -> pd.DataFrame:
    """One row per example: label, predicted class, its probability, NLL in nats, in the top 5.

    Where a temperature was fitted, also the NLL of the calibrated logits.
    """
    log_probs = model.logits.double().log_softmax(dim=1)
    confidence, predicted = log_probs.exp().max(dim=1)
    best = log_probs.topk(min(TOP_K, model.num_classes), dim=1).indices
    labels = model.labels[:, None]
    table = pd.DataFrame(
        {
            "label": model.labels.numpy(),
            "predicted": predicted.numpy(),
            "confidence": confidence.numpy(),
            "nll": -log_probs.gather(1, labels)[:, 0].numpy(),
            "in_top5": (best == labels).any(dim=1).numpy(),
        }
    )
    if model.calibrated is not None:
        log_probs = model.calibrated.logits.log_softmax(dim=1)
        table["nll_calibrated"] = -log_probs.gather(1, labels)[:, 0].numpy()
    return table
