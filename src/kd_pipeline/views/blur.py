"""The transform that blurs."""

from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from kd_pipeline.config import Fraction, PositiveFloat, PositiveInt
from kd_pipeline.errors import ParameterError
from kd_pipeline.views.by_choice import change_by_choice
from kd_pipeline.views.record import Drawn, Table, Transform
from kd_pipeline.views.sampling import pad_reflected, per_image, unit_scale
from kd_pipeline.views.settings import TransformParams
from kd_pipeline.views.stream import Stream


class Blur(TransformParams):
    """Blur by a Gaussian, the border mirrored: GaussianBlur, within RandomApply."""

    name: Literal["blur"]
    kernel_size: PositiveInt = 3
    """Pixels, odd."""
    min_sigma: PositiveFloat = 0.1
    max_sigma: PositiveFloat = 2.0
    probability: Fraction = 0.5

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, got {self.kernel_size}")
        return self


def draw_blur(stream: Stream, settings: Blur) -> Drawn:
    """Draw whether each image is `blurred`, and with which `sigma`, in pixels."""
    return {
        "blurred": stream.happens("blurred", settings.probability),
        "sigma": stream.uniform("sigma", settings.min_sigma, settings.max_sigma),
    }


def render_blur(pixels: Tensor, drawn: Drawn, settings: Blur) -> Tensor:
    """Smooth with a Gaussian of each image's own width, the border mirrored; float32.

    Raises:
        ParameterError: If an image is too small to be padded by its mirror image.
    """
    margin, side = settings.kernel_size // 2, min(pixels.shape[-2:])
    if margin >= side:
        rule = f"be at most {2 * side - 1} for images whose side is {side}"
        raise ParameterError("transforms.blur.kernel_size", rule, settings.kernel_size)
    weights = gaussian_weights(drawn["sigma"], margin=margin)

    def blur(images: Tensor, rows: Tensor) -> Tensor:
        return _along(_along(images, weights[rows], dim=2), weights[rows], dim=3).clamp_(max=1)

    chosen = drawn["blurred"].to(torch.int64)
    return change_by_choice(unit_scale(pixels), chosen, (None, blur))


def gaussian_weights(sigma: Tensor, *, margin: int) -> Tensor:
    """One half of each kernel, from its middle outwards, float32 [batch, margin + 1]."""
    offsets = torch.arange(margin + 1, device=sigma.device)
    weights = (-0.5 * (offsets / sigma.unsqueeze(-1)) ** 2).exp()
    total = weights[:, 0].clone()
    for offset in range(1, margin + 1):
        total += 2 * weights[:, offset]
    return (weights / total.unsqueeze(-1)).float()


def _along(images: Tensor, weights: Tensor, *, dim: int) -> Tensor:
    """Smooth along one side: weighted copies, shifted and added.

    A convolution with a kernel per image would do, but its bits may change with the batch.
    """
    side, margin = images.shape[dim], weights.shape[1] - 1
    padded = pad_reflected(images, dim, margin)
    smooth = images * per_image(weights[:, 0])
    for offset in range(1, margin + 1):
        before = padded.narrow(dim, margin - offset, side)
        both = before + padded.narrow(dim, margin + offset, side)
        smooth += both.mul_(per_image(weights[:, offset]))
    return smooth


TRANSFORMS: Table = {"blur": Transform(Blur, draw_blur, render_blur)}
