"""A teacher's or student's logits on examples of an image set, clean or as one view."""

import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import ParameterError
from kd_pipeline.events import Progress, emit
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.imported_logits import ImportedLogits, is_imported
from kd_pipeline.models.predict import predict_batches, resolve_device
from kd_pipeline.views import ViewPolicy, render_views, view_parameters


class Predictor(Protocol):
    """Says what one model thinks of examples, whether it computes that or looks it up."""

    def logits(
        self, example_ids: NDArray[np.int64], *, view: int = 0, description: str = "predict"
    ) -> Tensor:
        """Logits of all these examples, in the order given.

        Args:
            example_ids: int64 [num_examples].
            view: Which view of the policy that the predictor was opened with.
            description: What the progress bar calls this.

        Returns:
            float32 [num_examples, num_classes], on the CPU, in the images' order of classes.
        """
        ...


def open_predictor(
    checkpoint: ModelCheckpoint,
    images: ImageSet,
    *,
    batch_size: int,
    device: str = "cpu",
    precision: str = "float32",
    policy: ViewPolicy | None = None,
    partners: NDArray[np.int64] | None = None,
) -> Predictor:
    """Build a checkpoint's model once, or open its imported logits.

    Args:
        checkpoint: Of any kind; it predicts in eval mode.
        images: Where the pixels are.
        batch_size: Images at a time.
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16`.
        policy: How views are drawn; None is the clean image.
        partners: int64 [num_partners], ascending: whom a policy that mixes draws partners from.

    Raises:
        ParameterError: If imported logits are asked for any but clean views.
        StaleArtefactError: If imported logits belong to other images.
        CheckpointError: If the model cannot be built.
    """
    policy = policy or ViewPolicy()
    if is_imported(checkpoint):
        if policy.transforms:
            rule = "be empty for imported logits, which are of the clean images"
            raise ParameterError("views.transforms", rule, [t["name"] for t in policy.transforms])
        return ImportedLogits(checkpoint, images_fingerprint=images.fingerprint)
    return _Model(
        build_classifier(checkpoint),
        images,
        policy,
        None if partners is None else torch.from_numpy(np.array(partners, dtype=np.int64)),
        batch_size=batch_size,
        device=resolve_device(device),
        precision=precision,
    )


class _Model:
    """A classifier that reads, renders and scores a batch at a time."""

    def __init__(
        self,
        classifier: Classifier,
        images: ImageSet,
        policy: ViewPolicy,
        partners: Tensor | None,
        *,
        batch_size: int,
        device: str,
        precision: str,
    ) -> None:
        self._classifier, self._images, self._policy = classifier, images, policy
        self._partners = None if partners is None else partners.to(device)
        self._batch_size, self._device, self._precision = batch_size, device, precision

    def logits(
        self, example_ids: NDArray[np.int64], *, view: int = 0, description: str = "predict"
    ) -> Tensor:
        # A copy: tables hand out arrays that may not be written, of which torch warns.
        ids = torch.from_numpy(np.array(example_ids, dtype=np.int64))
        batches = self._batches(ids, view=view, description=description)
        return predict_batches(
            self._classifier,
            batches,
            device=self._device,
            precision=self._precision,
            num_images=len(ids),
        )

    def _batches(self, example_ids: Tensor, *, view: int, description: str) -> Iterator[Tensor]:
        total, last_said = len(example_ids), time.monotonic()
        for start in range(0, total, self._batch_size):
            ids = example_ids[start : start + self._batch_size]
            yield self._render(ids, view)
            if time.monotonic() - last_said > 0.1:
                last_said = time.monotonic()
                emit(Progress(description, start + len(ids), total, "images"))
        emit(Progress(description, total, total, "images"))

    def _render(self, ids: Tensor, view: int) -> Tensor:
        policy, partners = self._policy, self._partners
        parameters = view_parameters(policy, ids.to(self._device), view, partners=partners)
        # Only policies that mix ask for partners and their pixels.
        pixels_of = self._pixels_of if policy.mixes else None
        return render_views(self._pixels_of(ids), parameters, policy, pixels_of=pixels_of)

    def _pixels_of(self, ids: Tensor) -> Tensor:
        return self._images.take(ids.cpu().numpy()).to(self._device)
