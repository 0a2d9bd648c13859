"""The one place where views are drawn and rendered: labelling, training and figures call it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.views import mixing
from kd_pipeline.views.policy import ViewPolicy
from kd_pipeline.views.record import Drawn, Transform
from kd_pipeline.views.stream import Stream
from kd_pipeline.views.transforms import TRANSFORMS


class Pixels(Protocol):
    """The rows of a set of images, on the device where views are rendered."""

    @property
    def example_ids(self) -> Tensor:
        """int64 [num_rows], ascending."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    def __call__(self, positions: Tensor) -> Tensor:
        """Pixels of the rows at `positions`: int64 [batch] to uint8 [batch, c, h, w]."""
        ...


@dataclass(frozen=True)
class MixedWith:
    """The partner of each image, and the weight of the image itself."""

    partner_positions: Tensor
    """int64 [...], among the renderer's partners."""
    image_weight: Tensor
    """float32 [...] in [0, 1]: the exact fraction of pixels for cutmix; 1 is not mixed."""


@dataclass(frozen=True)
class ViewRenderer:
    """Renders a policy's views of some rows, the same bits in any batch and order."""

    policy: ViewPolicy
    pixels: Pixels
    partners: Pixels | None = None
    """The rows that a policy mixes in."""

    def __post_init__(self) -> None:
        """Check the partners of a policy that mixes images.

        Raises:
            ParameterError: If there are none, or they are not in ascending order, in which the
                same draws give the same partners.
        """
        if not self.policy.mixes:
            return
        if self.partners is None or len(self.partners.example_ids) == 0:
            names = [transform.name for transform in self.policy.transforms]
            raise ParameterError("transforms", "not mix images where there are no partners", names)
        if not (self.partners.example_ids.diff() > 0).all():
            raise ParameterError("partners", "be in ascending order, each once", "another order")

    def draw(self, positions: Tensor, views: Tensor | int) -> "DrawnViews":
        """Draw what each transform does to each row in its view.

        Args:
            positions: Of the rows, int64 [batch] or [steps, batch].
            views: The views' numbers, of the same shape, or one for all.
        """
        if not self.policy.transforms:
            return DrawnViews(self, positions)
        example_ids = self.pixels.example_ids[positions.flatten()]
        # A key of example and view per row, so that the views of one batch may differ.
        keys = example_ids * 32_771 + torch.as_tensor(views, device=example_ids.device).flatten()
        drawn = tuple(
            TRANSFORMS[settings.name].draw(Stream(keys, self.policy.seed, position), settings)
            for position, settings in enumerate(self.policy.transforms)
        )
        at = self.policy.mixing_position
        if at is None or self.partners is None:
            return DrawnViews(self, positions, drawn)
        stream = Stream(keys, self.policy.seed, at)
        mixed_in = mixing.draw_partners(stream, example_ids, self.partners.example_ids)
        # The partner's own view of the same number, up to the mixing transform.
        before = ViewPolicy(self.policy.seed, self.policy.transforms[:at])
        partners = ViewRenderer(before, self.partners).draw(mixed_in.view_as(positions), views)
        return DrawnViews(self, positions, drawn, partners)


def render(policy: ViewPolicy, images: Pixels, example_ids: ArrayLike, views: ArrayLike) -> Tensor:
    """Render views of some examples, the pixels that a teacher labelled and students train on.

    Args:
        policy: How views are drawn; of a cache it is
            `ViewPolicy.from_description(manifest.provenance.view_policy)`.
        images: The whole transfer set, `ImageSet.reader(soft_targets.example_ids, device=...)`:
            where a policy mixes images, the second one is drawn among these.
        example_ids: int64 [n], in any order, repeats allowed.
        views: The views' numbers, int64 [n], or one for all.

    Returns:
        [n, channels, height, width] on the images' device: uint8, or float32 in [0, 1] if a
        transform interpolates or blends.

    Raises:
        ParameterError: If an id is not among the images, or they are too small for a transform.
    """
    wanted = torch.as_tensor(np.asarray(example_ids), device=images.example_ids.device)
    positions = torch.searchsorted(images.example_ids, wanted)
    found = images.example_ids[positions.clamp(max=len(images.example_ids) - 1)] == wanted
    if not found.all():
        raise ParameterError("example_ids", "be among the images", wanted[~found][:3].tolist())
    numbers = torch.as_tensor(np.asarray(views)).expand_as(wanted)
    return ViewRenderer(policy, images, images).draw(positions, numbers).render()


@dataclass(frozen=True)
class DrawnViews:
    """Drawn views, rendered on demand."""

    renderer: ViewRenderer
    positions: Tensor
    """int64 [batch] or [steps, batch]."""
    drawn: tuple[Drawn, ...] = ()
    """Per transform, tensors with one row per position, flattened."""
    partners: "DrawnViews | None" = None
    """The views that a policy mixes in, one per position."""

    def render(self, step: int | None = None) -> Tensor:
        """Render all positions, or `positions[step]`.

        Returns:
            [batch, channels, height, width]: uint8, or float32 in [0, 1] if a transform
            interpolates or blends.

        Raises:
            ParameterError: If the images are too small for a transform.
        """
        size = self.positions.shape[-1]
        rows = slice(None) if step is None else slice(step * size, (step + 1) * size)
        pixels = self.renderer.pixels(self.positions.flatten()[rows])
        for settings, drawn in zip(self.renderer.policy.transforms, self.drawn, strict=True):
            transform = TRANSFORMS[settings.name]
            draws = {name: values[rows] for name, values in drawn.items()}
            if isinstance(transform, Transform):
                pixels = transform.render(pixels, draws, settings)
            elif self.partners is not None:
                pixels = transform.mix(pixels, self.partners.render(step), draws)
        return pixels

    @property
    def mixed(self) -> MixedWith | None:
        """The partners and weights of the images; None for a policy that mixes none."""
        policy, at = self.renderer.policy, self.renderer.policy.mixing_position
        if self.partners is None or at is None:
            return None
        transform = mixing.TRANSFORMS[policy.transforms[at].name]
        weight = transform.image_weight(self.drawn[at], self.renderer.pixels.image_size)
        return MixedWith(self.partners.positions, weight.view_as(self.positions))
