"""Logits of a whole set of images, in eval mode and without gradients."""

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kd_pipeline.config import Computing
from kd_pipeline.errors import ParameterError
from kd_pipeline.events import Progress, emit
from kd_pipeline.models.classifier import Classifier


def predict_batches(
    classifier: Classifier,
    batches: Iterable[Tensor],
    computing: Computing,
    *,
    num_images: int | None = None,
    description: str | None = None,
) -> Tensor:
    """Run a classifier over batches of pixels.

    Args:
        classifier: Moved to the device; it predicts in eval mode and gets its mode back.
        batches: uint8 or float32 pixels [batch, channels, height, width].
        computing: Its device and precision are used.
        num_images: In all batches; if given, memory for all logits is allocated only once.
        description: Of the progress events, which are emitted if `num_images` is given too.

    Returns:
        float32 logits [num_images, num_classes], on the CPU.
    """
    device = torch.device(resolve_device(computing.device))
    use_bfloat16 = resolve_precision(computing.precision, device.type) == "bfloat16"
    if num_images is not None and description is not None:
        batches = _reported(batches, num_images, description)
    was_training = classifier.training
    classifier.to(device).eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
        laid_out = (pixels.to(device, memory_format=classifier.layout) for pixels in batches)
        predicted = (classifier(pixels).float().cpu() for pixels in laid_out)
        parts = list(predicted) if num_images is None else [_filled(predicted, num_images)]
    classifier.train(was_training)
    # Outside inference mode: autograd refuses inference tensors.
    return torch.cat(parts) if num_images is None else parts[0]


def _reported(batches: Iterable[Tensor], total: int, description: str) -> Iterator[Tensor]:
    done, last_report = 0, time.monotonic()
    for pixels in batches:
        yield pixels
        done += len(pixels)
        if done < total and time.monotonic() - last_report > 0.1:
            last_report = time.monotonic()
            emit(Progress(description, done, total, "images"))
    emit(Progress(description, total, total, "images"))


def _filled(batches: Iterator[Tensor], num_images: int) -> Tensor:
    """Concatenate batches in a tensor allocated at once, float32 [num_images, num_classes]."""
    logits, start = torch.empty(0, 0), 0
    for batch in batches:
        if start == 0:
            with torch.inference_mode(mode=False):
                logits = torch.empty(num_images, batch.shape[1])
        logits[start : start + len(batch)] = batch
        start += len(batch)
    return logits


def resolve_device(device: str) -> str:
    """The device for `auto`: CUDA if this machine has it, else the CPU.

    Raises:
        ParameterError: If this machine does not have the device.
    """
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    if device == "auto":
        return available[0]
    if device not in available:
        rule = "be one that this machine has"
        raise ParameterError("device", rule, device, legal=["auto", *available])
    return device


def resolve_precision(precision: str, device: str) -> str:
    """The precision for `auto`: bfloat16 where the hardware computes in it, else float32."""
    if precision != "auto":
        return precision
    if device == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if supported else "float32"
