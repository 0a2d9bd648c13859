"""Colours: torchvision's ColorJitter and RandomGrayscale, in law and in what they render."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from kd_pipeline.randomness import seeded

Make = Callable[..., Any]

STRENGTHS = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.7, "hue": 0.2}
ADJUST: tuple[Callable[..., torch.Tensor], ...] = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)


def test_colour_jitter_is_torchvisions_in_law(drawn: Make) -> None:
    ours = drawn(3000, name="colour_jitter", **STRENGTHS)
    transform = v2.ColorJitter(**STRENGTHS)
    with seeded(0):
        theirs = [transform.make_params([]) for _ in range(3000)]
    for name in STRENGTHS:
        other = [draw[f"{name}_factor"] for draw in theirs]
        assert ks_2samp(ours[name].float(), other).pvalue > 1e-3


def test_every_order_is_equally_likely(drawn: Make) -> None:
    found = drawn(4800, name="colour_jitter", **STRENGTHS)["order"].tolist()
    counts = [found.count(list(order)) for order in permutations(range(4))]
    assert sum(counts) == 4800
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jitter_equals_torchvisions_own_in_the_drawn_order(
    channels: int, pixels: Make, drawn: Make, rendered: Make
) -> None:
    images = pixels(48, 9, 11, channels)
    parameters = drawn(48, name="colour_jitter", **STRENGTHS)
    found = rendered(images, parameters, name="colour_jitter", **STRENGTHS)
    for i in range(48):
        expected = images[i] / 255
        for which in parameters["order"][i].tolist():
            factor = parameters[list(STRENGTHS)[which]][i]
            expected = ADJUST[which](expected, float(factor))
        torch.testing.assert_close(found[i], expected, atol=5e-5, rtol=0)


def test_jitters_left_out_are_not_drawn(pixels: Make, drawn: Make, rendered: Make) -> None:
    settings = {"name": "colour_jitter", "saturation": 0.5}
    assert set(drawn(4, **settings)) == {"saturation"}
    two = drawn(4, name="colour_jitter", saturation=0.5, hue=0.1)
    assert two["order"].shape == (4, 2)
    found = rendered(pixels(4), drawn(4, **settings), **settings)
    for i, factor in enumerate(drawn(4, **settings)["saturation"].tolist()):
        expected = reference.adjust_saturation(pixels(4)[i] / 255, factor)
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)


def test_grey_takes_the_colours_of_the_given_fraction(
    pixels: Make, drawn: Make, rendered: Make
) -> None:
    settings = {"name": "grey", "probability": 0.3}
    images, parameters = pixels(2000, 4, 4), drawn(2000, **settings)
    found, is_grey = rendered(images, parameters, **settings), parameters["grey"]
    assert is_grey.double().mean() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(found[~is_grey], images[~is_grey])
    expected = reference.rgb_to_grayscale(images[is_grey], num_output_channels=3)
    assert (found[is_grey].int() - expected.int()).abs().max() <= 1
    assert torch.equal(rendered(images[:, :1], parameters, **settings), images[:, :1])
    exact = rendered(images / 255, parameters, **settings)[is_grey]
    expected = reference.rgb_to_grayscale(images[is_grey] / 255, num_output_channels=3)
    torch.testing.assert_close(exact, expected, atol=1e-6, rtol=0)
