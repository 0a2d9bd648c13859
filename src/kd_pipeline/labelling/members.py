"""A teacher's members, each of which gives logits: a model computes them, or they were imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.config import Computing
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, DataError, ParameterError
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    check_classes,
    check_training_data,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.given import class_names_of, match_classes
from kd_pipeline.models.predict import predict_batches, resolve_device
from kd_pipeline.models.settings import GivenLogits
from kd_pipeline.soft_targets.imported import Declared, ImportedLogits, read_imported_logits
from kd_pipeline.views import ViewPolicy, ViewRenderer

Selection = slice | NDArray[np.int64]
"""Positions among the examples that a predictor was opened with."""
Member = ModelCheckpoint | ImportedLogits
"""Of a teacher; both have a `fingerprint`."""


def check_members(teacher: Sequence[Member], data: LabelledImages) -> None:
    """Refuse a model that does not fit these data; imported logits were checked when read.

    Raises:
        CheckpointError: If it has other classes, or its code computes other logits by now.
        StaleArtefactError: If it was trained on other images, labels or another split.
    """
    at_hand = data.labelled_provenance
    for member in teacher:
        if isinstance(member, ModelCheckpoint):
            check_classes(member, data.images.class_names, name="teacher.checkpoints")
            check_training_data(member, at_hand)
            if member.logits_digest is not None:
                build_classifier(member)  # Parts of an earlier cache may be served without it.


class Predictor(Protocol):
    """Gives logits of the examples that it was opened with."""

    def logits(self, rows: Selection, *, view: int = 0, description: str = "predict") -> Tensor:
        """Logits of some of these examples in one view.

        Returns:
            float32 [num_rows, num_classes], on the CPU, in the images' order of classes.
        """


def open_predictor(
    member: Member,
    data: LabelledImages,
    example_ids: NDArray[np.int64],
    computing: Computing,
    *,
    policy: ViewPolicy | None = None,
) -> Predictor:
    """Build a member's model once, or open its imported logits.

    Args:
        member: A model predicts in eval mode.
        data: The images.
        example_ids: int64 [num_examples], ascending. A policy that mixes images mixes in these.
        computing: How the model is run.
        policy: How views are drawn; None is the clean image.

    Raises:
        ParameterError: If imported logits are asked for any but clean views.
        CheckpointError: If the model cannot be built.
    """
    policy = policy or ViewPolicy()
    if isinstance(member, ImportedLogits):
        if policy.transforms:
            rule = "be empty where the teacher's logits were imported: those are of clean images"
            raise ParameterError("views.transforms", rule, [one.name for one in policy.transforms])
        return _Imported(member, example_ids)
    pixels = data.images.reader(example_ids, device=resolve_device(computing.device))
    return _Model(build_classifier(member), ViewRenderer(policy, pixels, pixels), computing)


@dataclass(frozen=True)
class _Model:
    """Renders views and scores them, a batch at a time."""

    classifier: Classifier
    renderer: ViewRenderer
    computing: Computing

    def logits(self, rows: Selection, *, view: int = 0, description: str = "predict") -> Tensor:
        ids = self.renderer.pixels.example_ids
        positions = torch.arange(len(ids))[rows].to(ids.device)
        batches = torch.split(positions, self.computing.batch_size)
        return predict_batches(
            self.classifier,
            (self.renderer.draw(batch, view).render() for batch in batches),
            self.computing,
            num_images=len(positions),
            description=description,
        )


@dataclass(frozen=True)
class _Imported:
    imported: ImportedLogits
    example_ids: NDArray[np.int64]

    def logits(self, rows: Selection, *, view: int = 0, description: str = "predict") -> Tensor:
        if view != 0:
            raise DataError(f"imported logits have only the clean view 0, got view {view}")
        what = f"every example of `{description}`"
        return torch.from_numpy(self.imported.rows(self.example_ids[rows], what))


def read_given_logits(given: Sequence[GivenLogits], data: LabelledImages) -> list[ImportedLogits]:
    """Read the logits of a teacher that is not at hand, with the images' classes in their order.

    Raises:
        ParameterError: If a file does not exist.
        CheckpointError: If there is no member, or the classes are not the images'.
        DataError: If the logits are not finite, are probabilities, or leave out examples of the
            transfer set.
    """
    if not given:
        raise CheckpointError(
            "`teacher.checkpoints` must hold a member, got none; "
            "run `kedro run --pipelines=teacher_training`"
        )
    return [_read(entry, data, name=f"teacher.given[{at}]") for at, entry in enumerate(given)]


def _read(given: GivenLogits, data: LabelledImages, *, name: str) -> ImportedLogits:
    class_names = data.images.class_names

    def order_of(declared: Declared) -> Sequence[int] | None:
        named = class_names_of(given, declared, class_names, name=name)
        return match_classes(named, class_names, name=name)

    imported = read_imported_logits(
        Path(given.file), class_names=class_names, order_of=order_of, name=name
    )
    imported.check_covers(data.ids("transfer"), what="the transfer set")
    return imported


def identity_card(members: Sequence[Member], class_names: Sequence[str]) -> dict[str, Any]:
    """What students need of their teacher when its weights are away: JSON-able.

    Its labels are those of this project's images that its members were trained on, None if none.
    """
    labels = (getattr(member, "facts", {}).get("labels") for member in members)
    return {
        "fingerprints": [member.fingerprint for member in members],
        "architectures": [getattr(member, "architecture", "imported logits") for member in members],
        "class_names": list(class_names),
        "labels": next((one for one in labels if one is not None), None),
    }
