"""One dict from a transform's name to how it is drawn, how rendered, and its defaults."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.views.blur import draw_blur, render_blur
from kd_pipeline.views.colour import (
    draw_colour_jitter,
    draw_grey,
    render_colour_jitter,
    render_grey,
)
from kd_pipeline.views.geometric import (
    draw_affine,
    draw_flip,
    draw_resized_crop,
    draw_shift,
    render_affine,
    render_flip,
    render_resized_crop,
    render_shift,
)
from kd_pipeline.views.mixing import draw_cutmix, draw_mixup
from kd_pipeline.views.occlusion import draw_cutout, render_cutout
from kd_pipeline.views.rand_augment import draw_rand_augment, render_rand_augment
from kd_pipeline.views.sampling import Drawn, Settings
from kd_pipeline.views.stream import Stream

Draw = Callable[[Stream, Settings], dict[str, Tensor]]
Render = Callable[[Tensor, Drawn, Settings], Tensor]


@dataclass(frozen=True)
class Transform:
    """A kind of transform; one that mixes images is rendered by `mixing.MIXING`."""

    draw: Draw
    render: Render | None
    defaults: Mapping[str, Any]
    required: frozenset[str] = field(default=frozenset())

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the defaults in.

        Raises:
            ParameterError: If a setting is unknown or missing.
        """
        name, legal = given["name"], {*self.defaults, *self.required}
        if unknown := set(given) - legal - {"name"}:
            rule = "have only settings that it knows"
            raise ParameterError(f"transforms.{name}", rule, sorted(unknown), legal=legal)
        if missing := self.required - set(given):
            rule = f"have the settings {', '.join(sorted(missing))}"
            raise ParameterError(f"transforms.{name}", rule, dict(given))
        return {**self.defaults, **given}


TRANSFORMS: dict[str, Transform] = {
    "shift": Transform(draw_shift, render_shift, {"padding": "zeros"}, frozenset({"max_pixels"})),
    "resized_crop": Transform(
        draw_resized_crop,
        render_resized_crop,
        {"min_scale": 0.08, "max_scale": 1.0, "min_ratio": 3 / 4, "max_ratio": 4 / 3},
    ),
    "horizontal_flip": Transform(draw_flip, render_flip, {"probability": 0.5}),
    "affine": Transform(
        draw_affine,
        render_affine,
        {
            "max_degrees": 0.0,
            "max_shift_pixels": 0.0,
            "min_scale": None,
            "max_scale": 1.0,
            "max_shear_degrees": 0.0,
        },
    ),
    "colour_jitter": Transform(
        draw_colour_jitter,
        render_colour_jitter,
        {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    ),
    "grey": Transform(draw_grey, render_grey, {"probability": 0.1}),
    "blur": Transform(
        draw_blur,
        render_blur,
        {"kernel_size": 3, "min_sigma": 0.1, "max_sigma": 2.0, "probability": 0.5},
    ),
    "cutout": Transform(
        draw_cutout,
        render_cutout,
        {
            "probability": 0.5,
            "min_area": 0.02,
            "max_area": 0.33,
            "min_ratio": 0.3,
            "max_ratio": 3.3,
        },
    ),
    "rand_augment": Transform(
        draw_rand_augment, render_rand_augment, {"num_ops": 2, "magnitude": 9}
    ),
    "mixup": Transform(draw_mixup, None, {"alpha": 1.0, "probability": 1.0}),
    "cutmix": Transform(draw_cutmix, None, {"alpha": 1.0, "probability": 1.0}),
}
