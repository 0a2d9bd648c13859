"""Images, their labels and their splits: everything that a stage works on."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kd_pipeline.data.examples import check_labels
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint

NO_LABEL = -1
"""In place of the label of an example that has none; `losses.hard` has the same constant."""


def without_test_labels(examples: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """The table `examples` with no label in the rows of the test set: for a search of settings."""
    in_test = examples["example_id"].isin(ids_with_role(splits, "test"))
    return examples.assign(label=examples["label"].mask(in_test))


@dataclass(frozen=True)
class LabelledImages:
    """Images with the tables `examples` and `splits`.

    Raises:
        DataError: If a label is not that of its class name.
    """

    images: ImageSet
    examples: pd.DataFrame
    splits: pd.DataFrame

    def __post_init__(self) -> None:
        """Labels are positions among the images' class names."""
        check_labels(self.examples, self.images.class_names)

    @property
    def provenance(self) -> dict[str, Any]:
        """What logits depend on: class names and fingerprints, to check an artefact against."""
        return {
            "class_names": list(self.images.class_names),
            "images": self.images.fingerprint,
            "splits": split_fingerprint(self.splits),
        }

    @property
    def labelled_provenance(self) -> dict[str, Any]:
        """What trained models and test metrics depend on: the labels that are used too."""
        return {**self.provenance, "labels": self._labels_fingerprint()}

    def _labels_fingerprint(self) -> str:
        """16 hex digits over all labels but those of transfer rows that may not be used."""
        used = self.splits["use_label"] | (self.splits["role"] != "transfer")
        ids = np.unique(self.splits.loc[used, "example_id"].to_numpy(np.int64))
        digest = hashlib.sha256(ids.astype("<i8").tobytes())
        digest.update(self.labels_of(ids).numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def ids(self, role: str) -> NDArray[np.int64]:
        """Example ids of one role, ascending."""
        return ids_with_role(self.splits, role)

    def labels_of(self, example_ids: ArrayLike) -> Tensor:
        """Labels int64 [n] of examples int64 [n], `NO_LABEL` where there is none."""
        labels = self.examples.set_index("example_id")["label"].reindex(example_ids)
        return torch.from_numpy(labels.fillna(NO_LABEL).to_numpy(np.int64, copy=True))

    def labelled(self, role: str) -> tuple[NDArray[np.int64], Tensor]:
        """Example ids, ascending, and labels of those rows of a role that have a label."""
        ids = self.ids(role)
        labels = self.labels_of(ids)
        known = labels != NO_LABEL
        return ids[known.numpy()], labels[known]
