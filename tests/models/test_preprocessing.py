"""Normalisation: measured like numpy does, applied by the classifier itself, in one way."""

import numpy as np
import pytest
import torch

from kd_pipeline.errors import ParameterError
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import (
    Preprocessing,
    measure_preprocessing,
)

PIXELS = torch.randint(
    0, 256, (9, 2, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


def test_statistics_are_numpys() -> None:
    measured = measure_preprocessing([PIXELS])
    as_floats = PIXELS.double().numpy() / 255
    np.testing.assert_allclose(measured.mean, as_floats.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(measured.std, as_floats.std(axis=(0, 2, 3)))
    assert measured.shape == (2, 5, 4)


def test_batches_are_measured_as_all_images_at_once() -> None:
    assert measure_preprocessing(PIXELS.split(4)) == measure_preprocessing([PIXELS])


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    assert measure_preprocessing([torch.zeros(2, 1, 3, 3, dtype=torch.uint8)]).std == (1.0,)


def test_bytes_and_floats_of_the_same_image_are_normalised_alike() -> None:
    preprocessing = measure_preprocessing([PIXELS])
    classifier = Classifier(torch.nn.Identity(), preprocessing)
    from_bytes, from_floats = classifier(PIXELS), classifier(PIXELS.float() / 255)
    torch.testing.assert_close(from_bytes, from_floats)
    torch.testing.assert_close(from_bytes.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        from_bytes.square().mean(dim=(0, 2, 3)), torch.ones(2), atol=1e-4, rtol=0
    )


def test_two_models_each_normalise_the_same_pixels_in_their_own_way() -> None:
    first = Classifier(torch.nn.Identity(), Preprocessing((1, 1, 1), (0.5,), (0.5,)))
    second = Classifier(torch.nn.Identity(), Preprocessing((1, 1, 1), (0.0,), (1.0,)))
    pixel = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert first(pixel).item() == pytest.approx(1.0)
    assert second(pixel).item() == pytest.approx(1.0)
    assert first(torch.zeros_like(pixel)).item() == pytest.approx(-1.0)
    assert second(torch.zeros_like(pixel)).item() == pytest.approx(0.0)


def test_rejects_statistics_that_do_not_fit() -> None:
    with pytest.raises(ParameterError, match="one value for each of the 3 channels"):
        Preprocessing((3, 8, 8), (0.5,), (0.5, 0.5, 0.5))
    with pytest.raises(ParameterError, match=r"`preprocessing.std` must be positive"):
        Preprocessing((1, 8, 8), (0.5,), (0.0,))
