"""Pixels on the unit scale, and images sampled at places between their pixels.

Sums are written out instead of handed to BLAS or a convolution: those pick another order of
summation for another batch size, and a view must have the same bits in any batch.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Drawn = Mapping[str, Tensor]
"""What was drawn for one transform: tensors [batch] or [batch, count]."""
Settings = Mapping[str, Any]
"""A transform's settings, defaults filled in."""


def unit_scale(pixels: Tensor) -> Tensor:
    """Turn uint8 into float32 in [0, 1]; float32 stays as it is."""
    return pixels / 255 if pixels.dtype == torch.uint8 else pixels


def unit_scale_copy(pixels: Tensor) -> Tensor:
    """The same, in memory of its own, to be changed in place."""
    return pixels / 255 if pixels.dtype == torch.uint8 else pixels.clone()


def per_image(values: Tensor) -> Tensor:
    """Lay values [batch] out as float32 [batch, 1, 1, 1]."""
    return values.float().view(-1, 1, 1, 1)


def centred(side: int, like: Tensor) -> Tensor:
    """Positions of a side's pixels from its middle, in pixels, float32 [side]."""
    return torch.arange(side, device=like.device, dtype=torch.float32) - (side - 1) / 2


def sample_affine(images: Tensor, inverse: Tensor, *, mode: str) -> Tensor:
    """Fetch every pixel from where an affine map says that it came from; zeros outside.

    Args:
        images: float32 [batch, channels, height, width].
        inverse: [batch, 2, 3], from an output pixel's (x, y, 1) to its source's (x, y), both in
            pixels from the image's middle.
        mode: `bilinear` or `nearest`.

    Returns:
        float32 of the same shape as `images`.
    """
    height, width = images.shape[-2:]
    x, y = centred(width, images), centred(height, images).unsqueeze(-1)
    matrix = inverse.float().unsqueeze(-1).unsqueeze(-1)
    source_x = matrix[:, 0, 0] * x + matrix[:, 0, 1] * y + matrix[:, 0, 2]
    source_y = matrix[:, 1, 0] * x + matrix[:, 1, 1] * y + matrix[:, 1, 2]
    # grid_sample counts in units where the image spans [-1, 1].
    grid = torch.stack([source_x * (2 / width), source_y * (2 / height)], dim=-1)
    return F.grid_sample(images, grid, mode=mode, align_corners=False)


def reflected(side: int, margin: int, like: Tensor) -> Tensor:
    """Positions that pad a side by its mirror image, the edge not repeated, int64."""
    positions = torch.arange(-margin, side + margin, device=like.device).abs()
    return torch.where(positions >= side, 2 * (side - 1) - positions, positions)
