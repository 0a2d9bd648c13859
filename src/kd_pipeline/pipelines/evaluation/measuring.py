"""The single reading of the test set."""

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
from kd_pipeline.labelling.predict import predict_logits
from kd_pipeline.metrics.agreement import agreement_metrics
from kd_pipeline.metrics.classification import (
    classification_metrics,
    example_table,
    mixed_logits,
)
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier

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
        return predict_logits(
            build_classifier(checkpoint),
            self._images,
            self.example_ids,
            description=description,
            **self._settings,
        )

    def measure(
        self, logits: Tensor, teacher_logits: Tensor
    ) -> tuple[pd.DataFrame, dict[str, float | int]]:
        """The table of predictions and the metrics of one model's logits."""
        table = example_table(logits, self.labels)
        table.insert(0, "example_id", self.example_ids)
        measured = classification_metrics(logits, self.labels, num_bins=self._num_bins)
        return table, {**measured, **agreement_metrics(logits, teacher_logits)}


def read_test_set(
    reader: TestReader,
    teacher: Sequence[ModelCheckpoint],
    students: Mapping[str, Sequence[ModelCheckpoint]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the teacher as replicate 0 of its own role, then every replicate of every arm.

    Args:
        reader: Of the test set.
        teacher: Its members, evaluated as one model under the first one's fingerprint.
        students: The replicates of each arm, by the arm's name.

    Returns:
        predictions: role, replicate, example_id, label, predicted, confidence, nll, in_top5.
        metrics: role, replicate, checkpoint, data_known (whether the model tells what it was
            trained on), and a column per metric named as in MLflow.
    """
    teacher_logits = mixed_logits(
        [reader.logits(member, description="test: teacher") for member in teacher]
    )
    tables, rows = [], []

    def keep(role: str, replicate: int, models: Sequence[ModelCheckpoint], logits: Tensor) -> None:
        table, measured = reader.measure(logits, teacher_logits)
        table.insert(0, "role", role)
        table.insert(1, "replicate", replicate)
        tables.append(table)
        identity = {"role": role, "replicate": replicate, "checkpoint": models[0].fingerprint}
        # A given teacher of unknown origin may have seen the test set: the report says so.
        known = all("splits" in model.facts for model in models)
        rows.append({**identity, "data_known": known, **measured, **_costs(models)})

    keep(_TEACHER, 0, teacher, teacher_logits)
    for arm, replicates in students.items():
        for replicate, checkpoint in enumerate(replicates):
            logits = reader.logits(checkpoint, description=f"test: {arm}")
            keep(arm, replicate, [checkpoint], logits)
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


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
