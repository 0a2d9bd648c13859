"""What the tests of views share: images, and one transform rendered on known draws."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from torch import Tensor

from kd_pipeline.views import ViewPolicy, render_views, view_parameters


@pytest.fixture(scope="session")
def pixels() -> Callable[..., Tensor]:
    """Images as uint8, smooth enough for resampling to be compared and noisy enough to tell."""

    def make(num: int = 16, height: int = 8, width: int = 8, channels: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (num, channels, height, width)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    return make


@pytest.fixture(scope="session")
def drawn() -> Callable[..., dict[str, Tensor]]:
    """One transform's parameters for as many examples, without the position before the name."""

    def draw(num: int, view: int = 0, **settings: Any) -> dict[str, Tensor]:
        policy = ViewPolicy(0, (settings,))
        partners = torch.arange(num) if policy.mixes else None
        found = view_parameters(policy, torch.arange(num), view, partners=partners)
        return {name.removeprefix("0."): values for name, values in found.items()}

    return draw


@pytest.fixture(scope="session")
def rendered() -> Callable[..., Tensor]:
    """One transform rendered with parameters that the test chose or drew."""

    def render(images: Tensor, parameters: Mapping[str, Tensor], **settings: Any) -> Tensor:
        named = {f"0.{name}": values for name, values in parameters.items()}
        return render_views(images, named, ViewPolicy(0, (settings,)))

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
        if table.shape[1] > 1:  # one kind alone: both always give the same
            assert chi2_contingency(table).pvalue > 1e-3

    return check
