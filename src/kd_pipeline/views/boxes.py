"""Boxes of random area and aspect ratio, as torchvision finds them: ten tries, the first that fits.

The tries are independent, so drawing all ten and taking the first that fits is the same law as
stopping at the first, and needs no loop over images.
"""

import torch
from torch import Tensor

NUM_CANDIDATES = 10
"""Torchvision's number of tries, for RandomResizedCrop and RandomErasing alike."""


def whole_sides(area: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Sides in whole pixels of boxes of these areas, int64 [batch, candidates] each.

    Returns:
        The sides whose quotient is `ratio`: the long one first where `ratio` is above 1.
    """
    first, second = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    return first.to(torch.int64), second.to(torch.int64)


def first_valid(
    candidates: tuple[Tensor, Tensor], valid: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Take the first valid candidate of each row, zeros where there is none.

    Args:
        candidates: Two tensors [batch, candidates].
        valid: bool of the same shape.

    Returns:
        The two values [batch], and bool [batch]: whether there was a valid candidate.
    """
    # argmax gives the first of equals; integers, as it is not defined on bool.
    first = valid.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = valid.any(dim=1)
    one, other = (values.gather(1, first).squeeze(1) * found for values in candidates)
    return (one, other), found


def inside(edges: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
    """Tell which pixels lie in each row's box.

    Args:
        edges: Top, left, bottom and right of the boxes, [batch] each; the last two are outside.
        image_size: Height and width.

    Returns:
        bool [batch, 1, height, width].
    """
    top, left, bottom, right = (edge.view(-1, 1, 1, 1) for edge in edges)
    y = torch.arange(image_size[0], device=top.device).unsqueeze(-1)
    x = torch.arange(image_size[1], device=top.device)
    return ((y >= top) & (y < bottom)) & ((x >= left) & (x < right))
