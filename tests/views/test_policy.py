"""Views: the same pixels in any batch, order or process, whatever the policy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.views import (
    TRANSFORMS,
    MixedWith,
    ViewPolicy,
    mixing_of,
    render_views,
    view_parameters,
)

Pixels = Callable[..., Tensor]

PLAIN: tuple[dict[str, Any], ...] = (
    {"name": "shift", "max_pixels": 2},
    {"name": "shift", "max_pixels": 3, "padding": "reflect"},
    {"name": "resized_crop", "min_scale": 0.2, "min_ratio": 0.5, "max_ratio": 2.0},
    {"name": "horizontal_flip", "probability": 0.5},
    {"name": "affine", "max_degrees": 20.0, "max_shift_pixels": 1.0, "max_scale": 1.2},
    {"name": "affine", "min_scale": 0.8, "max_scale": 1.1, "max_shear_degrees": 15.0},
    {"name": "colour_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.3},
    {"name": "colour_jitter", "contrast": 0.7},
    {"name": "grey", "probability": 0.4},
    {"name": "blur", "kernel_size": 5, "probability": 0.6},
    {"name": "cutout", "probability": 0.7},
    {"name": "rand_augment", "num_ops": 3, "magnitude": 14},
)
MIXING: tuple[dict[str, Any], ...] = (
    {"name": "mixup", "alpha": 0.4, "probability": 0.8},
    {"name": "cutmix", "probability": 0.8},
)
EACH = (*((transform,) for transform in PLAIN), *((transform,) for transform in MIXING))
NAMES = [f"{i}-{transforms[0]['name']}" for i, transforms in enumerate(EACH)]


@st.composite
def policies(draw: st.DrawFn) -> ViewPolicy:
    transforms = draw(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=4))
    mixing = draw(st.sampled_from([None, *MIXING]))
    if mixing is not None:
        transforms.insert(draw(st.integers(0, len(transforms))), mixing)
    return ViewPolicy(draw(st.integers(0, 2**31 - 1)), tuple(transforms))


def render(policy: ViewPolicy, images: Tensor, ids: Tensor, view: int | Tensor) -> Tensor:
    """Images of the examples 100, 101, ...; all are one another's partners."""
    partners = torch.arange(100, 100 + len(images))
    drawn = view_parameters(policy, ids, view, partners=partners)
    return render_views(images[ids - 100], drawn, policy, pixels_of=lambda ids: images[ids - 100])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("transforms", EACH, ids=NAMES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), view=st.integers(0, 32766), rows=st.data())
def test_a_view_is_bitwise_the_same_in_any_batch_order_and_number_of_threads(
    transforms: tuple[dict[str, Any], ...],
    seed: int,
    view: int,
    rows: st.DataObject,
    pixels: Pixels,
) -> None:
    # 40 images of 19 by 23 px: sums and loops do not end on a vector's length, and the work is
    # enough to be shared among threads.
    policy, images, ids = ViewPolicy(seed, transforms), pixels(40, 19, 23), torch.arange(100, 140)
    whole = render(policy, images, ids, view)
    some = torch.tensor(rows.draw(st.lists(st.integers(0, 39), min_size=1, max_size=9)))
    assert torch.equal(render(policy, images, ids[some], view), whole[some])
    with threads(2):
        assert torch.equal(render(policy, images, ids.flip(0), view), whole.flip(0))
    mixed = torch.where(torch.arange(40) % 2 == 0, view, view + 1)
    assert torch.equal(render(policy, images, ids, mixed)[::2], whole[::2])


@settings(max_examples=40, deadline=None)
@given(
    policy=policies(),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([(8, 8), (6, 13), (12, 5)]),
)
def test_any_policy_renders_images_of_any_shape(
    policy: ViewPolicy, channels: int, size: tuple[int, int], pixels: Pixels
) -> None:
    images, ids = pixels(6, *size, channels), torch.arange(100, 106)
    before = images.clone()
    found = render(policy, images, ids, 5)
    assert found.shape == images.shape
    assert found.dtype in {torch.uint8, torch.float32}
    assert torch.isfinite(found.float()).all()
    if found.dtype == torch.float32:
        assert found.min() >= 0
        assert found.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(found, render(policy, images, ids, 5))
    assert torch.equal(found[2:3], render(policy, images, ids[2:3], 5))


@pytest.mark.parametrize("transforms", EACH, ids=NAMES)
def test_views_and_examples_differ_and_the_images_on_hand_are_left_alone(
    transforms: tuple[dict[str, Any], ...], pixels: Pixels
) -> None:
    images, ids = pixels(1).expand(50, -1, -1, -1), torch.arange(100, 150)
    policy = ViewPolicy(0, transforms)
    if policy.mixes:
        images = pixels(50)
    before = images.clone()
    first, second = render(policy, images, ids, 0), render(policy, images, ids, 1)
    assert not torch.equal(first, second)
    assert torch.equal(images, before)
    if not policy.mixes:
        assert len(torch.unique(first, dim=0)) > 1


def test_drawing_touches_no_global_random_state(pixels: Pixels) -> None:
    before = torch.random.get_rng_state()
    render(ViewPolicy(0, (*PLAIN, MIXING[0])), pixels(), torch.arange(100, 116), 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_views_examples_seeds_and_transforms_draw_apart() -> None:
    ids, shift = torch.arange(2000), {"name": "shift", "max_pixels": 2}
    twice = ViewPolicy(0, (shift, shift))
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


def test_draws_stay_what_they_were() -> None:
    """Caches on disk hold logits of these very views: another draw would make them wrong."""
    policy = ViewPolicy(7, ({"name": "shift", "max_pixels": 4}, {"name": "horizontal_flip"}))
    found = view_parameters(policy, torch.arange(6), 3)
    assert found["0.down"].tolist() == [4, 0, 1, 0, -4, -3]
    assert found["0.right"].tolist() == [3, -3, 1, 3, 2, 1]
    assert found["1.flipped"].tolist() == [True, False, True, True, False, False]


def test_all_that_is_drawn_has_a_row_per_example() -> None:
    """So that the draws of many steps can be cut into steps."""
    policy = ViewPolicy(0, (*PLAIN, MIXING[1]))
    drawn = view_parameters(policy, torch.arange(5), 0, partners=torch.arange(9))
    assert {len(values) for values in drawn.values()} == {5}


def test_the_clean_policy_changes_nothing(pixels: Pixels) -> None:
    assert view_parameters(ViewPolicy(), torch.arange(16), 0) == {}
    assert torch.equal(render(ViewPolicy(), pixels(), torch.arange(100, 116), 0), pixels())


def test_pixels_stay_uint8_until_a_transform_interpolates_or_blends(pixels: Pixels) -> None:
    whole = {"shift", "horizontal_flip", "grey", "cutout", "rand_augment", "cutmix"}
    for transforms in EACH:
        found = render(ViewPolicy(0, transforms), pixels(), torch.arange(100, 116), 0)
        is_whole = transforms[0]["name"] in whole
        assert found.dtype == (torch.uint8 if is_whole else torch.float32)


def test_descriptions_tell_policies_apart() -> None:
    policies = [ViewPolicy(), ViewPolicy(1), ViewPolicy(0, PLAIN), ViewPolicy(0, PLAIN[::-1])]
    found = [policy.description for policy in policies]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert ViewPolicy(0, PLAIN).description == found[2]


def test_rejects_what_it_does_not_know() -> None:
    with pytest.raises(ParameterError, match=r"`transforms.name` must be a known transform"):
        ViewPolicy(0, ({"name": "twirl"},))
    with pytest.raises(ParameterError, match=r"`transforms.grey` must have only settings"):
        ViewPolicy(0, ({"name": "grey", "probabilty": 0.5},))
    with pytest.raises(ParameterError, match=r"`transforms.shift` must have the settings max_pix"):
        ViewPolicy(0, ({"name": "shift"},))
    with pytest.raises(ParameterError, match="must hold at most one of mixup and cutmix"):
        ViewPolicy(0, MIXING)


def test_a_policy_that_mixes_asks_for_partners_and_their_pixels(pixels: Pixels) -> None:
    policy, ids = ViewPolicy(0, MIXING[:1]), torch.arange(16)
    with pytest.raises(ParameterError, match="must not mix images where there are no partners"):
        view_parameters(policy, ids, 0)
    drawn = view_parameters(policy, ids, 0, partners=ids)
    with pytest.raises(ParameterError, match="must not mix images whose pixels are not given"):
        render_views(pixels(), drawn, policy)


def test_only_policies_that_mix_say_whom_with() -> None:
    plain, mixing = ViewPolicy(0, PLAIN), ViewPolicy(0, (*PLAIN, MIXING[0]))
    assert (plain.mixes, mixing.mixes) == (False, True)
    drawn = view_parameters(mixing, torch.arange(4), 0, partners=torch.arange(4))
    assert mixing_of(drawn, plain, image_size=(8, 8)) is None
    assert isinstance(mixing_of(drawn, mixing, image_size=(8, 8)), MixedWith)


def test_every_transform_is_tested_here() -> None:
    assert {transforms[0]["name"] for transforms in EACH} == set(TRANSFORMS)
