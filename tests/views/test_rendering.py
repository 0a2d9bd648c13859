"""Views stay what they were: a cache of views that are now rendered otherwise must be refused."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_pipeline.views import TRANSFORMS, ViewRenderer
from kd_pipeline.views.policy import RENDERING
from kd_pipeline.views.settings import ViewsParams

# Settings, and the mean brightness of the left half of six views when `RENDERING` was 1.
PINNED: dict[str, tuple[dict[str, Any], list[float]]] = {
    "shift": ({"max_pixels": 3}, [116.8, 76.1, 97.9, 97.4, 93.0, 88.2]),
    "horizontal_flip": ({}, [146.2, 106.2, 123.8, 112.8, 115.9, 151.6]),
    "resized_crop": ({}, [126.2, 138.7, 124.3, 114.6, 92.8, 105.1]),
    "affine": (
        {"max_degrees": 20.0, "max_shift_pixels": 2.0, "max_scale": 1.2},
        [118.2, 77.4, 108.8, 88.3, 116.2, 114.0],
    ),
    "colour_jitter": (
        {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        [90.2, 99.2, 127.8, 88.9, 95.1, 128.8],
    ),
    "grey": ({"probability": 0.5}, [116.8, 126.8, 123.8, 112.8, 115.9, 115.6]),
    "blur": ({}, [116.8, 126.6, 124.0, 112.7, 115.9, 125.2]),
    "cutout": ({}, [110.9, 100.5, 85.7, 74.7, 115.9, 123.1]),
    "rand_augment": ({}, [115.3, 80.9, 136.2, 128.1, 109.4, 120.5]),
    "mixup": ({}, [118.1, 124.3, 125.9, 124.7, 122.1, 120.6]),
    "cutmix": ({}, [122.9, 118.5, 116.2, 125.6, 125.9, 126.1]),
}


@dataclass(frozen=True)
class SixImages:
    """Six images of coarse noise, with ids 0, 4, ..., 20."""

    example_ids: Tensor = field(default_factory=lambda: torch.arange(0, 24, 4))
    image_size: tuple[int, int] = (16, 16)

    def __call__(self, positions: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randint(0, 256, (6, 3, 4, 4), generator=generator, dtype=torch.uint8)
        return coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)[positions]


def left_halves(name: str) -> list[float]:
    transforms = [{"name": name, **PINNED[name][0]}]
    policy = ViewsParams.model_validate({"seed": 7, "transforms": transforms}).policy
    views = ViewRenderer(policy, SixImages(), SixImages()).draw(torch.arange(6), 2).render()
    brightness = views.float() * (1 if views.dtype == torch.uint8 else 255)
    means: list[float] = brightness[..., :8].mean(dim=(1, 2, 3)).tolist()
    return means


@pytest.mark.parametrize("name", PINNED)
def test_a_view_is_rendered_as_it_was_when_caches_were_made(name: str) -> None:
    """Where this fails on purpose, raise `RENDERING` and pin the new values."""
    assert RENDERING == 1
    assert left_halves(name) == pytest.approx(PINNED[name][1], abs=0.6)


def test_every_transform_is_pinned() -> None:
    assert set(PINNED) == set(TRANSFORMS)


def test_the_rendering_is_part_of_what_a_cache_was_made_from() -> None:
    """Clean images are not rendered: their caches outlive any change."""
    flipped = ViewsParams.model_validate({"transforms": [{"name": "horizontal_flip"}]})
    assert flipped.policy.description["rendering"] == RENDERING
    assert "rendering" not in ViewsParams().policy.description
