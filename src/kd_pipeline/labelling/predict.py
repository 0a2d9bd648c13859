"""A classifier's logits on examples of an image set, clean or as one view."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.views import ViewPolicy, render_views, view_parameters
from kd_pipeline.events import Progress, emit
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import predict_batches, resolve_device


def predict_logits(
    classifier: Classifier,
    images: ImageSet,
    example_ids: NDArray[np.int64],
    *,
    batch_size: int,
    device: str = "cpu",
    precision: str = "float32",
    policy: ViewPolicy | None = None,
    view: int = 0,
    description: str = "predict",
) -> Tensor:
    """Run a classifier over examples, all of them, in the order given.

    Args:
        classifier: Any classifier; it predicts in eval mode.
        images: Where the pixels are.
        example_ids: int64 [num_examples].
        batch_size: Images at a time.
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16`.
        policy: How views are drawn; None is the clean image.
        view: Which view.
        description: What the progress bar calls this.

    Returns:
        float32 [num_examples, num_classes], on the CPU.
    """
    batches = _batches(
        images,
        torch.as_tensor(example_ids, dtype=torch.int64),
        batch_size=batch_size,
        device=resolve_device(device),
        policy=policy or ViewPolicy(),
        view=view,
        description=description,
    )
    return predict_batches(classifier, batches, device=device, precision=precision)


def _batches(
    images: ImageSet,
    example_ids: Tensor,
    *,
    batch_size: int,
    device: str,
    policy: ViewPolicy,
    view: int,
    description: str,
) -> Iterator[Tensor]:
    total, last_said = len(example_ids), time.monotonic()
    for start in range(0, total, batch_size):
        ids = example_ids[start : start + batch_size]
        pixels = images.take(ids.numpy()).to(device)
        yield render_views(pixels, view_parameters(policy, ids.to(device), view), policy)
        if time.monotonic() - last_said > 0.1:
            last_said = time.monotonic()
            emit(Progress(description, start + len(ids), total, "images"))
    emit(Progress(description, total, total, "images"))
