"""The transform that hides a part of the image: cutout."""

import math

import torch
from torch import Tensor

from kd_pipeline.views.boxes import NUM_CANDIDATES, first_valid, inside, whole_sides
from kd_pipeline.views.sampling import Drawn, Settings
from kd_pipeline.views.stream import Stream


def draw_cutout(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """Whether a rectangle is `cut` out of each image, and ten candidates for it.

    The law is that of torchvision's RandomErasing with value 0 (Zhong et al. 2017, "Random erasing
    data augmentation", arXiv:1708.04896): area and aspect ratio are random, and the rectangle lies
    within the image. `min_ratio: 1, max_ratio: 1` gives the squares of cutout (DeVries, Taylor
    2017, arXiv:1708.04552), which differ only in that theirs may stick out of the image.
    """
    low, high = math.log(settings["min_ratio"]), math.log(settings["max_ratio"])
    areas = (settings["min_area"], settings["max_area"])
    return {
        "cut": stream.happens("cut", settings["probability"]),
        "area": stream.uniforms("area", NUM_CANDIDATES, *areas),
        "ratio": stream.uniforms("ratio", NUM_CANDIDATES, low, high).exp(),
        "down": stream.uniform("down"),
        "right": stream.uniform("right"),
    }


def cutout_edges(drawn: Drawn, *, image_size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Top, left, bottom and right of what is hidden, int64 [batch] each; empty if nothing is."""
    height, width = image_size
    heights, widths = whole_sides(drawn["area"] * (height * width), drawn["ratio"])
    fits = (heights < height) & (widths < width) & drawn["cut"].unsqueeze(-1)
    (heights, widths), _ = first_valid((heights, widths), fits)
    top = (drawn["down"] * (height - heights + 1)).to(torch.int64)
    left = (drawn["right"] * (width - widths + 1)).to(torch.int64)
    return top, left, top + heights, left + widths


def render_cutout(pixels: Tensor, drawn: Drawn, _settings: Settings) -> Tensor:
    """Blacken each image's rectangle; any dtype."""
    image_size = (pixels.shape[-2], pixels.shape[-1])
    edges = cutout_edges(drawn, image_size=image_size)
    return pixels.masked_fill(inside(edges, image_size), 0)
