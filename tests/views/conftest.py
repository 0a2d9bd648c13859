"""Shared by the tests of views: images, a renderer of them, and one transform at a time."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from torch import Tensor

from kd_pipeline.views import ViewRenderer
from kd_pipeline.views.settings import ViewsParams


@dataclass(frozen=True)
class ImagesInMemory:
    """Pixels in one tensor."""

    example_ids: Tensor
    images: Tensor

    @property
    def image_size(self) -> tuple[int, int]:
        return (self.images.shape[-2], self.images.shape[-1])

    def __call__(self, positions: Tensor) -> Tensor:
        return self.images[positions]


@pytest.fixture(scope="session")
def pixels() -> Callable[..., Tensor]:
    """Images as uint8, of noise, so that any two differ."""

    def make(num: int = 16, height: int = 8, width: int = 8, channels: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (num, channels, height, width)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    return make


@pytest.fixture(scope="session")
def renderer() -> Callable[..., ViewRenderer]:
    """A renderer of images by transforms as in YAML; all images are partners of one another.

    Example ids count from 100 on; `partner_ids` chooses partners among them.
    """

    def make(
        images: Tensor,
        *transforms: dict[str, Any],
        seed: int = 0,
        partner_ids: Tensor | None = None,
    ) -> ViewRenderer:
        policy = ViewsParams.model_validate({"seed": seed, "transforms": transforms}).policy
        pixels = ImagesInMemory(torch.arange(100, 100 + len(images)), images)
        if partner_ids is None:
            return ViewRenderer(policy, pixels, pixels)
        return ViewRenderer(policy, pixels, ImagesInMemory(partner_ids, images[partner_ids - 100]))

    return make


@pytest.fixture(scope="session")
def drawn(renderer: Callable[..., ViewRenderer]) -> Callable[..., Mapping[str, Tensor]]:
    """One transform's draws for as many examples."""

    def draw(num: int, **settings: Any) -> Mapping[str, Tensor]:
        images = torch.zeros(num, 1, 1, 1, dtype=torch.uint8)
        return renderer(images, settings).draw(torch.arange(num), 0).drawn[0]

    return draw


@pytest.fixture(scope="session")
def rendered(renderer: Callable[..., ViewRenderer]) -> Callable[..., Tensor]:
    """One transform rendered with draws that the test chose."""

    def render(images: Tensor, draws: Mapping[str, Tensor], **settings: Any) -> Tensor:
        views = renderer(images, settings).draw(torch.arange(len(images)), 0)
        return replace(views, drawn=(draws,)).render()

    return render


@pytest.fixture(scope="session")
def same_law() -> Callable[..., None]:
    """Two samples of anything countable come from one distribution (chi-square, joint)."""

    def check(ours: Iterable[Hashable], theirs: Iterable[Hashable]) -> None:
        counts = [Counter(ours), Counter(theirs)]
        kinds = sorted({*counts[0], *counts[1]}, key=str)
        table = np.array([[count[kind] for kind in kinds] for count in counts])
        # Kinds too rare for the approximation count as one.
        rare = table.sum(axis=0) < 12
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
        table = table[:, table.sum(axis=0) > 0]
        if table.shape[1] > 1:  # one kind alone: both are always the same
            assert chi2_contingency(table).pvalue > 1e-3

    return check
