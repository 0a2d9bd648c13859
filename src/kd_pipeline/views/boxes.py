"""Boxes of random area and aspect ratio, as torchvision's RandomResizedCrop and RandomErasing.

They try ten boxes and take the first that fits. The tries are independent, so drawing all ten and
taking the first that fits is the same law, and needs neither an image size nor a loop over images.
"""

import math

import torch
from torch import Tensor

from kd_pipeline.views.record import Drawn
from kd_pipeline.views.stream import Stream

_NUM_CANDIDATES = 10


def draw_candidates(
    stream: Stream, *, areas: tuple[float, float], ratios: tuple[float, float]
) -> dict[str, Tensor]:
    """Draw `area`, a fraction of the image's, and `ratio` of ten boxes per image, and one place.

    The ratio is log-uniform; the place, `down` and `right`, is a fraction of the free range.
    """
    logs = (math.log(ratios[0]), math.log(ratios[1]))
    return {
        "area": stream.uniforms("area", _NUM_CANDIDATES, *areas),
        "ratio": stream.uniforms("ratio", _NUM_CANDIDATES, *logs).exp(),
        "down": stream.uniform("down"),
        "right": stream.uniform("right"),
    }


def placed(
    heights: Tensor, widths: Tensor, drawn: Drawn, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Top and left, int64 [batch], of boxes of these sides [batch] at the drawn place."""
    top = (drawn["down"] * (image_size[0] - heights + 1)).to(torch.int64)
    left = (drawn["right"] * (image_size[1] - widths + 1)).to(torch.int64)
    return top, left


def whole_sides(area: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Sides, whose quotient is `ratio`, of boxes of these areas in pixels: int64, same shape."""
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
    # argmax gives the first of equals, and is not defined on bool.
    first = valid.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = valid.any(dim=1)
    one, other = (values.gather(1, first).squeeze(1) * found for values in candidates)
    return (one, other), found


def inside(edges: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
    """Mask the pixels that lie in each row's box.

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
