"""The views that a model is shown: drawn for many steps at once, rendered step by step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.hard import MixedLabels
from kd_pipeline.training.rows import Partners, TrainingRows
from kd_pipeline.views import (
    ViewPolicy,
    mixing_of,
    render_views,
    view_parameters,
)


@dataclass(frozen=True)
class Replay:
    """A policy's views of the training rows, in whatever order they are asked for."""

    rows: TrainingRows
    policy: ViewPolicy
    num_views: int | None
    """Views that repeat, as cached ones do; None draws a fresh view in every pass."""
    partners: Partners | None = None
    """Needed by policies that mix images."""

    def __post_init__(self) -> None:
        """Refuse a policy that mixes images where there is nothing to mix in."""
        if self.policy.mixes and self.partners is None:
            rule = "not mix images where no partners are given"
            raise ParameterError("transforms", rule, self.policy.description["transforms"])

    def chunk(self, positions: Tensor, passes: Tensor) -> "ChunkOfViews":
        """Draw the views of some steps.

        Args:
            positions: Among the training rows, int64 [steps, batch].
            passes: How often each example was seen before, of the same shape.
        """
        labels = self.rows.labels[positions]
        if not self.policy.transforms:
            return ChunkOfViews(self, positions, {}, labels)
        views = passes if self.num_views is None else passes % self.num_views
        drawn = view_parameters(
            self.policy,
            self.rows.example_ids[positions.flatten()],
            views.flatten(),
            partners=None if self.partners is None else self.partners.example_ids,
        )
        by_step = {k: v.reshape(*positions.shape, *v.shape[1:]) for k, v in drawn.items()}
        return ChunkOfViews(self, positions, by_step, self._mixed(labels, drawn))

    def _mixed(self, labels: Tensor, drawn: Mapping[str, Tensor]) -> Tensor | MixedLabels:
        if self.partners is None:
            return labels
        size = self.rows.pixels_of(torch.zeros(1, dtype=torch.int64)).shape[-2:]
        mixed = mixing_of(drawn, self.policy, image_size=(size[0], size[1]))
        if mixed is None:
            return labels
        others = self.partners.labels[self.partners.positions(mixed.partner_ids)]
        return MixedLabels(labels, others.view_as(labels), mixed.own_share.view_as(labels))


@dataclass(frozen=True)
class ChunkOfViews:
    """The views of some steps, not yet rendered, and the labels that go with them."""

    replay: Replay
    positions: Tensor
    drawn: Mapping[str, Tensor]
    labels: Tensor | MixedLabels
    """[steps, batch], or three of that shape."""

    def pixels(self, step: int) -> Tensor:
        """Render one step: [batch, channels, height, width], uint8 or float32 in [0, 1]."""
        replay = self.replay
        pixels = replay.rows.pixels_of(self.positions[step])
        if not replay.policy.transforms:
            return pixels
        drawn = {name: values[step] for name, values in self.drawn.items()}
        return render_views(pixels, drawn, replay.policy, pixels_of=self._partner_pixels)

    def labels_of(self, step: int) -> Tensor | MixedLabels:
        """[batch], or three of that shape."""
        if isinstance(self.labels, Tensor):
            return self.labels[step]
        return MixedLabels(*(values[step] for values in self.labels))

    def _partner_pixels(self, example_ids: Tensor) -> Tensor:
        partners = self.replay.partners
        if partners is None:
            raise ParameterError("transforms", "mix in partners that are known", example_ids)
        return partners.pixels_of(partners.positions(example_ids))
