"""A network together with its own preprocessing: pixels in, logits out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_pipeline.models.preprocessing import Preprocessing


class Classifier(nn.Module):
    """Maps raw pixels to logits, so that nobody can normalise twice or not at all.

    Teacher and student see the same view, each in its own resolution and normalisation.
    """

    scale: Tensor
    shift: Tensor
    class_order: Tensor | None
    layout: torch.memory_format
    """In which the network takes its images, and pixels are best handed over."""

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        class_order: Sequence[int] | None = None,
        takes_any_layout: bool = True,
    ) -> None:
        """Hold a network that takes normalised images [batch, *preprocessing.shape].

        Args:
            network: Maps them to logits.
            preprocessing: What it expects.
            class_order: Which of the network's outputs each class is; None is its own order.
            takes_any_layout: Whether its convolutions may be fed channels last, which is nearly
                twice as fast in bfloat16 on a CPU. A user's own code may count on the usual
                layout, `x.view(len(x), -1)` for instance.
        """
        super().__init__()
        self.network = network
        has_convolutions = any(parameter.dim() == 4 for parameter in network.parameters())
        self.layout = torch.contiguous_format
        if has_convolutions and takes_any_layout:
            self.layout = torch.channels_last
            network.to(memory_format=self.layout)
        self.preprocessing = preprocessing
        std = torch.tensor(preprocessing.std).view(-1, 1, 1)
        mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
        order = None if class_order is None else torch.tensor(class_order, dtype=torch.int64)
        # Not persistent: the checkpoint's JSON is the one place that holds them.
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.register_buffer("class_order", order, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Score each class.

        Args:
            pixels: uint8, or float32 in [0, 1]; shape [batch, channels, height, width]. Another
                size than the network's is resized, and grey repeated where it expects colours.

        Returns:
            Unnormalised logits [batch, num_classes].
        """
        scale = self.scale / 255 if pixels.dtype == torch.uint8 else self.scale
        fitted = fit_pixels(pixels.float(), self.preprocessing.shape)
        images = torch.addcmul(self.shift, fitted, scale)
        logits: Tensor = self.network(images.contiguous(memory_format=self.layout))
        return logits if self.class_order is None else logits[:, self.class_order]


def fit_pixels(pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bring images to the size and channels that a network expects; equal ones stay as they are.

    Args:
        pixels: float [batch, channels, height, width].
        shape: Channels, height and width; grey images are repeated to as many channels.
    """
    channels, height, width = shape
    if pixels.shape[-2:] != (height, width):
        # Antialiased: without it shrinking picks single pixels and labels noise.
        size = (height, width)
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    grey = pixels.shape[1] == 1 and channels > 1
    return pixels.expand(-1, channels, -1, -1) if grey else pixels
