"""Views: the same pixels in any batch, order or process, and transforms that do what they say."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_pipeline.data.views import ViewPolicy, render_views, view_parameters
from kd_pipeline.errors import ParameterError

ALL = (
    {"name": "shift", "max_pixels": 2},
    {"name": "horizontal_flip", "probability": 0.5},
    {"name": "affine", "max_degrees": 20.0, "max_shift_pixels": 1.0, "max_scale": 1.2},
)


def pixels(num: int = 16, size: int = 8, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (num, channels, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def render(policy: ViewPolicy, images: Tensor, ids: Tensor, view: int | Tensor) -> Tensor:
    return render_views(images, view_parameters(policy, ids, view), policy)


def one(**settings: Any) -> ViewPolicy:
    return ViewPolicy(0, (settings,))


@given(seed=st.integers(0, 2**31 - 1), view=st.integers(0, 32766))
def test_a_view_is_bitwise_the_same_in_any_batch_and_order(seed: int, view: int) -> None:
    policy, images, ids = ViewPolicy(seed, ALL), pixels(), torch.arange(100, 116)
    whole = render(policy, images, ids, view)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(render(policy, images[order], ids[order], view), whole[order])
    assert torch.equal(render(policy, images[5:6], ids[5:6], view), whole[5:6])
    mixed = torch.where(torch.arange(16) % 2 == 0, view, view + 1)
    assert torch.equal(render(policy, images, ids, mixed)[::2], whole[::2])


def test_drawing_touches_no_global_random_state() -> None:
    before = torch.random.get_rng_state()
    view_parameters(ViewPolicy(0, ALL), torch.arange(4), 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_views_examples_seeds_and_transforms_draw_apart() -> None:
    ids = torch.arange(2000)
    twice = ViewPolicy(0, (ALL[0], ALL[0]))
    base = view_parameters(twice, ids, 0)
    others = [
        base["1.down"],
        base["0.right"],
        view_parameters(twice, ids, 1)["0.down"],
        view_parameters(twice, ids + 1, 0)["0.down"],
        view_parameters(ViewPolicy(1, twice.transforms), ids, 0)["0.down"],
    ]
    for other in others:
        assert (base["0.down"] == other).double().mean() == pytest.approx(0.2, abs=0.05)


def test_the_clean_policy_changes_nothing() -> None:
    assert view_parameters(ViewPolicy(), torch.arange(16), 0) == {}
    assert torch.equal(render(ViewPolicy(), pixels(), torch.arange(16), 0), pixels())


def test_every_whole_shift_is_equally_likely() -> None:
    drawn = view_parameters(one(name="shift", max_pixels=2), torch.arange(50_000), 0)
    counts = torch.bincount(drawn["0.down"] + 2)
    assert len(counts) == 5
    assert (counts - 10_000).abs().max() < 6 * 90


def test_shift_moves_pixels_and_pads_with_zeros() -> None:
    policy, images, ids = one(name="shift", max_pixels=3), pixels(), torch.arange(16)
    drawn = view_parameters(policy, ids, 0)
    found = render_views(images, drawn, policy).numpy()
    for i in range(16):
        down, right = int(drawn["0.down"][i]), int(drawn["0.right"][i])
        padded = np.pad(images[i].numpy(), ((0, 0), (3, 3), (3, 3)))
        expected = padded[:, 3 - down : 11 - down, 3 - right : 11 - right]
        np.testing.assert_array_equal(found[i], expected)


def test_shift_reflects_like_numpy() -> None:
    policy = one(name="shift", max_pixels=3, padding="reflect")
    images, ids = pixels(), torch.arange(16)
    drawn = view_parameters(policy, ids, 0)
    found = render_views(images, drawn, policy).numpy()
    for i in range(16):
        down, right = int(drawn["0.down"][i]), int(drawn["0.right"][i])
        padded = np.pad(images[i].numpy(), ((0, 0), (3, 3), (3, 3)), mode="reflect")
        np.testing.assert_array_equal(
            found[i], padded[:, 3 - down : 11 - down, 3 - right : 11 - right]
        )


def test_flip_mirrors_about_its_share_of_the_images() -> None:
    policy = one(name="horizontal_flip", probability=0.3)
    images, ids = pixels(2000, size=4, channels=1), torch.arange(2000)
    found = render(policy, images, ids, 0)
    mirrored = (found == images.flip(-1)).flatten(1).all(dim=1)
    kept = (found == images).flatten(1).all(dim=1)
    assert (mirrored | kept).all()
    assert mirrored.double().mean() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("size", [(9, 9), (8, 12)])
def test_affine_equals_torchvisions_own(size: tuple[int, int]) -> None:
    """The same rotation, shift and scale as torchvision.transforms.functional.affine."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as reference

    policy = one(name="affine", max_degrees=30.0, max_shift_pixels=1.5, max_scale=1.3)
    images = torch.rand(6, 1, *size, generator=torch.Generator().manual_seed(0))
    drawn = view_parameters(policy, torch.arange(6), 0)
    found = render_views(images, drawn, policy)
    for i in range(6):
        x, y = float(drawn["0.right"][i]), float(drawn["0.down"][i])
        expected = reference.affine(
            images[i],
            angle=float(drawn["0.degrees"][i]),
            translate=[x, y],
            scale=float(drawn["0.scale"][i]),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(found[i], expected, atol=2e-2, rtol=0)


def test_an_affine_that_does_nothing_leaves_the_image() -> None:
    found = render(one(name="affine"), pixels(), torch.arange(16), 0)
    torch.testing.assert_close(found, pixels().float() / 255, atol=1e-5, rtol=0)


def test_fingerprints_tell_policies_apart() -> None:
    policies = [ViewPolicy(), ViewPolicy(1), ViewPolicy(0, ALL), ViewPolicy(0, ALL[::-1])]
    assert len({policy.fingerprint for policy in policies}) == 4


def test_rejects_an_unknown_transform_and_a_reflection_beyond_the_image() -> None:
    with pytest.raises(ParameterError, match=r"`transforms.name` must be a known transform"):
        one(name="twirl")
    with pytest.raises(ParameterError, match="must be below the image's side"):
        render(one(name="shift", max_pixels=8, padding="reflect"), pixels(), torch.arange(16), 0)
