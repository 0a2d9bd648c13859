"""A model's normalisation and input size, stored with it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError


@dataclass(frozen=True)
class Preprocessing:
    """A model's input shape and normalisation, so that models that differ take the same view."""

    shape: tuple[int, int, int]
    """Channels, height and width of the model's input."""
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the statistics."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                rule = f"have one value for each of the {self.shape[0]} channels"
                raise ParameterError(f"preprocessing.{name}", rule, values)
            if not all(map(math.isfinite, values)):
                raise ParameterError(f"preprocessing.{name}", "be finite", values)
        if min(self.std) <= 0:
            raise ParameterError("preprocessing.std", "be positive", self.std)

    def resized(self, input_size: int | None, *, num_channels: int) -> "Preprocessing":
        """The same for a network of another input.

        Args:
            input_size: Side of the square, in pixels; None keeps the size.
            num_channels: The statistics of a grey channel are repeated to as many.
        """
        channels, height, width = self.shape
        size = (input_size or height, input_size or width)
        repeats = num_channels // channels
        return Preprocessing((num_channels, *size), self.mean * repeats, self.std * repeats)


def measure_preprocessing(batches: Iterable[Tensor]) -> Preprocessing:
    """Mean and standard deviation of each channel over some images.

    Args:
        batches: uint8 [num_images, channels, height, width], of which one at a time is in memory;
            at least one image in all.
    """
    counts, shape = torch.zeros(()), torch.Size()
    for pixels in batches:
        shape = pixels.shape[1:]
        found = [torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(1)]
        counts = counts + torch.stack(found).double()
    weights = counts / counts.sum(dim=1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(dim=1)
    # A constant channel is not scaled: its standard deviation is 0.
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    channels, height, width = shape
    return Preprocessing((channels, height, width), tuple(mean.tolist()), tuple(std.tolist()))
