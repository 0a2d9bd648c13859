"""Pixels on the unit scale, and images sampled at places between their pixels.

Sums are written out instead of done by BLAS or a convolution: their order of summation depends on
the batch size, and a view must have the same bits in any batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_scale(pixels: Tensor) -> Tensor:
    """Turn uint8 into float32 in [0, 1]; float32 stays as it is."""
    return pixels / 255 if pixels.dtype == torch.uint8 else pixels


def per_image(values: Tensor) -> Tensor:
    """View values [batch] as float32 [batch, 1, 1, 1]."""
    return values.float().view(-1, 1, 1, 1)


def centred(side: int, like: Tensor) -> Tensor:
    """Positions of a side's pixels from its middle, float32 [side]."""
    return torch.arange(side, device=like.device) - (side - 1) / 2


def sample_affine(images: Tensor, inverse: Tensor, *, mode: str) -> Tensor:
    """Sample every pixel at its source by an affine map; zeros outside.

    Args:
        images: float32 [batch, channels, height, width].
        inverse: [batch, 2, 3], from an output pixel's (x, y, 1) to its source's (x, y), both in
            pixels from the image's middle.
        mode: `bilinear` or `nearest`.
    """
    height, width = images.shape[-2:]
    x, y = centred(width, images), centred(height, images).unsqueeze(-1)
    matrix = inverse.float()[..., None, None]
    source_x = matrix[:, 0, 0] * x + matrix[:, 0, 1] * y + matrix[:, 0, 2]
    source_y = matrix[:, 1, 0] * x + matrix[:, 1, 1] * y + matrix[:, 1, 2]
    # grid_sample counts in units where the image spans [-1, 1].
    grid = torch.stack([source_x * (2 / width), source_y * (2 / height)], dim=-1)
    return F.grid_sample(images, grid, mode=mode, align_corners=False)


def pad_reflected(images: Tensor, dim: int, margin: int) -> Tensor:
    """Pad a side at both ends by its mirror image, the edge not repeated.

    Torch's own pads no bytes, and selecting by positions is up to ten times slower than copies.
    """
    side = images.shape[dim]
    before = images.narrow(dim, 1, margin).flip(dim)
    after = images.narrow(dim, side - 1 - margin, margin).flip(dim)
    return torch.cat([before, images, after], dim)
