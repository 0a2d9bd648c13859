"""Policies: which transforms make a view, how a view is drawn, and how it is rendered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.views.mixing import MIXING, MixedWith, draw_partners
from kd_pipeline.views.stream import Stream
from kd_pipeline.views.transforms import TRANSFORMS

RENDERING = 1
"""Goes up with every change to what a drawn view looks like, so that caches made before it are
refused; `tests/data/views/test_rendering.py` fails where that is forgotten."""

PixelsOf = Callable[[Tensor], Tensor]
"""From example ids, int64 [batch], to uint8 pixels [batch, channels, height, width]."""


@dataclass(frozen=True)
class ViewPolicy:
    """Which transforms, in which order, drawn from which seed."""

    seed: int = 0
    transforms: tuple[Mapping[str, Any], ...] = ()
    """Each has a `name` in `TRANSFORMS` and that transform's settings; none is the clean image."""

    def __post_init__(self) -> None:
        """Refuse an unknown transform or setting, and two transforms that mix images."""
        for transform in self.transforms:
            if transform["name"] not in TRANSFORMS:
                rule = "be a known transform"
                raise ParameterError("transforms.name", rule, transform["name"], legal=TRANSFORMS)
            TRANSFORMS[transform["name"]].settings(transform)
        mixing = [t["name"] for t in self.transforms if t["name"] in MIXING]
        if len(mixing) > 1:
            rule = f"hold at most one of {' and '.join(MIXING)}"
            raise ParameterError("transforms", rule, mixing)

    @cached_property
    def description(self) -> dict[str, Any]:
        """The policy as plain data, as the manifest of a cache holds it."""
        described = {"seed": self.seed, "transforms": [dict(t) for t in self.transforms]}
        return described | {"rendering": RENDERING} if self.transforms else described

    @cached_property
    def mixing_position(self) -> int | None:
        """Where the transform stands that mixes images; None if there is none."""
        names = [transform["name"] for transform in self.transforms]
        return next((i for i, name in enumerate(names) if name in MIXING), None)

    @property
    def mixes(self) -> bool:
        """Whether a view shows a second example too."""
        return self.mixing_position is not None

    @cached_property
    def settings(self) -> tuple[dict[str, Any], ...]:
        """Each transform's settings, defaults filled in."""
        return tuple(TRANSFORMS[t["name"]].settings(t) for t in self.transforms)


def view_parameters(
    policy: ViewPolicy,
    example_ids: Tensor,
    view: int | Tensor,
    *,
    partners: Tensor | None = None,
) -> dict[str, Tensor]:
    """Draw what each transform does to each example in one view.

    Args:
        policy: What to draw.
        example_ids: int64 [batch].
        view: The view's number, one for all or int64 [batch].
        partners: int64 [num_partners], ascending: whom examples are mixed with. Needed by
            policies that mix.

    Returns:
        Tensors [batch, ...] named `<position of the transform>.<parameter>`; empty for clean
        views. The transform that mixes has its partner's, `<position>.partner.<parameter>`, too.

    Raises:
        ParameterError: If the policy mixes and there are no partners, or not in ascending order.
    """
    views = torch.as_tensor(view, dtype=torch.int64, device=example_ids.device)
    parameters = _draw(policy, example_ids, views, len(policy.transforms))
    at = policy.mixing_position
    if at is None:
        return parameters
    if partners is None:
        names = [transform["name"] for transform in policy.transforms]
        raise ParameterError("transforms", "not mix images where there are no partners", names)
    stream = Stream(_keys(example_ids, views), policy.seed, at)
    partner_ids = draw_partners(stream, example_ids, partners.to(example_ids.device))
    parameters[f"{at}.partner_id"] = partner_ids
    # The partner is augmented as itself: in this view it looks as it would look alone.
    for name, values in _draw(policy, partner_ids, views, at).items():
        parameters[f"{at}.partner.{name}"] = values
    return parameters


def _draw(
    policy: ViewPolicy, example_ids: Tensor, views: Tensor, num_transforms: int
) -> dict[str, Tensor]:
    keys = _keys(example_ids, views)
    parameters: dict[str, Tensor] = {}
    for position, settings in enumerate(policy.settings[:num_transforms]):
        stream = Stream(keys, policy.seed, position)
        for name, values in TRANSFORMS[settings["name"]].draw(stream, settings).items():
            parameters[f"{position}.{name}"] = values
    return parameters


def _keys(example_ids: Tensor, views: Tensor) -> Tensor:
    # The view enters through the id, so that views of one batch may differ by row.
    return example_ids * 32_771 + views


def render_views(
    pixels: Tensor,
    parameters: Mapping[str, Tensor],
    policy: ViewPolicy,
    *,
    pixels_of: PixelsOf | None = None,
) -> Tensor:
    """Apply drawn transforms to a batch of images, on whatever device they are.

    Args:
        pixels: uint8 [batch, channels, height, width].
        parameters: From `view_parameters`, for the same rows.
        policy: The same policy.
        pixels_of: Gives the partners' pixels, on the same device. Needed by policies that mix.

    Returns:
        Same shape: uint8, or float32 in [0, 1] from the first transform on that interpolates or
        blends.

    Raises:
        ParameterError: If the policy mixes and `pixels_of` is missing, or an image is too small.
    """
    return _render(pixels, parameters, policy.settings, pixels_of)


def _render(
    pixels: Tensor,
    parameters: Mapping[str, Tensor],
    transforms: tuple[dict[str, Any], ...],
    pixels_of: PixelsOf | None,
) -> Tensor:
    for position, settings in enumerate(transforms):
        name, drawn = settings["name"], _within(parameters, f"{position}.")
        render = TRANSFORMS[name].render
        if render is not None:
            pixels = render(pixels, drawn, settings)
            continue
        if pixels_of is None:
            raise ParameterError("transforms", "not mix images whose pixels are not given", name)
        partner = pixels_of(drawn["partner_id"])
        partner = _render(partner, _within(drawn, "partner."), transforms[:position], None)
        render_mixed, _ = MIXING[name]
        pixels = render_mixed(pixels, partner, drawn)
    return pixels


def _within(parameters: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in parameters.items() if k.startswith(prefix)}


def mixing_of(
    parameters: Mapping[str, Tensor], policy: ViewPolicy, *, image_size: tuple[int, int]
) -> MixedWith | None:
    """Tell whom each example was mixed with.

    Args:
        parameters: From `view_parameters`.
        policy: The same policy.
        image_size: Height and width of the images, in pixels.

    Returns:
        None for policies that do not mix.
    """
    at = policy.mixing_position
    if at is None:
        return None
    drawn = _within(parameters, f"{at}.")
    _, own_share = MIXING[policy.settings[at]["name"]]
    return MixedWith(drawn["partner_id"], own_share(drawn, image_size))
