"""The block `views`, and the transforms that it and the teacher name."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kd_pipeline.parameters.base import (
    Fraction,
    Params,
    PositiveInt,
    Seed,
)


class Shift(Params):
    """Shift by whole pixels, padded: crop with padding is this."""

    name: Literal["shift"]
    max_pixels: PositiveInt
    padding: Literal["zeros", "reflect"] = "zeros"


class HorizontalFlip(Params):
    """Mirror left and right."""

    name: Literal["horizontal_flip"]
    probability: Fraction = 0.5


class Affine(Params):
    """Rotate, scale and shift by parts of pixels, bilinear, zeros outside."""

    name: Literal["affine"]
    max_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    max_shift_pixels: Annotated[float, Field(ge=0.0)] = 0.0
    max_scale: Annotated[float, Field(ge=1.0)] = 1.0
    """Drawn log-uniformly between 1 / max_scale and max_scale."""


Transform = Annotated[Shift | HorizontalFlip | Affine, Field(discriminator="name")]


class ViewsParams(Params):
    """`views`: what the teacher labels and every student arm sees, named once for all."""

    seed: Seed = 0
    num_views: Annotated[int, Field(ge=1, le=32767)] = 1
    transforms: tuple[Transform, ...] = ()
    """Applied in this order; none is the clean image."""

    def policy_arguments(self) -> dict[str, Any]:
        """What `ViewPolicy` takes: one way for all who draw, cache or check these views."""
        transforms = self.model_dump(mode="json")["transforms"]
        return {"seed": self.seed, "transforms": tuple(transforms)}

    @model_validator(mode="after")
    def _clean_views_are_all_alike(self) -> Self:
        if self.num_views > 1 and not self.transforms:
            raise ValueError(
                f"`num_views` must be 1 where `transforms` is empty, got {self.num_views}"
            )
        return self
