"""Blur: torchvision's GaussianBlur, in law and in what it renders."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from kd_pipeline.errors import ParameterError
from kd_pipeline.randomness import seeded
from kd_pipeline.views.blur import gaussian_weights

Make = Callable[..., Any]


def test_blur_is_torchvisions_in_law(drawn: Make) -> None:
    ours = drawn(3000, name="blur", min_sigma=0.3, max_sigma=1.5, probability=0.7)
    transform = v2.GaussianBlur(3, sigma=(0.3, 1.5))
    with seeded(0):
        theirs = [transform.make_params([])["sigma"][0] for _ in range(3000)]
    assert ks_2samp(ours["sigma"], theirs).pvalue > 1e-3
    assert ours["blurred"].double().mean() == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("size", [(9, 9), (6, 13)])
def test_a_blurred_image_equals_torchvisions_own(
    kernel_size: int, size: tuple[int, int], pixels: Make, drawn: Make, rendered: Make
) -> None:
    settings = {"name": "blur", "kernel_size": kernel_size, "probability": 0.7}
    images, parameters = pixels(12, *size), drawn(12, **settings)
    found = rendered(images, parameters, **settings)
    assert 0 < parameters["blurred"].sum() < 12
    for i in range(12):
        sigma, expected = float(parameters["sigma"][i]), images[i] / 255
        if parameters["blurred"][i]:
            expected = reference.gaussian_blur(expected, [kernel_size] * 2, [sigma] * 2)
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)


def test_weights_of_a_kernel_add_up_to_one() -> None:
    weights = gaussian_weights(torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64), margin=3)
    total = weights[:, 0] + 2 * weights[:, 1:].sum(dim=1)
    torch.testing.assert_close(total, torch.ones(3))
    assert (weights.diff(dim=1) <= 0).all()


def test_a_kernel_beyond_the_image_is_refused(pixels: Make, drawn: Make, rendered: Make) -> None:
    settings = {"name": "blur", "kernel_size": 17}
    rule = "be at most 15 for images whose side is 8, got 17"
    with pytest.raises(ParameterError, match=f"^`transforms.blur.kernel_size` must {rule}$"):
        rendered(pixels(), drawn(16, **settings), **settings)
