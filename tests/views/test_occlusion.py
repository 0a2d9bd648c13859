"""Cutout: torchvision's RandomErasing with value 0, in law and in what it renders."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from kd_pipeline.randomness import seeded
from kd_pipeline.views.occlusion import cutout_edges

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("size", "ranges"),
    [
        ((5, 5), {}),
        ((4, 7), {"min_area": 0.3, "max_area": 0.8, "min_ratio": 0.5, "max_ratio": 2.0}),
        # Hardly ever does anything fit; and never.
        ((4, 9), {"min_area": 0.5, "max_area": 1.0, "min_ratio": 0.3, "max_ratio": 2.0}),
        ((4, 9), {"min_area": 0.7, "max_area": 1.0, "min_ratio": 0.5, "max_ratio": 2.0}),
    ],
)
def test_cutout_is_random_erasing_in_law(
    size: tuple[int, int], ranges: dict[str, float], drawn: Make, same_law: Make
) -> None:
    """Top, left, height and width jointly, (0, 0, 0, 0) where nothing is cut out."""
    settings = {"min_area": 0.02, "max_area": 0.33, "min_ratio": 0.3, "max_ratio": 3.3, **ranges}
    parameters = drawn(4000, name="cutout", probability=1.0, **ranges)
    top, left, bottom, right = cutout_edges(parameters, image_size=size)
    boxes = torch.stack([top, left, bottom - top, right - left], dim=-1)
    boxes[(bottom == top) | (right == left)] = 0
    transform = v2.RandomErasing(
        1.0,
        scale=(settings["min_area"], settings["max_area"]),
        ratio=(settings["min_ratio"], settings["max_ratio"]),
    )
    image = torch.zeros(1, *size)

    def box() -> tuple[int, ...]:
        found = transform.make_params([image])
        nothing = found["v"] is None or found["h"] * found["w"] == 0
        return (0, 0, 0, 0) if nothing else tuple(found[name] for name in "ijhw")

    with seeded(0):
        theirs = [box() for _ in range(4000)]
    same_law(map(tuple, boxes.tolist()), theirs)


def test_cutout_blackens_a_rectangle_in_the_given_fraction_of_the_images(
    pixels: Make, drawn: Make, rendered: Make
) -> None:
    settings = {"name": "cutout", "probability": 0.4}
    images, parameters = pixels(500, 9, 12).clamp(min=1), drawn(500, **settings)
    found = rendered(images, parameters, **settings)
    edges = torch.stack(cutout_edges(parameters, image_size=(9, 12)), dim=-1).tolist()
    for image, ours, (top, left, bottom, right) in zip(images, found, edges, strict=True):
        size = (bottom - top, right - left)
        expected = reference.erase(image, top, left, *size, torch.zeros(3, 1, 1, dtype=torch.uint8))
        assert torch.equal(ours, expected)
    cut = (found == 0).flatten(1).any(dim=1)
    assert cut.double().mean() == pytest.approx(0.4, abs=0.08)
    area = (found == 0)[cut].double().mean(dim=(1, 2, 3))
    assert area.mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.03)


def test_ratios_of_one_give_squares(drawn: Make) -> None:
    """The shape of DeVries and Taylor's cutout."""
    settings = {"min_area": 0.25, "max_area": 0.25, "min_ratio": 1.0, "max_ratio": 1.0}
    parameters = drawn(50, name="cutout", probability=1.0, **settings)
    top, left, bottom, right = cutout_edges(parameters, image_size=(16, 16))
    assert set((bottom - top).tolist()) == set((right - left).tolist()) == {8}
