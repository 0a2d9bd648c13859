"""Transforms of colours: colour_jitter and grey."""

from itertools import permutations
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kd_pipeline.config import Fraction, NonNegativeFloat
from kd_pipeline.views import tones
from kd_pipeline.views.by_choice import change_by_choice, per_row
from kd_pipeline.views.record import Drawn, Table, Transform
from kd_pipeline.views.sampling import unit_scale
from kd_pipeline.views.settings import TransformParams
from kd_pipeline.views.stream import Stream

_JITTERS = {
    "brightness": tones.brightness,
    "contrast": tones.contrast,
    "saturation": tones.saturation,
    "hue": tones.hue,
}


class ColourJitter(TransformParams):
    """Change brightness, contrast, saturation and hue, in random order: ColorJitter."""

    name: Literal["colour_jitter"]
    brightness: NonNegativeFloat = 0.0
    """The factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 leaves it out."""
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Turn of the colour wheel, uniform in [-hue, hue]."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.strengths:
            raise ValueError(
                "one of `brightness`, `contrast`, `saturation` and `hue` must be above 0"
            )
        return self

    @property
    def strengths(self) -> dict[str, float]:
        """The strengths above 0."""
        return {name: getattr(self, name) for name in _JITTERS if getattr(self, name) > 0}


class Grey(TransformParams):
    """Remove the colours: RandomGrayscale."""

    name: Literal["grey"]
    probability: Fraction = 0.1


def draw_colour_jitter(stream: Stream, settings: ColourJitter) -> Drawn:
    """Draw a factor per image for each tone, and their `order`, each equally likely."""
    names = list(settings.strengths)
    drawn: dict[str, Tensor] = {}
    for name, strength in settings.strengths.items():
        lowest = -strength if name == "hue" else max(0.0, 1.0 - strength)
        highest = strength if name == "hue" else 1.0 + strength
        drawn[name] = stream.uniform(name, lowest, highest)
    if len(names) > 1:
        orders = torch.tensor(list(permutations(range(len(names)))), device=stream.keys.device)
        drawn["order"] = orders[stream.choices("order", len(orders), 1).squeeze(1)]
    return drawn


def render_colour_jitter(pixels: Tensor, drawn: Drawn, settings: ColourJitter) -> Tensor:
    """Apply each image's jitters in its own order; float32."""
    images, names = unit_scale(pixels), list(settings.strengths)
    if len(names) == 1:
        return _JITTERS[names[0]](images, drawn[names[0]])
    operations = [per_row(_JITTERS[name], drawn[name]) for name in names]
    for step in range(len(names)):
        images = change_by_choice(images, drawn["order"][:, step], operations)
    return images


def draw_grey(stream: Stream, settings: Grey) -> Drawn:
    """Draw whether each image is turned `grey`."""
    return {"grey": stream.happens("grey", settings.probability)}


def render_grey(pixels: Tensor, drawn: Drawn, _settings: Grey) -> Tensor:
    """Replace every channel by the luminance; images of one channel stay; any dtype."""
    grey = tones.luminance(pixels).to(pixels.dtype)
    return torch.where(drawn["grey"].view(-1, 1, 1, 1), grey, pixels)


TRANSFORMS: Table = {
    "colour_jitter": Transform(ColourJitter, draw_colour_jitter, render_colour_jitter),
    "grey": Transform(Grey, draw_grey, render_grey),
}
