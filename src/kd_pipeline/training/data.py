"""What every model of a run is trained on."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, student_rows
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.models.predict import resolve_device
from kd_pipeline.models.preprocessing import Preprocessing, measure_preprocessing
from kd_pipeline.training.rows import Partners, pixel_reader
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.validation import Validation

NUM_IMAGES_MEASURED = 10_000
"""Normalisation is measured on at most so many images."""


@dataclass(frozen=True)
class TrainingData:
    """What every model of a run is trained on: the same for all arms."""

    images: ImageSet
    examples: pd.DataFrame
    splits: pd.DataFrame

    def labels_of(self, example_ids: np.ndarray) -> Tensor:
        """Labels int64 [num_examples], `NO_LABEL` where there is none."""
        labels = self.examples.set_index("example_id")["label"].reindex(example_ids)
        return torch.as_tensor(labels.fillna(NO_LABEL).to_numpy(np.int64, copy=True))

    def validation(self, settings: TrainingSettings) -> Validation:
        """The validation images, where and as these settings want them."""
        ids = ids_with_role(self.splits, "validation")
        return Validation(self.pixels_of(ids, settings), self.labels_of(ids))

    def pixels_of(self, ids: np.ndarray, settings: TrainingSettings) -> Callable[[Tensor], Tensor]:
        """Read pixels by position among these examples, from memory where they fit."""
        device, budget = resolve_device(settings.device), settings.memory_budget_bytes
        return pixel_reader(self.images, ids, device=device, budget_bytes=budget)

    def measure(self, example_ids: np.ndarray) -> Preprocessing:
        """Channel statistics of these examples."""
        step = max(1, math.ceil(len(example_ids) / NUM_IMAGES_MEASURED))
        return measure_preprocessing(self.images.take(example_ids[::step]))

    def transfer_partners(self, settings: TrainingSettings) -> Partners:
        """What a policy that mixes images mixes in: the transfer set, the same for every arm."""
        open_rows = student_rows(self.splits)
        transfer = open_rows[open_rows["in_transfer"]]
        use_label = torch.tensor(transfer["use_label"].to_list())
        ids = transfer["example_id"].to_numpy(np.int64, copy=True)
        return self.partners(ids, use_label, settings)

    def partners(
        self, ids: np.ndarray, use_label: Tensor | None, settings: TrainingSettings
    ) -> Partners:
        """Examples to be mixed in, int64 [num_partners], ascending, with labels where open."""
        device, labels = resolve_device(settings.device), self.labels_of(ids)
        if use_label is not None:
            labels = labels.where(use_label, NO_LABEL)
        pixels_of = self.pixels_of(ids, settings)
        return Partners(torch.as_tensor(ids).to(device), pixels_of, labels.to(device))
