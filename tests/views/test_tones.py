"""Tones: torchvision's functional operations, with a factor per image."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from kd_pipeline.errors import DataError
from kd_pipeline.views import tones

Make = Callable[..., Any]

BLENDS = {
    "brightness": (tones.brightness, reference.adjust_brightness),
    "contrast": (tones.contrast, reference.adjust_contrast),
    "saturation": (tones.saturation, reference.adjust_saturation),
    "sharpness": (tones.sharpness, reference.adjust_sharpness),
}
FACTORS = torch.tensor([0.0, 0.3, 1.0, 1.4, 2.0])


def special(images: Tensor) -> Tensor:
    """Some images as they are, one even, one of two levels, one dark."""
    images = images.clone()
    images[0] = 77
    images[1] = images[1] // 128 * 40
    images[2] //= 9
    return images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", BLENDS)
def test_blends_equal_torchvisions_own(name: str, channels: int, pixels: Make) -> None:
    ours, theirs = BLENDS[name]
    whole = special(pixels(5, 9, 12, channels))
    for images, tolerance in ((whole, 1), (whole / 255, 1e-5)):
        found = ours(images, FACTORS)
        expected = torch.stack(
            [theirs(image, float(f)) for image, f in zip(images, FACTORS, strict=True)]
        )
        assert found.dtype == images.dtype
        assert (found.double() - expected.double()).abs().max() <= tolerance
    # On uint8 one level apart is rounding, and rare.
    assert (
        ours(whole, FACTORS)
        == torch.stack([theirs(image, float(f)) for image, f in zip(whole, FACTORS, strict=True)])
    ).double().mean() > 0.98


@pytest.mark.parametrize("size", [(1, 5), (2, 2), (3, 3), (5, 2)])
def test_only_the_pixels_off_the_border_are_sharpened(size: tuple[int, int], pixels: Make) -> None:
    images = pixels(5, *size)
    for given in (images, images / 255):
        expected = torch.stack(
            [
                reference.adjust_sharpness(image, float(factor))
                for image, factor in zip(given, FACTORS, strict=True)
            ]
        )
        found = tones.sharpness(given, FACTORS)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.21, 0.0, 0.1, 0.5])
def test_hue_equals_torchvisions_own(turn: float, pixels: Make) -> None:
    images = special(pixels(8, 9, 12)) / 255
    images[3, 1] = images[3, 0]  # two channels share the maximum or the minimum
    images[4, 2] = images[4, 1]
    images[5] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    found = tones.hue(images, torch.full((8,), turn))
    expected = reference.adjust_hue(images, turn)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_colours_of_grey_images_stay(pixels: Make) -> None:
    images = pixels(3, channels=1) / 255
    assert torch.equal(tones.hue(images, torch.full((3,), 0.3)), images)
    assert torch.equal(tones.saturation(images, torch.full((3,), 0.3)), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_on_levels_equal_torchvisions_own_exactly(channels: int, pixels: Make) -> None:
    images = special(pixels(9, 21, 30, channels))
    assert torch.equal(tones.autocontrast(images), reference.autocontrast(images))
    assert torch.equal(tones.equalize(images), reference.equalize(images))
    bits = torch.arange(9)
    found = tones.posterize(images, bits)
    for i in range(9):
        assert torch.equal(found[i], reference.posterize(images[i], i))
    thresholds = torch.linspace(0, 255, 9)
    found = tones.solarize(images, thresholds)
    for i in range(9):
        assert torch.equal(found[i], reference.solarize(images[i], float(thresholds[i])))


def test_an_image_is_equalized_from_255_pixels_below_its_brightest_level_on(pixels: Make) -> None:
    images = pixels(2, 16, 16, 1) // 2
    images[0, 0, 0, 0] = images[1, 0, 0, :2] = 255
    found = tones.equalize(images)
    assert torch.equal(found, reference.equalize(images))
    assert not torch.equal(found[0], images[0])
    assert torch.equal(found[1], images[1])


def test_images_of_two_channels_have_no_luminance(pixels: Make) -> None:
    with pytest.raises(DataError, match=r"^colours need images of 1 or 3 channels, got 2$"):
        tones.luminance(pixels(2, channels=2))


def test_contrast_of_a_large_image_is_the_same_alone_and_in_a_batch(pixels: Make) -> None:
    """A sum of floats over one large image is shared among threads, and then rounds otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        images, factors = pixels(8, 301, 307) / 255, torch.linspace(0.1, 2.0, 8)
        whole = tones.contrast(images, factors)
        for i in range(8):
            alone = tones.contrast(images[i : i + 1], factors[i : i + 1])
            assert torch.equal(alone, whole[i : i + 1])
    finally:
        torch.set_num_threads(before)


def test_contrast_does_not_depend_on_the_order_of_the_pixels(pixels: Make) -> None:
    images, factors = pixels(3, 101, 103) / 255, torch.tensor([0.1, 0.7, 1.9])
    order = torch.randperm(101 * 103, generator=torch.Generator().manual_seed(0))
    shuffled = images.flatten(2)[..., order].view_as(images)
    found = tones.contrast(shuffled, factors).flatten(2)
    assert torch.equal(found, tones.contrast(images, factors).flatten(2)[..., order])
