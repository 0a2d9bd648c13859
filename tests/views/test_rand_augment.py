"""RandAugment: torchvision's operations, chosen alike, of the same magnitudes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torchvision.transforms import v2

from kd_pipeline.views.rand_augment import MAX_MAGNITUDE, OPERATIONS

Make = Callable[..., Any]

THEIRS = dict(zip(OPERATIONS, v2.RandAugment._AUGMENTATION_SPACE, strict=True))
MOVES = {"shear_x", "shear_y", "rotate"}


def torchvisions(image: Tensor, operation: str, magnitude: int, sign: float) -> Tensor:
    """One of torchvision's operations, on uint8 [channels, height, width]."""
    transform, name = v2.RandAugment(), THEIRS[operation]
    strengths, signed = transform._AUGMENTATION_SPACE[name]
    bins = strengths(MAX_MAGNITUDE + 1, *image.shape[-2:])
    strength = 0.0 if bins is None else float(bins[magnitude]) * (sign if signed else 1.0)
    changed: Tensor = transform._apply_image_or_video_transform(
        image, name, strength, interpolation=transform.interpolation, fill=transform._fill
    )
    return changed


def test_the_operations_are_torchvisions() -> None:
    alike = {"colour": "color", "autocontrast": "autocontrast"}
    for ours, theirs in THEIRS.items():
        assert alike.get(ours, ours).replace("_", "") == theirs.lower()


def test_every_operation_and_sign_is_equally_likely(drawn: Make) -> None:
    found = drawn(7000, name="rand_augment", num_ops=2)
    for step in range(2):
        assert chisquare(torch.bincount(found["operation"][:, step], minlength=14)).pvalue > 1e-3
    pairs = found["operation"][:, 0] * 14 + found["operation"][:, 1]
    assert chisquare(torch.bincount(pairs, minlength=196)).pvalue > 1e-3
    assert set(found["sign"].unique().tolist()) == {-1.0, 1.0}
    assert found["sign"].mean().abs() < 0.05


@pytest.mark.parametrize("magnitude", [0, 3, 9, 10, 17, 30])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_equals_torchvisions_own(
    operation: str, magnitude: int, pixels: Make, rendered: Make
) -> None:
    for channels, size in ((3, (13, 16)), (1, (10, 10))):
        images = pixels(4, *size, channels)
        sign = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
        chosen = torch.full((4, 1), OPERATIONS.index(operation))
        found = rendered(
            images,
            {"operation": chosen, "sign": sign},
            name="rand_augment",
            num_ops=1,
            magnitude=magnitude,
        )
        expected = torch.stack(
            [
                torchvisions(image, operation, magnitude, float(s))
                for image, s in zip(images, sign, strict=True)
            ]
        )
        assert found.dtype == torch.uint8
        if operation in MOVES:
            # A place halfway between two pixels goes to either, as rounding falls.
            assert (found == expected).double().mean() > 0.97
        else:
            assert (found.int() - expected.int()).abs().max() <= 1
            assert (found == expected).double().mean() > 0.98


@pytest.mark.parametrize("size", [(4, 400), (400, 4)])
def test_long_sides_are_translated_as_far_as_torchvisions(
    size: tuple[int, int], pixels: Make, rendered: Make
) -> None:
    images = pixels(2, *size, 1)
    for operation in ("translate_x", "translate_y"):
        chosen = torch.full((2, 1), OPERATIONS.index(operation))
        draws = {"operation": chosen, "sign": torch.tensor([[-1.0], [1.0]])}
        found = rendered(images, draws, name="rand_augment", num_ops=1, magnitude=30)
        for image, sign, ours in zip(images, (-1.0, 1.0), found, strict=True):
            assert torch.equal(ours, torchvisions(image, operation, 30, sign))


def test_operations_follow_one_another_in_the_drawn_order(
    pixels: Make, drawn: Make, rendered: Make
) -> None:
    settings = {"name": "rand_augment", "num_ops": 3, "magnitude": 12}
    images, parameters = pixels(60, 12, 12), drawn(60, **settings)
    found, equal = rendered(images, parameters, **settings), 0
    for i in range(60):
        expected = images[i]
        for operation, sign in zip(
            parameters["operation"][i].tolist(), parameters["sign"][i].tolist(), strict=True
        ):
            expected = torchvisions(expected, OPERATIONS[operation], 12, sign)
        equal += int((found[i].int() - expected.int()).abs().le(2).double().mean() > 0.9)
    assert equal >= 57


def test_float_images_come_back_as_float(pixels: Make, drawn: Make, rendered: Make) -> None:
    parameters = drawn(16, name="rand_augment")
    whole = rendered(pixels(), parameters, name="rand_augment")
    exact = rendered(pixels() / 255, parameters, name="rand_augment")
    assert exact.dtype == torch.float32
    assert torch.equal(exact, whole / 255)
