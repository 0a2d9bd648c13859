"""The block `views`, and the transforms that it and the teacher name.

Names and settings are torchvision's where it has the transform.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from kd_pipeline.config import (
    Fraction,
    Params,
    PositiveFloat,
    PositiveInt,
    Seed,
)
from kd_pipeline.errors import ParameterError

_Strength = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Area = Annotated[float, Field(gt=0.0, le=1.0)]


def _in_order(block: Params, *names: str) -> None:
    """Refuse a `min_` above its `max_`."""
    for name in names:
        low, high = getattr(block, f"min_{name}"), getattr(block, f"max_{name}")
        if low is not None and low > high:
            raise ValueError(f"`min_{name}` must be at most `max_{name}` ({high}), got {low}")


class Shift(Params):
    """Shift by whole pixels, padded: crop with padding (RandomCrop) is this."""

    name: Literal["shift"]
    max_pixels: PositiveInt
    padding: Literal["zeros", "reflect"] = "zeros"


class ResizedCrop(Params):
    """Cut a part out and enlarge it to the image's own size: RandomResizedCrop."""

    name: Literal["resized_crop"]
    min_scale: _Area = 0.08
    max_scale: _Area = 1.0
    """Share of the image's area."""
    min_ratio: PositiveFloat = 3 / 4
    max_ratio: PositiveFloat = 4 / 3
    """Width by height, drawn log-uniformly."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _in_order(self, "scale", "ratio")
        return self


class HorizontalFlip(Params):
    """Mirror left and right: RandomHorizontalFlip."""

    name: Literal["horizontal_flip"]
    probability: Fraction = 0.5


class Affine(Params):
    """Rotate, scale, shear and shift by parts of pixels, bilinear, zeros outside: RandomAffine."""

    name: Literal["affine"]
    max_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    max_shift_pixels: _Strength = 0.0
    min_scale: PositiveFloat | None = None
    """Given, the scale is uniform in [min_scale, max_scale], as torchvision's."""
    max_scale: PositiveFloat = 1.0
    """Without `min_scale` the scale is log-uniform between 1 / max_scale and max_scale."""
    max_shear_degrees: Annotated[float, Field(ge=0.0, lt=90.0)] = 0.0
    """Along x."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _in_order(self, "scale")
        if self.min_scale is None and self.max_scale < 1:
            raise ValueError(
                f"`max_scale` must be at least 1 without `min_scale`, got {self.max_scale}"
            )
        return self


class ColourJitter(Params):
    """Change brightness, contrast, saturation and hue, in random order: ColorJitter."""

    name: Literal["colour_jitter"]
    brightness: _Strength = 0.0
    """The factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 leaves it out."""
    contrast: _Strength = 0.0
    saturation: _Strength = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Turn of the colour wheel, uniform in [-hue, hue]."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError(
                "one of `brightness`, `contrast`, `saturation` and `hue` must be above 0"
            )
        return self


class Grey(Params):
    """Take the colours away: RandomGrayscale."""

    name: Literal["grey"]
    probability: Fraction = 0.1


class Blur(Params):
    """Blur by a Gaussian, the border mirrored: GaussianBlur."""

    name: Literal["blur"]
    kernel_size: PositiveInt = 3
    """Pixels, odd."""
    min_sigma: PositiveFloat = 0.1
    max_sigma: PositiveFloat = 2.0
    probability: Fraction = 0.5

    @model_validator(mode="after")
    def _odd_and_in_order(self) -> Self:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, got {self.kernel_size}")
        _in_order(self, "sigma")
        return self


class Cutout(Params):
    """Blacken a random rectangle: RandomErasing with value 0; ratios of 1 make it a square."""

    name: Literal["cutout"]
    probability: Fraction = 0.5
    min_area: _Area = 0.02
    max_area: _Area = 0.33
    """Share of the image's area."""
    min_ratio: PositiveFloat = 0.3
    max_ratio: PositiveFloat = 3.3

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _in_order(self, "area", "ratio")
        return self


class RandAugment(Params):
    """Operations drawn from torchvision's fourteen, all of one magnitude: RandAugment."""

    name: Literal["rand_augment"]
    num_ops: PositiveInt = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class Mixup(Params):
    """Blend with another training image; labels are blended alike, cached targets never."""

    name: Literal["mixup"]
    alpha: PositiveFloat = 1.0
    """The image's own share is Beta(alpha, alpha)."""
    probability: Fraction = 1.0


class Cutmix(Params):
    """Paste a box of another training image; labels are mixed by area, cached targets never."""

    name: Literal["cutmix"]
    alpha: PositiveFloat = 1.0
    """The image's own share of the area is about Beta(alpha, alpha)."""
    probability: Fraction = 1.0


Transform = Annotated[
    Shift
    | ResizedCrop
    | HorizontalFlip
    | Affine
    | ColourJitter
    | Grey
    | Blur
    | Cutout
    | RandAugment
    | Mixup
    | Cutmix,
    Field(discriminator="name"),
]


def _mixes_at_most_once(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    mixing = [t.name for t in transforms if isinstance(t, Mixup | Cutmix)]
    if len(mixing) > 1:
        raise ValueError(f"`transforms` must hold at most one of mixup and cutmix, got {mixing}")
    return transforms


Transforms = Annotated[tuple[Transform, ...], AfterValidator(_mixes_at_most_once)]
"""Applied in this order; none is the clean image."""


class ViewsParams(Params):
    """`views`: what the teacher labels and every student arm sees, named once for all."""

    seed: Seed = 0
    num_views: Annotated[int, Field(ge=1, le=32767)] | None = 1
    """Views that repeat, so that they can be cached; null shows a fresh one in every pass, which
    only hard labels and a live teacher can follow."""
    transforms: Transforms = ()

    def policy_arguments(self) -> dict[str, Any]:
        """What `ViewPolicy` takes: one way for all who draw, cache or check these views."""
        transforms = self.model_dump(mode="json")["transforms"]
        return {"seed": self.seed, "transforms": tuple(transforms)}

    def num_cached_views(self) -> int:
        """How many views a cache of these holds.

        Raises:
            ParameterError: If every pass shows a fresh view: no cache can hold those.
        """
        if self.num_views is None:
            rule = "be a number where a cache is made or read: fresh views are not in it"
            raise ParameterError("views.num_views", rule, None)
        return self.num_views

    @model_validator(mode="after")
    def _clean_views_are_all_alike(self) -> Self:
        if self.num_views != 1 and not self.transforms:
            raise ValueError(
                f"`num_views` must be 1 where `transforms` is empty, got {self.num_views}"
            )
        return self
