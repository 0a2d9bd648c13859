"""The block `views`, and the type of its `transforms` and the teacher's.

A transform's settings are declared beside its code, which is imported, and torch with it, only
where a list holds a transform.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from kd_pipeline.config import Params, Seed
from kd_pipeline.errors import ParameterError
from kd_pipeline.views.policy import ViewPolicy

AreaFraction = Annotated[float, Field(gt=0.0, le=1.0)]


class TransformParams(Params):
    """The base of a transform's settings."""

    name: str
    mixes: ClassVar[bool] = False
    """Whether an image is mixed with a second one."""

    @model_validator(mode="after")
    def _ranges_in_order(self) -> Self:
        for high_name in [name for name in type(self).model_fields if name.startswith("max_")]:
            low_name = high_name.replace("max_", "min_", 1)
            low, high = getattr(self, low_name, None), getattr(self, high_name)
            if low is not None and low > high:
                raise ValueError(f"`{low_name}` must be at most `{high_name}` ({high}), got {low}")
        return self


def _of_its_name(given: Any) -> Any:
    """Validate one entry by the settings of the transform that it names."""
    if isinstance(given, TransformParams):
        return given
    from kd_pipeline.views.transforms import TRANSFORMS

    name = given.get("name") if isinstance(given, dict) else given
    if name not in list(TRANSFORMS):
        raise ValueError(f"`name` must be one of {', '.join(TRANSFORMS)}, got {name!r}")
    return TRANSFORMS[name].settings.model_validate(given)


def _mixes_at_most_once(transforms: tuple[TransformParams, ...]) -> tuple[TransformParams, ...]:
    mixing = [transform.name for transform in transforms if transform.mixes]
    if len(mixing) > 1:
        raise ValueError(f"`transforms` must hold at most one of mixup and cutmix, got {mixing}")
    return transforms


Transforms = Annotated[
    tuple[Annotated[SerializeAsAny[TransformParams], BeforeValidator(_of_its_name)], ...],
    AfterValidator(_mixes_at_most_once),
]
"""Applied in this order; none is the clean image."""


class ViewsParams(Params):
    """`views`: what the teacher labels and every student is trained on, named once for all."""

    seed: Seed = 0
    num_views: Annotated[int, Field(ge=1, le=32767)] | None = 1
    """Views that repeat and can be cached; null draws a fresh one in every pass, which only hard
    labels and a live teacher allow."""
    transforms: Transforms = ()

    @property
    def policy(self) -> ViewPolicy:
        """How these views are drawn."""
        return ViewPolicy(self.seed, self.transforms)

    def num_cached_views(self) -> int:
        """How many views a cache holds.

        Raises:
            ParameterError: If every pass draws a fresh view.
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
