"""Sampling: whole moves are exact, and padding mirrors like numpy's."""

import numpy as np
import pytest
import torch

from kd_pipeline.views.sampling import (
    pad_reflected,
    sample_affine,
    unit_scale,
)


def test_a_whole_move_fetches_pixels_exactly() -> None:
    images = torch.arange(12.0).view(1, 1, 3, 4)
    inverse = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]])
    expected = [[0.0, 0, 0, 0], [1, 2, 3, 0], [5, 6, 7, 0]]
    assert sample_affine(images, inverse, mode="nearest")[0, 0].tolist() == expected
    found = sample_affine(images, inverse, mode="bilinear")[0, 0]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("margin", [0, 1, 4])
def test_a_side_is_padded_like_numpys_reflect(margin: int) -> None:
    images = torch.arange(30, dtype=torch.uint8).view(1, 5, 6)
    expected = np.pad(images.numpy(), [(0, 0), (margin, margin), (0, 0)], mode="reflect")
    assert pad_reflected(images, 1, margin).tolist() == expected.tolist()


def test_the_unit_scale_ends_at_one() -> None:
    assert unit_scale(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == [
        0.0,
        torch.tensor(0.2).item(),
        1.0,
    ]
    exact = torch.rand(3)
    assert unit_scale(exact) is exact
