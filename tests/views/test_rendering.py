"""Views stay what they were: a cache of views that are now rendered otherwise must be refused."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_pipeline.views import ViewRenderer
from kd_pipeline.views.policy import RENDERING
from kd_pipeline.views.settings import ViewsParams
from kd_pipeline.views.stream import Stream
from kd_pipeline.views.transforms import TRANSFORMS

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


# In hundredths, the last draw of each kind for eight examples, with these settings too.
DRAWN_WITH = {"affine": {"max_shear_degrees": 10.0}, "mixup": {"probability": 0.5}}
DRAWN: dict[str, dict[str, list[int]]] = {
    "shift": {
        "down": [-300, 200, 0, 300, -100, -300, -200, 300],
        "right": [-300, 0, 0, 200, 100, -300, 300, 100],
    },
    "resized_crop": {
        "area": [43, 68, 46, 70, 46, 89, 61, 57],
        "ratio": [106, 85, 108, 126, 92, 127, 121, 96],
        "down": [8, 79, 50, 91, 32, 4, 22, 89],
        "right": [12, 49, 44, 79, 66, 5, 90, 70],
    },
    "horizontal_flip": {"flipped": [0, 0, 100, 0, 0, 100, 0, 0]},
    "affine": {
        "degrees": [1298, -7, -811, 314, 131, 1648, 1938, -1386],
        "down": [-166, 115, 0, 162, -70, -183, -111, 156],
        "right": [-152, -2, -25, 118, 64, -179, 161, 81],
        "shear": [42, 955, -721, -402, -52, -735, -734, 525],
        "scale": [91, 101, 109, 114, 93, 86, 119, 112],
    },
    "colour_jitter": {
        "brightness": [77, 115, 76, 134, 127, 99, 124, 63],
        "contrast": [82, 104, 109, 83, 132, 115, 101, 107],
        "saturation": [79, 107, 115, 86, 135, 82, 91, 95],
        "hue": [1, 3, 0, 4, 0, -3, 1, 0],
        "order": [200, 300, 300, 200, 300, 200, 100, 100],
    },
    "grey": {"grey": [0, 0, 0, 0, 0, 100, 100, 0]},
    "blur": {
        "blurred": [100, 0, 0, 100, 100, 100, 0, 100],
        "sigma": [81, 19, 89, 42, 71, 14, 175, 94],
    },
    "cutout": {
        "cut": [0, 100, 100, 100, 100, 100, 100, 0],
        "area": [14, 22, 15, 23, 15, 29, 20, 19],
        "ratio": [125, 52, 136, 259, 72, 273, 218, 83],
        "down": [8, 79, 50, 91, 32, 4, 22, 89],
        "right": [12, 49, 44, 79, 66, 5, 90, 70],
    },
    "rand_augment": {
        "operation": [100, 0, 200, 900, 100, 400, 400, 300],
        "sign": [100, -100, -100, 100, -100, -100, 100, 100],
    },
    "mixup": {
        "weight": [100, 95, 100, 2, 100, 91, 100, 100],
    },
    "cutmix": {
        "weight": [91, 95, 87, 2, 38, 91, 24, 46],
        "down": [8, 79, 50, 91, 32, 4, 22, 89],
        "right": [12, 49, 44, 79, 66, 5, 90, 70],
    },
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_are_what_they_were_when_caches_were_made(name: str) -> None:
    """The rounding of pixels hides small ones: how wide a blur is, or which way a hue turns."""
    block = {"name": name, **PINNED[name][0], **DRAWN_WITH.get(name, {})}
    (settings,) = ViewsParams.model_validate({"transforms": [block]}).transforms
    drawn = TRANSFORMS[name].draw(Stream(torch.arange(8), seed=7, position=0), settings)
    last = {kind: values.reshape(8, -1)[:, -1].double() for kind, values in drawn.items()}
    found = {kind: (values * 100).round().int().tolist() for kind, values in last.items()}
    assert found == DRAWN[name]


def test_every_transform_is_pinned() -> None:
    assert set(PINNED) == set(DRAWN) == set(TRANSFORMS)


def test_the_rendering_is_part_of_what_a_cache_was_made_from() -> None:
    """Clean images are not rendered: their caches outlive any change."""
    flipped = ViewsParams.model_validate({"transforms": [{"name": "horizontal_flip"}]})
    assert flipped.policy.description["rendering"] == RENDERING
    assert "rendering" not in ViewsParams().policy.description
