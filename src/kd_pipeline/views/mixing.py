"""Transforms that mix two images: mixup and cutmix.

The partner is drawn by the same counter-based function as everything else, from a fixed list of
examples and not from the batch: a view is the same mixed image in any batch, so that a teacher's
logits on it can be cached. It is the image that is mixed, never cached targets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.views.boxes import inside
from kd_pipeline.views.sampling import Drawn, Settings, per_image, unit_scale
from kd_pipeline.views.stream import Stream

_OCTAVES, _CELLS = 54, 512
"""Of the table of quantiles: halvings of the probability down to 2**-54, and cells in each."""


@dataclass(frozen=True)
class MixedWith:
    """Whom each image of a batch was mixed with, and how much of itself is left."""

    partner_ids: Tensor
    """int64 [batch]."""
    own_share: Tensor
    """float32 [batch] in [0, 1]: the exact share of pixels for cutmix; 1 is not mixed."""


def draw_mixup(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """Each image's own `share`, Beta(alpha, alpha), and 1 where it is not mixed.

    Zhang, Cisse, Dauphin, Lopez-Paz 2018, "mixup: beyond empirical risk minimization",
    arXiv:1710.09412. Torchvision's MixUp draws one share per batch; here each image has its own.
    """
    share = beta_quantile(stream.uniform("share"), alpha=settings["alpha"])
    mixed = stream.happens("mixed", settings["probability"])
    return {"share": torch.where(mixed, share, 1.0)}


def draw_cutmix(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """As mixup's `share`, and the middle of the partner's box as fractions of the sides.

    Yun et al. 2019, "CutMix: regularization strategy to train strong classifiers with localizable
    features", arXiv:1905.04899; the box is that of torchvision's CutMix.
    """
    middle = {"down": stream.uniform("down"), "right": stream.uniform("right")}
    return draw_mixup(stream, settings) | middle


def draw_partners(stream: Stream, example_ids: Tensor, partners: Tensor) -> Tensor:
    """Draw a partner for each row, every other example being equally likely.

    Args:
        stream: Of the mixing transform.
        example_ids: int64 [batch]; an example is its own partner only where it is the only one.
        partners: int64 [num_partners], ascending.

    Raises:
        ParameterError: If there are no partners, or they are not in ascending order: in another
            order the same draws would name other partners.
    """
    if len(partners) == 0:
        raise ParameterError("partners", "hold at least one example", partners.tolist())
    if not (partners[1:] > partners[:-1]).all():
        raise ParameterError("partners", "be in ascending order, each once", "another order")
    last = len(partners) - 1
    own = torch.searchsorted(partners, example_ids.contiguous()).clamp(max=last)
    is_partner = partners[own] == example_ids
    # Drawn among the others: from one's own place on, all move up by one.
    others = len(partners) - is_partner.to(torch.int64)
    drawn = (stream.uniform("partner") * others).to(torch.int64)
    drawn += is_partner & (drawn >= own)
    return partners[drawn.clamp(max=last)]


def beta_quantile(uniform: Tensor, *, alpha: float) -> Tensor:
    """Turn uniform draws into draws of Beta(alpha, alpha), by a table of its quantiles.

    Args:
        uniform: float64, any shape, in [0, 1).
        alpha: Both of the distribution's parameters; 1 is uniform.

    Returns:
        float64 of the same shape; linear between exact quantiles, which lie as densely in the
        smallest halves of the tails as in the middle. A draw of 0 is 0.
    """
    if alpha == 1:
        return uniform
    table = torch.from_numpy(_beta_table(alpha)).to(uniform.device)
    is_upper = uniform > 0.5
    # The distribution is symmetric, and 1 - uniform is exact here: one tail serves for both.
    tail = torch.where(is_upper, 1 - uniform, uniform)
    mantissa, exponent = torch.frexp(tail)
    octave = (-exponent).to(torch.int64).clamp(0, _OCTAVES - 1)
    at = ((mantissa - 0.5) * (2 * _CELLS)).clamp(min=0)
    cell = at.to(torch.int64)
    below = table[octave, cell]
    share = below + (table[octave, cell + 1] - below) * (at - cell)
    share = torch.where(tail > 0, share, 0.0)
    return torch.where(is_upper, 1 - share, share)


@lru_cache(maxsize=8)
def _beta_table(alpha: float) -> NDArray[np.float64]:
    """Quantiles [octaves, cells + 1]: octave k spans the probabilities 2**-(k+1) to 2**-k."""
    from scipy.special import betaincinv

    within = np.linspace(0.5, 1, _CELLS + 1)
    probability = np.ldexp(within, -np.arange(_OCTAVES)[:, None])
    table: NDArray[np.float64] = betaincinv(alpha, alpha, probability)
    return table


def render_mixup(pixels: Tensor, partner: Tensor, drawn: Drawn) -> Tensor:
    """Weigh each image with its share and its partner with the rest; float32."""
    share = per_image(drawn["share"])
    return (unit_scale(pixels) * share).add_(unit_scale(partner) * (1 - share)).clamp_(0, 1)


def render_cutmix(pixels: Tensor, partner: Tensor, drawn: Drawn) -> Tensor:
    """Put a box of the partner into each image; any dtype."""
    image_size = (pixels.shape[-2], pixels.shape[-1])
    edges = cutmix_edges(drawn, image_size=image_size)
    return torch.where(inside(edges, image_size), partner, pixels)


def cutmix_edges(drawn: Drawn, *, image_size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Top, left, bottom and right of the partner's box, int64 [batch] each.

    Its sides are sqrt(1 - share) of the image's; what sticks out of the image is lost.
    """
    half = 0.5 * (1 - drawn["share"]).sqrt()
    starts, ends = [], []
    for side, middle in zip(image_size, (drawn["down"], drawn["right"]), strict=True):
        centre, reach = (middle * side).to(torch.int64), (half * side).to(torch.int64)
        starts.append((centre - reach).clamp(min=0))
        ends.append((centre + reach).clamp(max=side))
    return (*starts, *ends)


def mixup_share(drawn: Drawn, _image_size: tuple[int, int]) -> Tensor:
    """Each image's own share, float32 [batch]."""
    return drawn["share"].float()


def cutmix_share(drawn: Drawn, image_size: tuple[int, int]) -> Tensor:
    """Exactly the share of each image's own pixels, float32 [batch]."""
    top, left, bottom, right = cutmix_edges(drawn, image_size=image_size)
    total = image_size[0] * image_size[1]
    return ((total - (bottom - top) * (right - left)) / total).float()


RenderMixed = Callable[[Tensor, Tensor, Drawn], Tensor]
OwnShare = Callable[[Drawn, tuple[int, int]], Tensor]
MIXING: dict[str, tuple[RenderMixed, OwnShare]] = {
    "mixup": (render_mixup, mixup_share),
    "cutmix": (render_cutmix, cutmix_share),
}
