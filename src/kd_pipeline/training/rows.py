"""What a model trains on, and in which order: every batch a pure function of seed and step."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.config import Computing
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImagePixels
from kd_pipeline.data.splits import student_rows
from kd_pipeline.errors import DataError
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import predict_batches, resolve_device
from kd_pipeline.models.preprocessing import Preprocessing, measure_preprocessing
from kd_pipeline.randomness import derive_seed, shuffled_order
from kd_pipeline.training.settings import Training

NUM_IMAGES_MEASURED = 10_000
"""Normalisation is measured on at most so many images."""
_MEASURED_AT_ONCE = 256
_VALIDATION_BATCH_SIZE = 1024


@dataclass(frozen=True)
class Rows:
    """Examples to learn from, or to mix into others: pixels and labels on the device."""

    pixels: ImagePixels
    labels: Tensor
    """int64 [num_rows], NO_LABEL where there is none or it may not be used."""
    has_soft_target: Tensor | None = None
    """bool [num_rows]; None where every row has one."""

    @property
    def example_ids(self) -> Tensor:
        """int64 [num_rows], ascending."""
        return self.pixels.example_ids

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)


def make_rows(
    data: LabelledImages,
    example_ids: np.ndarray,
    training: Training,
    budget: MemoryBudget,
    *,
    use_label: Tensor | None = None,
    has_soft_target: Tensor | None = None,
) -> Rows:
    """Rows of these examples, int64 [num_rows] ascending, on the device that a training names.

    Their pixels are copied there if they fit what is left of the budget.
    `use_label` and `has_soft_target` are bool [num_rows]; None is True for all.
    """
    device, labels = resolve_device(training.device), data.labels_of(example_ids)
    if use_label is not None:
        labels = labels.where(use_label, NO_LABEL)
    pixels = data.images.reader(example_ids, device=device, budget=budget)
    soft = None if has_soft_target is None else has_soft_target.to(device)
    return Rows(pixels, labels.to(device), soft)


def arm_rows(
    data: LabelledImages,
    objective: ObjectiveParams,
    training: Training,
    budget: MemoryBudget,
    *,
    has_teacher: bool,
) -> Rows:
    """The rows that an arm can learn from: those with a label or a soft target that it uses.

    `has_teacher` is whether the transfer set has soft targets for it.

    Raises:
        DataError: If no row is left.
    """
    open_rows = student_rows(data.splits)
    ids = open_rows["example_id"].to_numpy(np.int64)
    in_transfer, use_label = _flags(open_rows, "in_transfer"), _flags(open_rows, "use_label")
    labelled = _labelled(data, open_rows)
    has_soft = in_transfer & (has_teacher and objective.soft_weight > 0)
    used = has_soft | (labelled & objective.uses_labels)
    if not used.any():
        raise DataError(
            "no example is left to learn from: no student row has a usable label; set "
            "`transfer_split.transfer.labelled` or leave the arm out"
        )
    soft = None if bool(has_soft[used].all()) else has_soft[used]
    kept = ids[used.numpy()]
    return make_rows(data, kept, training, budget, use_label=use_label[used], has_soft_target=soft)


def _labelled(data: LabelledImages, rows: pd.DataFrame) -> Tensor:
    """Which rows of the splits have a label that a student may use, bool [num_rows]."""
    return _flags(rows, "use_label") & (
        data.labels_of(rows["example_id"].to_numpy(np.int64)) != NO_LABEL
    )


def _flags(rows: pd.DataFrame, column: str) -> Tensor:
    return torch.from_numpy(rows[column].to_numpy(bool, copy=True))


def has_usable_labels(data: LabelledImages) -> bool:
    """Whether any student row has a label that a student may use."""
    return bool(_labelled(data, student_rows(data.splits)).any())


def transfer_partners(
    data: LabelledImages, training: Training, budget: MemoryBudget, *, beside: Rows | None = None
) -> Rows:
    """What a policy that mixes images mixes in: the transfer set, the same for every arm.

    Pixels of the rows `beside` it are not held twice where they are of the same examples.
    """
    rows = student_rows(data.splits)
    rows = rows[rows["in_transfer"]]
    use_label = _flags(rows, "use_label")
    ids = rows["example_id"].to_numpy(np.int64)
    if beside is not None and np.array_equal(beside.example_ids.cpu().numpy(), ids):
        labels = data.labels_of(ids).where(use_label, NO_LABEL)
        return Rows(beside.pixels, labels.to(beside.labels.device))
    return make_rows(data, ids, training, budget, use_label=use_label)


def measure(data: LabelledImages, example_ids: np.ndarray) -> Preprocessing:
    """Channel statistics of these examples."""
    step = max(1, math.ceil(len(example_ids) / NUM_IMAGES_MEASURED))
    return measure_preprocessing(data.images.batches(example_ids[::step], _MEASURED_AT_ONCE))


def measure_validation(classifier: Classifier, rows: Rows, *, device: str) -> dict[str, float]:
    """Mean cross-entropy in nats and accuracy on the clean validation images, in float32."""
    positions = torch.arange(len(rows), device=rows.labels.device)
    computing = Computing(device=device, precision="float32")  # type: ignore[arg-type]
    batches = (rows.pixels(part) for part in torch.split(positions, _VALIDATION_BATCH_SIZE))
    logits, labels = predict_batches(classifier, batches, computing), rows.labels.cpu()
    return {
        "validation/loss": float(F.cross_entropy(logits, labels)),
        "validation/accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
    }


@dataclass(frozen=True)
class BatchOrder:
    """An endless stream of passes over the rows, cut into full batches.

    Each pass is a new shuffle keyed by (seed, pass, example id). Batches run across the end of a
    pass, so that all are full, no row is dropped, and arms with fewer rows take as many steps.
    """

    example_ids: Tensor
    seed: int
    batch_size: int

    def steps(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Rows of `count` steps from step `first` on.

        Returns:
            Positions int64 [count, batch_size] and the number of the pass that each belongs to,
            which is how often its example was shown before.
        """
        num_rows = len(self.example_ids)
        start, stop = first * self.batch_size, (first + count) * self.batch_size
        passes = range(start // num_rows, (stop - 1) // num_rows + 1)
        seeds = [[derive_seed(self.seed, "batch order", number)] for number in passes]
        streams = torch.tensor(seeds, device=self.example_ids.device)
        shuffled = shuffled_order(self.example_ids, stream=streams).flatten()
        offset = start - passes.start * num_rows
        positions = shuffled[offset : offset + stop - start]
        numbers = torch.arange(start, stop, device=positions.device) // num_rows
        shape = (count, self.batch_size)
        return positions.view(shape), numbers.view(shape)
