"""Transforms that mix two images: mixup and cutmix.

The partner is drawn from a fixed list of examples and not from the batch: a view is the same mixed
image in any batch, so that a teacher's logits on it can be cached. Cached targets are never mixed.
"""

from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.config import Fraction, PositiveFloat
from kd_pipeline.views.boxes import inside
from kd_pipeline.views.record import Drawn, MixingTransform
from kd_pipeline.views.sampling import per_image, unit_scale
from kd_pipeline.views.settings import TransformParams
from kd_pipeline.views.stream import Stream

# Of the table of quantiles: halvings of the probability down to 2**-54, and cells in each.
_OCTAVES, _CELLS = 54, 512


class MixingParams(TransformParams):
    """The settings of mixup and cutmix, which mix labels as they mix images."""

    mixes: ClassVar[bool] = True
    alpha: PositiveFloat = 1.0
    """The weight of the image itself is Beta(alpha, alpha); for cutmix, about."""
    probability: Fraction = 1.0


class Mixup(MixingParams):
    """Blend with another training image."""

    name: Literal["mixup"]


class Cutmix(MixingParams):
    """Paste a box of another training image."""

    name: Literal["cutmix"]


def draw_mixup(stream: Stream, settings: MixingParams) -> Drawn:
    """Draw the `weight` of each image itself, Beta(alpha, alpha), and 1 where it is not mixed.

    Zhang, Cisse, Dauphin, Lopez-Paz 2018, "mixup: beyond empirical risk minimization",
    arXiv:1710.09412. Torchvision's MixUp draws one weight per batch; here each image has its own.
    """
    weight = beta_quantile(stream.uniform("share"), alpha=settings.alpha)
    mixed = stream.happens("mixed", settings.probability)
    return {"weight": torch.where(mixed, weight, 1.0)}


def draw_cutmix(stream: Stream, settings: Cutmix) -> Drawn:
    """Draw mixup's `weight`, and the middle of the partner's box as fractions of the sides.

    Yun et al. 2019, "CutMix: regularization strategy to train strong classifiers with localizable
    features", arXiv:1905.04899; the box is that of torchvision's CutMix.
    """
    middle = {"down": stream.uniform("down"), "right": stream.uniform("right")}
    return {**draw_mixup(stream, settings), **middle}


def draw_partners(stream: Stream, example_ids: Tensor, partner_ids: Tensor) -> Tensor:
    """Draw a partner for each row, every other example being equally likely.

    Args:
        stream: The draws of the mixing transform.
        example_ids: int64 [batch].
        partner_ids: int64 [num_partners], ascending; one alone is its own partner.

    Returns:
        Positions among the partners, int64 [batch].
    """
    last = len(partner_ids) - 1
    own = torch.searchsorted(partner_ids, example_ids).clamp(max=last)
    is_partner = partner_ids[own] == example_ids
    # Drawn among the others: those from the example's own place on are one further.
    others = len(partner_ids) - is_partner.to(torch.int64)
    drawn = (stream.uniform("partner") * others).to(torch.int64)
    drawn += is_partner & (drawn >= own)
    return drawn.clamp(max=last)


def beta_quantile(uniform: Tensor, *, alpha: float) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at float64 in [0, 1), multiples of 2**-53, of the same shape.

    Linear between exact quantiles, as dense in each halving of the tails as in the middle.
    """
    if alpha == 1:
        return uniform
    table = torch.from_numpy(_beta_table(alpha)).to(uniform.device)
    is_upper = uniform > 0.5
    # The distribution is symmetric, and 1 - uniform is exact here: one tail serves for both.
    tail = torch.where(is_upper, 1 - uniform, uniform)
    mantissa, exponent = torch.frexp(tail)
    octave, at = -exponent, (mantissa - 0.5) * (2 * _CELLS)
    cell = at.to(torch.int64)
    below = table[octave, cell]
    quantile = below + (table[octave, cell + 1] - below) * (at - cell)
    quantile = torch.where(tail > 0, quantile, 0.0)
    return torch.where(is_upper, 1 - quantile, quantile)


@lru_cache(maxsize=8)
def _beta_table(alpha: float) -> NDArray[np.float64]:
    """Quantiles [octaves, cells + 1]: octave k spans the probabilities 2**-(k+1) to 2**-k."""
    from scipy.special import betaincinv

    within = np.linspace(0.5, 1, _CELLS + 1)
    probability = np.ldexp(within, -np.arange(_OCTAVES)[:, None])
    table: NDArray[np.float64] = betaincinv(alpha, alpha, probability)
    return table


def mix_mixup(pixels: Tensor, partner: Tensor, drawn: Drawn) -> Tensor:
    """Weigh each image with its weight and its partner with the rest; float32."""
    weight = per_image(drawn["weight"])
    return (unit_scale(pixels) * weight).add_(unit_scale(partner) * (1 - weight))


def mix_cutmix(pixels: Tensor, partner: Tensor, drawn: Drawn) -> Tensor:
    """Put a box of the partner into each image; any dtype."""
    image_size = (pixels.shape[-2], pixels.shape[-1])
    edges = cutmix_edges(drawn, image_size=image_size)
    return torch.where(inside(edges, image_size), partner, pixels)


def cutmix_edges(drawn: Drawn, *, image_size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Top, left, bottom and right of the partner's box, int64 [batch] each.

    Its sides are sqrt(1 - weight) of the image's; parts beyond the image are cut off.
    """
    half = 0.5 * (1 - drawn["weight"]).sqrt()
    starts, ends = [], []
    for side, middle in ((image_size[0], drawn["down"]), (image_size[1], drawn["right"])):
        centre, reach = (middle * side).to(torch.int64), (half * side).to(torch.int64)
        starts.append((centre - reach).clamp(min=0))
        ends.append((centre + reach).clamp(max=side))
    return (*starts, *ends)


def cutmix_weight(drawn: Drawn, image_size: tuple[int, int]) -> Tensor:
    """The exact fraction of pixels that are each image's own, float32 [batch]."""
    top, left, bottom, right = cutmix_edges(drawn, image_size=image_size)
    total = image_size[0] * image_size[1]
    return ((total - (bottom - top) * (right - left)) / total).float()


TRANSFORMS: dict[str, MixingTransform[Any]] = {
    "mixup": MixingTransform(Mixup, draw_mixup, mix_mixup, lambda d, _: d["weight"].float()),
    "cutmix": MixingTransform(Cutmix, draw_cutmix, mix_cutmix, cutmix_weight),
}
