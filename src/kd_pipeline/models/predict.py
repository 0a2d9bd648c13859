"""Logits of a whole set of images: eval mode, no gradients, every row once, in order."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.models.classifier import Classifier


def predict_batches(
    classifier: Classifier,
    batches: Iterable[Tensor],
    *,
    device: str,
    precision: str,
    num_images: int | None = None,
) -> Tensor:
    """Run a classifier over batches of pixels.

    The classifier labels in eval mode (dropout off, batch-norm statistics untouched) and is
    given back in the mode in which it came.

    Args:
        classifier: Any classifier; moved to `device`.
        batches: uint8 or float32 pixels [batch, channels, height, width].
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16` (autocast).
        num_images: In all batches together; then there is never a second copy of all logits.

    Returns:
        float32 logits [num_images, num_classes], on the CPU.
    """
    target = torch.device(resolve_device(device))
    use_bfloat16 = resolve_precision(precision, target.type) == "bfloat16"
    was_training = classifier.training
    classifier.to(target).eval()
    with torch.inference_mode(), torch.autocast(target.type, torch.bfloat16, enabled=use_bfloat16):
        laid_out = (pixels.to(target, memory_format=classifier.layout) for pixels in batches)
        batched = (classifier(pixels).float().cpu() for pixels in laid_out)
        logits = torch.cat(list(batched)) if num_images is None else _filled(batched, num_images)
    classifier.train(was_training)
    # An inference tensor could not be used in training.
    return logits.clone() if logits.is_inference() else logits


def _filled(batched: Iterator[Tensor], num_images: int) -> Tensor:
    """All batches in one tensor that is made once, float32 [num_images, num_classes]."""
    logits, start = torch.empty(0, 0), 0
    for batch in batched:
        if start == 0:
            with torch.inference_mode(mode=False):
                logits = torch.empty(num_images, batch.shape[1])
        logits[start : start + len(batch)] = batch
        start += len(batch)
    return logits


def resolve_device(device: str) -> str:
    """Turn `auto` into the fastest device there is; refuse one that is not there."""
    available = {"cuda": torch.cuda.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, present in available.items() if present)
    if not available.get(device, False):
        legal = ["auto", *(name for name, present in available.items() if present)]
        raise ParameterError("device", "be one that this machine has", device, legal=legal)
    return device


def resolve_precision(precision: str, device: str) -> str:
    """Turn `auto` into bfloat16 where the hardware computes in it, float32 elsewhere."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device == "cpu":
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bfloat16" if supported else "float32"
    return "float32"
