"""The transform that chooses among operations: rand_augment.

Cubuk, Zoph, Shlens, Le 2020, "RandAugment: practical automated data augmentation with a reduced
search space", arXiv:1909.13719; operations and magnitudes are those of torchvision's RandAugment.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kd_pipeline.views import tones
from kd_pipeline.views.by_choice import Operation, change_by_choice
from kd_pipeline.views.sampling import Drawn, Settings, sample_affine
from kd_pipeline.views.stream import Stream

MAX_MAGNITUDE = 30
"""Torchvision's 31 bins: a magnitude is a share of the strongest, in steps of 1/30."""


def draw_rand_augment(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """Which operations each image goes through, in order, and the `sign` of their strengths.

    Returns:
        `operation`, positions in `OPERATIONS`, int64 [batch, num_ops], and `sign`, -1 or 1,
        float32 of the same shape.
    """
    count = settings["num_ops"]
    return {
        "operation": stream.choices("operation", len(OPERATIONS), count),
        "sign": (stream.choices("sign", 2, count) * 2 - 1).float(),
    }


def render_rand_augment(pixels: Tensor, drawn: Drawn, settings: Settings) -> Tensor:
    """Put each image through its operations on uint8, which is what they are defined on.

    Returns:
        The dtype that came: float32 in [0, 1] is rounded to 8 bits first and given back as
        float32.
    """
    is_whole = pixels.dtype == torch.uint8
    levels = pixels.clone() if is_whole else (pixels * 255).round_().to(torch.uint8)
    for step in range(settings["num_ops"]):
        chosen, sign = drawn["operation"][:, step], drawn["sign"][:, step]
        _apply_chosen(levels, chosen, sign, share=settings["magnitude"] / MAX_MAGNITUDE)
    return levels if is_whole else levels / 255


def _apply_chosen(levels: Tensor, chosen: Tensor, sign: Tensor, *, share: float) -> None:
    matrices = _inverses(share, image_size=(levels.shape[-2], levels.shape[-1])).to(levels.device)

    def move(images: Tensor, rows: Tensor) -> Tensor:
        inverse = matrices[chosen[rows] - 1, (sign[rows] > 0).to(torch.int64)]
        # Nearest neighbour, torchvision's default: levels stay whole.
        return sample_affine(images.float(), inverse, mode="nearest").to(torch.uint8)

    tonal = [_operation(build, sign * share) for build in _TONAL.values()]
    # The five that move pixels go together: 0 is the identity, 1 moves, from 2 on tones change.
    group = (chosen - (len(_MOVES) - 1)).clamp_(min=1) * (chosen > 0)
    change_by_choice(levels, group, (None, move, *tonal))


_Build = Callable[[Tensor, Tensor], Tensor]
"""Takes uint8 images and signed strengths [rows], from -1 to 1; gives uint8 images."""


def _operation(build: _Build, signed: Tensor) -> Operation:
    return lambda images, rows: build(images, signed[rows])


def _inverses(share: float, *, image_size: tuple[int, int]) -> Tensor:
    """The inverse maps of the operations that move pixels: float32 [5, 2, 2, 3], - and + sign."""
    maps = [[move(sign * share, *image_size) for sign in (-1.0, 1.0)] for move in _MOVES.values()]
    return torch.tensor(maps)


_Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


def _shear_x(strength: float, height: int, _width: int) -> _Matrix:
    # About the corner, not the middle: the last column moves the origin there.
    slope = 0.3 * strength
    return (1.0, slope, slope * height / 2), (0.0, 1.0, 0.0)


def _shear_y(strength: float, _height: int, width: int) -> _Matrix:
    slope = 0.3 * strength
    return (1.0, 0.0, 0.0), (slope, 1.0, slope * width / 2)


def _translate_x(strength: float, _height: int, width: int) -> _Matrix:
    return (1.0, 0.0, -math.trunc(150.0 / 331.0 * width * strength)), (0.0, 1.0, 0.0)


def _translate_y(strength: float, height: int, _width: int) -> _Matrix:
    return (1.0, 0.0, 0.0), (0.0, 1.0, -math.trunc(150.0 / 331.0 * height * strength))


def _rotate(strength: float, _height: int, _width: int) -> _Matrix:
    radians = math.radians(30.0 * strength)
    cosine, sine = math.cos(radians), math.sin(radians)
    return (cosine, -sine, 0.0), (sine, cosine, 0.0)


_MOVES: dict[str, Callable[[float, int, int], _Matrix]] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
}


def _blended(tone: _Build) -> _Build:
    return lambda images, strength: tone(images, 1 + 0.9 * strength)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    # The sign does not count: torchvision draws none here.
    return tones.posterize(images, 8 - (strength.abs() * 4).round().to(torch.int64))


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return tones.solarize(images, 255 * (1 - strength.abs()))


_TONAL: dict[str, _Build] = {
    "brightness": _blended(tones.brightness),
    "colour": _blended(tones.saturation),
    "contrast": _blended(tones.contrast),
    "sharpness": _blended(tones.sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda images, _: tones.autocontrast(images),
    "equalize": lambda images, _: tones.equalize(images),
}

OPERATIONS = ("identity", *_MOVES, *_TONAL)
"""In torchvision's order; each is as likely as any other."""
