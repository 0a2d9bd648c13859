"""Policies: which transforms make a view, in which order, drawn from which seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kd_pipeline.errors import ParameterError

if TYPE_CHECKING:  # settings imports this module.
    from kd_pipeline.views.settings import TransformParams

RENDERING = 1
"""To be raised with every change to the pixels of a drawn view, so that older caches are refused;
`tests/views/test_rendering.py` fails where it is not."""


@dataclass(frozen=True)
class ViewPolicy:
    """Transforms and their seed; the clean image where there are none."""

    seed: int = 0
    transforms: "tuple[TransformParams, ...]" = ()

    @cached_property
    def description(self) -> dict[str, Any]:
        """The policy as plain data, as the manifest of a cache holds it."""
        transforms = [transform.model_dump(mode="json") for transform in self.transforms]
        described = {"seed": self.seed, "transforms": transforms}
        return described | {"rendering": RENDERING} if transforms else described

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "ViewPolicy":
        """The policy that a cache was made with, from its manifest.

        Raises:
            ParameterError: If its views were rendered in another way than by this version.
            ValidationError: If a transform or a setting is unknown.
        """
        from kd_pipeline.views.settings import ViewsParams

        settings = dict(description)
        if (rendering := settings.pop("rendering", RENDERING)) != RENDERING:
            rule = f"be {RENDERING}, the rendering of this version"
            raise ParameterError("view_policy.rendering", rule, rendering)
        return ViewsParams.model_validate(settings).policy

    @cached_property
    def mixing_position(self) -> int | None:
        """Position of the transform that mixes images; None if there is none."""
        return next((i for i, transform in enumerate(self.transforms) if transform.mixes), None)

    @property
    def mixes(self) -> bool:
        """Whether a view shows a second example too."""
        return self.mixing_position is not None
