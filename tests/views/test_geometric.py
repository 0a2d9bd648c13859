"""Moving pixels: each transform is torchvision's, in law and in what it renders."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from kd_pipeline.errors import ParameterError
from kd_pipeline.randomness import seeded
from kd_pipeline.views.geometric import ResizedCrop, crop_boxes

Make = Callable[..., Any]


def torchvisions(transform: v2.Transform, num: int, *size: int) -> Iterator[dict[str, Any]]:
    """Torchvision's own draws for images of one size."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    with seeded(0):
        for _ in range(num):
            yield transform.make_params([image])


def test_shift_is_random_crop_with_padding(drawn: Make, same_law: Make) -> None:
    ours = drawn(4000, name="shift", max_pixels=2)
    theirs = torchvisions(v2.RandomCrop(9, padding=2), 4000, 9, 9)
    same_law(
        zip(ours["down"].tolist(), ours["right"].tolist(), strict=True),
        ((2 - crop["top"], 2 - crop["left"]) for crop in theirs),
    )


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_shift_moves_pixels_and_pads(
    padding: str, mode: Any, pixels: Make, drawn: Make, rendered: Make
) -> None:
    images, settings = pixels(), {"name": "shift", "max_pixels": 3, "padding": padding}
    parameters = drawn(16, **settings)
    found = rendered(images, parameters, **settings).numpy()
    for i in range(16):
        down, right = int(parameters["down"][i]), int(parameters["right"][i])
        padded = np.pad(images[i].numpy(), ((0, 0), (3, 3), (3, 3)), mode=mode)
        expected = padded[:, 3 - down : 11 - down, 3 - right : 11 - right]
        np.testing.assert_array_equal(found[i], expected)


def test_a_reflection_beyond_the_image_is_refused(
    pixels: Make, drawn: Make, rendered: Make
) -> None:
    settings = {"name": "shift", "max_pixels": 8, "padding": "reflect"}
    rule = r"be below the image's side \(8\) where it reflects, got 8"
    with pytest.raises(ParameterError, match=f"^`transforms.shift.max_pixels` must {rule}$"):
        rendered(pixels(), drawn(16, **settings), **settings)


def test_flip_mirrors_the_given_fraction_of_the_images(
    pixels: Make, drawn: Make, rendered: Make
) -> None:
    settings = {"name": "horizontal_flip", "probability": 0.3}
    images = pixels(2000, 4, 4, 1)
    found = rendered(images, drawn(2000, **settings), **settings)
    mirrored = (found == images.flip(-1)).flatten(1).all(dim=1)
    kept = (found == images).flatten(1).all(dim=1)
    assert (mirrored | kept).all()
    assert mirrored.double().mean() == pytest.approx(0.3, abs=0.05)


def test_affine_is_random_affine_in_law(drawn: Make) -> None:
    """But for the shifts, which torchvision rounds to whole pixels."""
    ours = drawn(
        3000,
        name="affine",
        max_degrees=30.0,
        max_shift_pixels=2.0,
        min_scale=0.7,
        max_scale=1.2,
        max_shear_degrees=10.0,
    )
    transform = v2.RandomAffine(30, translate=(0.1, 0.1), scale=(0.7, 1.2), shear=10)
    theirs = list(torchvisions(transform, 3000, 20, 20))
    for name, other in (("degrees", "angle"), ("scale", "scale")):
        assert ks_2samp(ours[name], [draw[other] for draw in theirs]).pvalue > 1e-3
    assert ks_2samp(ours["shear"], [draw["shear"][0] for draw in theirs]).pvalue > 1e-3
    for name, axis in (("right", 0), ("down", 1)):
        rounded = [draw["translate"][axis] for draw in theirs]
        assert ks_2samp(ours[name].round(), rounded).pvalue > 1e-3


def test_without_a_smallest_scale_shrinking_is_as_likely_as_growing(drawn: Make) -> None:
    found = drawn(3000, name="affine", max_scale=2.0)["scale"].log2()
    assert kstest(found.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_both_ranges_of_scales_come_from_one_draw(drawn: Make) -> None:
    """Caches hold logits of views with either: another draw would make them wrong."""
    even = drawn(50, name="affine", min_scale=0.5, max_scale=2.0)["scale"]
    by_log = drawn(50, name="affine", max_scale=2.0)["scale"].log2()
    torch.testing.assert_close((even - 0.5) / 1.5, (by_log + 1) / 2)


@pytest.mark.parametrize("size", [(9, 9), (8, 12)])
@pytest.mark.parametrize("shear", [0.0, 20.0])
def test_affine_equals_torchvisions_own(
    size: tuple[int, int], shear: float, drawn: Make, rendered: Make
) -> None:
    settings = {
        "name": "affine",
        "max_degrees": 30.0,
        "max_shift_pixels": 1.5,
        "max_scale": 1.3,
        "max_shear_degrees": shear,
    }
    images = torch.rand(6, 1, *size, generator=torch.Generator().manual_seed(0))
    parameters = drawn(6, **settings)
    found = rendered(images, parameters, **settings)
    for i in range(6):
        expected = reference.affine(
            images[i],
            angle=float(parameters["degrees"][i]),
            translate=[float(parameters[axis][i]) for axis in ("right", "down")],
            scale=float(parameters["scale"][i]),
            shear=[float(parameters["shear"][i]) if shear else 0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=0)


def test_an_affine_that_does_nothing_leaves_the_image(
    pixels: Make, drawn: Make, rendered: Make
) -> None:
    found = rendered(pixels(), drawn(16, name="affine"), name="affine")
    torch.testing.assert_close(found, pixels() / 255, atol=1e-5, rtol=0)


CROPS: list[tuple[tuple[int, int], dict[str, float]]] = [
    ((4, 4), {}),
    ((4, 7), {"min_scale": 0.3, "max_scale": 1.0, "min_ratio": 0.5, "max_ratio": 2.0}),
    # Little fits, or nothing: torchvision's fallback, for images too wide, too high, and neither.
    ((4, 9), {"min_scale": 0.4, "max_scale": 1.0, "min_ratio": 0.75, "max_ratio": 1.3}),
    ((9, 4), {"min_scale": 0.5, "max_scale": 1.0, "min_ratio": 0.75, "max_ratio": 1.3}),
    ((4, 9), {"min_scale": 0.9, "max_scale": 1.0, "min_ratio": 0.75, "max_ratio": 1.3}),
    ((7, 8), {"min_scale": 0.97, "max_scale": 1.0, "min_ratio": 0.5, "max_ratio": 2.0}),
    # Some candidates have a side of no pixel.
    ((2, 3), {"min_scale": 0.02, "max_scale": 0.3, "min_ratio": 0.2, "max_ratio": 5.0}),
]


@pytest.mark.parametrize(("size", "ranges"), CROPS)
def test_resized_crop_is_torchvisions_in_law(
    size: tuple[int, int], ranges: dict[str, float], drawn: Make, same_law: Make
) -> None:
    """Top, left, height and width jointly, with torchvision's ten tries and its fallback."""
    settings = ResizedCrop(name="resized_crop", **ranges)
    ours = crop_boxes(drawn(4000, name="resized_crop", **ranges), settings, image_size=size)
    transform = v2.RandomResizedCrop(
        size,
        scale=(settings.min_scale, settings.max_scale),
        ratio=(settings.min_ratio, settings.max_ratio),
    )
    theirs = torchvisions(transform, 4000, *size)
    same_law(
        map(tuple, ours.T.tolist()),
        ((crop["top"], crop["left"], crop["height"], crop["width"]) for crop in theirs),
    )


@pytest.mark.parametrize("size", [(16, 16), (10, 21)])
def test_a_resized_crop_equals_torchvisions_own(
    size: tuple[int, int], pixels: Make, drawn: Make, rendered: Make
) -> None:
    """A crop is only ever enlarged, so that torchvision's antialiasing changes nothing."""
    settings = ResizedCrop(name="resized_crop")
    images, parameters = pixels(24, *size), drawn(24, name="resized_crop")
    found = rendered(images, parameters, name="resized_crop")
    boxes = crop_boxes(parameters, settings, image_size=size).T.tolist()
    for image, box, ours in zip(images / 255, boxes, found, strict=True):
        expected: Tensor = reference.resized_crop(image, *box, size=list(size), antialias=True)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_nothing_from_beyond_the_image_enters_a_crop(drawn: Make, rendered: Make) -> None:
    """Rounded positions of a long side lie beyond its ends, where there are no pixels."""
    settings = {"name": "resized_crop", "min_scale": 0.5, "min_ratio": 500.0, "max_ratio": 2000.0}
    white = torch.ones(16, 1, 2, 1000)
    found = rendered(white, drawn(16, **settings), **settings)
    torch.testing.assert_close(found, white, atol=1e-6, rtol=0)
