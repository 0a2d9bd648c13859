"""Transforms of colours: colour_jitter and grey."""

from itertools import permutations

import torch
from torch import Tensor

from kd_pipeline.views import tones
from kd_pipeline.views.by_choice import Operation, change_by_choice
from kd_pipeline.views.sampling import Drawn, Settings, unit_scale_copy
from kd_pipeline.views.stream import Stream

_JITTERS = {
    "brightness": tones.brightness,
    "contrast": tones.contrast,
    "saturation": tones.saturation,
    "hue": tones.hue,
}


def draw_colour_jitter(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """A factor per image for each tone that is jittered, and their random `order`.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], the hue's turn in
    [-strength, strength], every order of the jitters equally likely: torchvision's ColorJitter,
    which draws the order anew for each image too.
    """
    names = _jittered(settings)
    drawn: dict[str, Tensor] = {}
    for name in names:
        strength = settings[name]
        lowest = -strength if name == "hue" else max(0.0, 1.0 - strength)
        highest = strength if name == "hue" else 1.0 + strength
        drawn[name] = stream.uniform(name, lowest, highest)
    if len(names) > 1:
        orders = torch.tensor(list(permutations(range(len(names)))), device=stream.keys.device)
        drawn["order"] = orders[stream.choices("order", len(orders), 1).squeeze(1)]
    return drawn


def render_colour_jitter(pixels: Tensor, drawn: Drawn, settings: Settings) -> Tensor:
    """Apply each image's jitters in its own order; float32."""
    images, names = unit_scale_copy(pixels), _jittered(settings)
    operations = [_jitter(name, drawn[name]) for name in names]
    if len(names) == 1:
        return operations[0](images, torch.arange(len(images), device=images.device))
    for step in range(len(names)):
        change_by_choice(images, drawn["order"][:, step], operations)
    return images


def _jittered(settings: Settings) -> list[str]:
    return [name for name in _JITTERS if settings[name] > 0]


def _jitter(name: str, factors: Tensor) -> Operation:
    return lambda images, rows: _JITTERS[name](images, factors[rows])


def draw_grey(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """Whether each image is turned `grey`: torchvision's RandomGrayscale."""
    return {"grey": stream.happens("grey", settings["probability"])}


def render_grey(pixels: Tensor, drawn: Drawn, _settings: Settings) -> Tensor:
    """Replace every channel by the luminance; images of one channel stay; any dtype."""
    if pixels.shape[1] == 1:
        return pixels
    grey = tones.luminance(pixels).to(pixels.dtype)
    return torch.where(drawn["grey"].view(-1, 1, 1, 1), grey, pixels)
