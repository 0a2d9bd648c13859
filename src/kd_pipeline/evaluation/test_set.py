"""The single reading of the test set."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.agreement import AGREEMENT_METRICS, agreement_metrics
from kd_pipeline.evaluation.classification import classification_metrics, example_table
from kd_pipeline.labelling.accuracy_gate import validation_accuracy
from kd_pipeline.labelling.predictor import open_predictor
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.imported_logits import covers
from kd_pipeline.soft_targets.ensemble import Mixing, mix_logits

logger = logging.getLogger(__name__)

_TEACHER = "teacher"
_SUMMED_COSTS = ("model/parameters", "model/macs", "model/size_bytes", "cost/train_seconds")


class TestReader:
    """Reads all test rows with a model, in the order of their ids, and measures it.

    Raises:
        DataError: If there is no test example, or one has no label: before any forward pass.
    """

    __test__ = False  # pytest takes the name for a test

    def __init__(
        self,
        images: ImageSet,
        examples: pd.DataFrame,
        splits: pd.DataFrame,
        *,
        batch_size: int,
        device: str,
        precision: str,
        num_bins: int,
    ) -> None:
        self._images = images
        self._num_bins = num_bins
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "device": device,
            "precision": precision,
        }
        self.example_ids: NDArray[np.int64] = ids_with_role(splits, "test")
        self.labels = _labels(examples, self.example_ids)

    def logits(self, checkpoint: ModelCheckpoint, *, description: str) -> Tensor:
        """float32 [num_test_examples, num_classes]."""
        predictor = open_predictor(checkpoint, self._images, **self._settings)
        return predictor.logits(self.example_ids, description=description)

    def teacher_logits(self, teacher: Sequence[ModelCheckpoint], mixing: Mixing) -> Tensor | None:
        """The members' logits mixed into one model's, or None where imported ones leave rows out.

        They are mixed at temperature 1, at which a classifier is measured.
        """
        if not all(covers(member, self.example_ids) for member in teacher):
            logger.warning(
                "the teacher's imported logits do not cover the test set: it is not measured, nor "
                "is the students' agreement with it"
            )
            return None
        return _mixed([self.logits(one, description="test: teacher") for one in teacher], mixing)

    def measure(
        self, logits: Tensor, teacher_logits: Tensor | None
    ) -> tuple[pd.DataFrame, dict[str, float | int]]:
        """The table of predictions and the metrics of one model's logits."""
        table = example_table(logits, self.labels)
        table.insert(0, "example_id", self.example_ids)
        measured = classification_metrics(logits, self.labels, num_bins=self._num_bins)
        if teacher_logits is None:
            return table, {**measured, **dict.fromkeys(AGREEMENT_METRICS, math.nan)}
        return table, {**measured, **agreement_metrics(logits, teacher_logits)}


def read_test_set(
    reader: TestReader,
    teacher: Sequence[ModelCheckpoint],
    students: Mapping[str, Sequence[ModelCheckpoint]],
    *,
    mixing: Mixing,
    learnt_from: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the teacher as replicate 0 of its own role, then every replicate of every arm.

    Args:
        reader: Of the test set.
        teacher: Its members, evaluated as one model under the first one's fingerprint.
        students: The replicates of each arm, by the arm's name.
        mixing: How the teacher's members are mixed.
        learnt_from: The role that each arm's agreement is measured with: the teacher, or an arm
            before it. The teacher where it is not named.

    Returns:
        predictions: role, replicate, example_id, label, predicted, confidence, nll, in_top5.
        metrics: role, replicate, checkpoint, data_known (whether the model tells what it was
            trained on), and a column per metric named as in MLflow.

        A teacher whose imported logits leave out test rows has no rows in either, and the
        students' agreement with it is NaN.
    """
    sources = {_TEACHER: reader.teacher_logits(teacher, mixing)}
    tables, rows = [], []

    def keep(role: str, replicate: int, models: Sequence[ModelCheckpoint], logits: Tensor) -> None:
        table, measured = reader.measure(logits, sources[(learnt_from or {}).get(role, _TEACHER)])
        table.insert(0, "role", role)
        table.insert(1, "replicate", replicate)
        tables.append(table)
        identity = {"role": role, "replicate": replicate, "checkpoint": models[0].fingerprint}
        # A given teacher of unknown origin may have seen the test set: the report says so.
        known = all("splits" in model.facts for model in models)
        rows.append({**identity, "data_known": known, **measured, **_costs(models)})

    if (teacher_logits := sources[_TEACHER]) is not None:
        keep(_TEACHER, 0, teacher, teacher_logits)
    for arm, replicates in students.items():
        read = [reader.logits(one, description=f"test: {arm}") for one in replicates]
        for replicate, (checkpoint, logits) in enumerate(zip(replicates, read, strict=True)):
            keep(arm, replicate, [checkpoint], logits)
        if arm in (learnt_from or {}).values():
            sources[arm] = _mixed(read, Mixing(mixing.kind))
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


def describe_models(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    models: Mapping[str, Sequence[ModelCheckpoint]],
    *,
    mixing: Mixing,
    **settings: Any,
) -> pd.DataFrame:
    """Name each model's architecture and measure it on the validation set.

    Args:
        images: Where the pixels are.
        examples: The labels.
        splits: Whose role `validation` is read.
        models: The teacher, taken as one model, and the replicates of each arm, by role.
        mixing: How the teacher's members are mixed.
        settings: `batch_size`, `device` and `precision`.

    Returns:
        role, replicate, architecture, num_members, validation_accuracy: NaN where no validation
        row has a label, or imported logits leave some out.
    """
    rows = []
    for role, checkpoints in models.items():
        each = [checkpoints] if role == _TEACHER else [[one] for one in checkpoints]
        for replicate, members in enumerate(each):
            mixed = mixing if role == _TEACHER else Mixing()
            data = (members, images, examples, splits)
            accuracy = validation_accuracy(*data, mixing=mixed, **settings)
            arguments = members[0].arguments
            spelt = f" {json.dumps(dict(arguments))}" if arguments else ""
            named = {"architecture": f"{members[0].architecture}{spelt}"}
            counted = {"num_members": len(members), "validation_accuracy": accuracy}
            rows.append({"role": role, "replicate": replicate, **named, **counted})
    return pd.DataFrame(rows)


def _mixed(members: Sequence[Tensor], mixing: Mixing) -> Tensor:
    mixed = mix_logits(torch.stack(list(members)).numpy(), mixing=mixing, temperature=1.0)
    return torch.from_numpy(mixed)


def _labels(examples: pd.DataFrame, example_ids: NDArray[np.int64]) -> Tensor:
    if len(example_ids) == 0:
        raise DataError("`splits` must have rows of role test, got none")
    labels = examples.set_index("example_id")["label"].reindex(example_ids)
    if labels.isna().any():
        raise DataError(
            f"every test example must have a label, got {int(labels.isna().sum())} without"
        )
    return torch.from_numpy(labels.to_numpy(dtype=np.int64).copy())


def _costs(models: Sequence[ModelCheckpoint]) -> dict[str, float | None]:
    """What the models' facts tell of size and time, summed over an ensemble; null if untold."""
    told = [model.facts.get("costs", {}) for model in models]
    return {
        name: sum(cost[name] for cost in told) if all(name in cost for cost in told) else None
        for name in _SUMMED_COSTS
    }
