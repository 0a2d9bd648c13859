"""Logits of a whole set of images: eval mode, no gradients, every row once, in order."""

from collections.abc import Iterable

import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.models.classifier import Classifier


def predict_batches(
    classifier: Classifier, batches: Iterable[Tensor], *, device: str, precision: str
) -> Tensor:
    """Run a classifier over batches of pixels.

    The classifier labels in eval mode (dropout off, batch-norm statistics untouched) and is
    given back in the mode in which it came.

    Args:
        classifier: Any classifier; moved to `device`.
        batches: uint8 or float32 pixels [batch, channels, height, width].
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16` (autocast).

    Returns:
        float32 logits [num_images, num_classes], on the CPU.
    """
    target = torch.device(resolve_device(device))
    use_bfloat16 = resolve_precision(precision, target.type) == "bfloat16"
    was_training = classifier.training
    classifier.to(target).eval()
    with torch.inference_mode(), torch.autocast(target.type, torch.bfloat16, enabled=use_bfloat16):
        laid_out = (pixels.to(target, memory_format=classifier.layout) for pixels in batches)
        logits = [classifier(pixels).float().cpu() for pixels in laid_out]
    classifier.train(was_training)
    return torch.cat(logits).clone()


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
