"""The transform that chooses among operations: rand_augment.

Cubuk, Zoph, Shlens, Le 2020, "RandAugment: practical automated data augmentation with a reduced
search space", arXiv:1909.13719; operations and magnitudes are those of torchvision's RandAugment.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kd_pipeline.config import PositiveInt, at_most
from kd_pipeline.views import tones
from kd_pipeline.views.by_choice import change_by_choice, per_row
from kd_pipeline.views.record import Drawn, Table, Transform
from kd_pipeline.views.sampling import sample_affine
from kd_pipeline.views.settings import TransformParams
from kd_pipeline.views.stream import Stream

MAX_MAGNITUDE = 30
"""Torchvision's 31 bins: a magnitude is a fraction of the strongest, in steps of 1/30."""


class RandAugment(TransformParams):
    """Operations drawn from torchvision's fourteen, all of one magnitude: RandAugment."""

    name: Literal["rand_augment"]
    num_ops: Annotated[PositiveInt, at_most(100, "each is applied to every image")] = 2
    magnitude: Annotated[int, Field(ge=0, le=MAX_MAGNITUDE)] = 9


def draw_rand_augment(stream: Stream, settings: RandAugment) -> Drawn:
    """Draw `operation`, positions in `OPERATIONS`, int64 [batch, num_ops], and `sign`, -1 or 1."""
    count = settings.num_ops
    return {
        "operation": stream.choices("operation", len(OPERATIONS), count),
        "sign": (stream.choices("sign", 2, count) * 2 - 1).float(),
    }


def render_rand_augment(pixels: Tensor, drawn: Drawn, settings: RandAugment) -> Tensor:
    """Apply each image's operations in order, on uint8; float32 is rounded to 8 bits and back."""
    is_whole = pixels.dtype == torch.uint8
    levels = pixels if is_whole else (pixels * 255).round_().to(torch.uint8)
    for step in range(settings.num_ops):
        chosen, sign = drawn["operation"][:, step], drawn["sign"][:, step]
        levels = _apply_chosen(levels, chosen, sign, fraction=settings.magnitude / MAX_MAGNITUDE)
    return levels if is_whole else levels / 255


def _apply_chosen(levels: Tensor, chosen: Tensor, sign: Tensor, *, fraction: float) -> Tensor:
    maps = [_inverse_maps(one * fraction, *levels.shape[-2:]) for one in (-1.0, 1.0)]
    matrices = torch.tensor(maps, device=levels.device)

    def move(images: Tensor, rows: Tensor) -> Tensor:
        inverse = matrices[(sign[rows] > 0).to(torch.int64), chosen[rows] - 1]
        # Nearest neighbour, torchvision's default: levels stay whole.
        return sample_affine(images.float(), inverse, mode="nearest").to(torch.uint8)

    tonal = [per_row(tone, sign * fraction) for tone in _TONAL.values()]
    # The five that move pixels are one: 0 is the identity, 1 moves, from 2 on tones change.
    group = (chosen - (len(_MOVES) - 1)).clamp_(min=1) * (chosen > 0)
    return change_by_choice(levels, group, (None, move, *tonal))


_Tone = Callable[[Tensor, Tensor], Tensor]
"""Maps uint8 images and signed strengths [rows], from -1 to 1, to uint8 images."""


def _inverse_maps(strength: float, height: int, width: int) -> list[list[list[float]]]:
    """The inverse maps of the operations that move pixels, [5, 2, 3], in the order of `_MOVES`."""
    slope, radians = 0.3 * strength, math.radians(30.0 * strength)
    cosine, sine = math.cos(radians), math.sin(radians)
    right, down = (math.trunc(150.0 / 331.0 * side * strength) for side in (width, height))
    return [
        # Sheared about the corner, not the middle: the last column moves the origin there.
        [[1.0, slope, slope * height / 2], [0.0, 1.0, 0.0]],
        [[1.0, 0.0, 0.0], [slope, 1.0, slope * width / 2]],
        [[1.0, 0.0, -right], [0.0, 1.0, 0.0]],
        [[1.0, 0.0, 0.0], [0.0, 1.0, -down]],
        [[cosine, -sine, 0.0], [sine, cosine, 0.0]],
    ]


_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def _blend(tone: _Tone, images: Tensor, strength: Tensor) -> Tensor:
    return tone(images, 1 + 0.9 * strength)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    # The sign has no effect: torchvision draws none here.
    return tones.posterize(images, 8 - (strength.abs() * 4).round().to(torch.int64))


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return tones.solarize(images, 255 * (1 - strength.abs()))


_TONAL: dict[str, _Tone] = {
    "brightness": partial(_blend, tones.brightness),
    "colour": partial(_blend, tones.saturation),
    "contrast": partial(_blend, tones.contrast),
    "sharpness": partial(_blend, tones.sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda images, _: tones.autocontrast(images),
    "equalize": lambda images, _: tones.equalize(images),
}

OPERATIONS = ("identity", *_MOVES, *_TONAL)
"""In torchvision's order; each is as likely as any other."""


TRANSFORMS: Table = {"rand_augment": Transform(RandAugment, draw_rand_augment, render_rand_augment)}
