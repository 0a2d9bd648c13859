"""The transform that hides a part of the image: cutout."""

from typing import Literal

from torch import Tensor

from kd_pipeline.config import Fraction, PositiveFloat
from kd_pipeline.views.boxes import draw_candidates, first_valid, inside, placed, whole_sides
from kd_pipeline.views.record import Drawn, Table, Transform
from kd_pipeline.views.settings import AreaFraction, TransformParams
from kd_pipeline.views.stream import Stream


class Cutout(TransformParams):
    """Blacken a random rectangle: RandomErasing with value 0; ratios of 1 make it a square."""

    name: Literal["cutout"]
    probability: Fraction = 0.5
    min_area: AreaFraction = 0.02
    max_area: AreaFraction = 0.33
    """Fraction of the image's area."""
    min_ratio: PositiveFloat = 0.3
    max_ratio: PositiveFloat = 3.3


def draw_cutout(stream: Stream, settings: Cutout) -> Drawn:
    """Draw whether a rectangle is `cut` out of each image, and ten candidates for it.

    As in torchvision's RandomErasing (Zhong et al. 2017, "Random erasing data augmentation",
    arXiv:1708.04896), the rectangle lies within the image. The squares of cutout (DeVries, Taylor
    2017, arXiv:1708.04552), which ratios of 1 give, may extend beyond it in the paper.
    """
    areas = (settings.min_area, settings.max_area)
    ratios = (settings.min_ratio, settings.max_ratio)
    cut = stream.happens("cut", settings.probability)
    return {"cut": cut, **draw_candidates(stream, areas=areas, ratios=ratios)}


def cutout_edges(drawn: Drawn, *, image_size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Top, left, bottom and right of each rectangle, int64 [batch], equal where there is none."""
    height, width = image_size
    heights, widths = whole_sides(drawn["area"] * (height * width), drawn["ratio"])
    fits = (heights < height) & (widths < width) & drawn["cut"].unsqueeze(-1)
    (heights, widths), _ = first_valid((heights, widths), fits)
    top, left = placed(heights, widths, drawn, image_size)
    return top, left, top + heights, left + widths


def render_cutout(pixels: Tensor, drawn: Drawn, _settings: Cutout) -> Tensor:
    """Blacken each image's rectangle; any dtype."""
    image_size = (pixels.shape[-2], pixels.shape[-1])
    edges = cutout_edges(drawn, image_size=image_size)
    return pixels.masked_fill(inside(edges, image_size), 0)


TRANSFORMS: Table = {"cutout": Transform(Cutout, draw_cutout, render_cutout)}
