"""A network together with its own normalisation: pixels in, logits out."""

import torch
from torch import Tensor, nn

from kd_pipeline.models.preprocessing import Preprocessing


class Classifier(nn.Module):
    """Maps raw pixels to logits, so that nobody can normalise twice or not at all."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        """Hold a network that takes normalised images [batch, *preprocessing.shape]."""
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        std = torch.tensor(preprocessing.std).view(-1, 1, 1)
        mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
        # Not persistent: the checkpoint's JSON is the one place that holds them.
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Score each class.

        Args:
            pixels: uint8, or float32 in [0, 1]; shape [batch, channels, height, width].

        Returns:
            Unnormalised logits [batch, num_classes].
        """
        scale = self.scale / 255 if pixels.dtype == torch.uint8 else self.scale
        logits: Tensor = self.network(torch.addcmul(self.shift, pixels.float(), scale))
        return logits
