"""Views: the same pixels in any batch, order or process, whatever the policy."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_pipeline.errors import ParameterError
from kd_pipeline.views import ViewPolicy, render
from kd_pipeline.views.transforms import TRANSFORMS

Make = Callable[..., Any]
Transforms = tuple[dict[str, Any], ...]

PLAIN: Transforms = (
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
MIXING: Transforms = (
    {"name": "mixup", "alpha": 0.4, "probability": 0.8},
    {"name": "cutmix", "probability": 0.8},
)
EACH = (*((transform,) for transform in PLAIN), *((transform,) for transform in MIXING))
NAMES = [f"{i}-{transforms[0]['name']}" for i, transforms in enumerate(EACH)]


@st.composite
def policies(draw: st.DrawFn) -> Transforms:
    transforms = draw(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=4))
    mixing = draw(st.sampled_from([None, *MIXING]))
    if mixing is not None:
        transforms.insert(draw(st.integers(0, len(transforms))), mixing)
    return tuple(transforms)


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
    transforms: Transforms,
    seed: int,
    view: int,
    rows: st.DataObject,
    pixels: Make,
    renderer: Make,
) -> None:
    # 40 images of 19 by 23 px: sums and loops do not end on a vector's length, and the work is
    # enough to be shared among threads.
    views, all_rows = renderer(pixels(40, 19, 23), *transforms, seed=seed), torch.arange(40)
    whole = views.draw(all_rows, view).render()
    some = torch.tensor(rows.draw(st.lists(st.integers(0, 39), min_size=1, max_size=9)))
    assert torch.equal(views.draw(some, view).render(), whole[some])
    with threads(2):
        assert torch.equal(views.draw(all_rows.flip(0), view).render(), whole.flip(0))
    by_row = torch.where(all_rows % 2 == 0, view, view + 1)
    assert torch.equal(views.draw(all_rows, by_row).render()[::2], whole[::2])


@settings(max_examples=40, deadline=None)
@given(
    transforms=policies(),
    seed=st.integers(0, 2**31 - 1),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([(8, 8), (6, 13), (12, 5)]),
)
def test_any_policy_renders_images_of_any_shape(
    transforms: Transforms,
    seed: int,
    channels: int,
    size: tuple[int, int],
    pixels: Make,
    renderer: Make,
) -> None:
    images = pixels(6, *size, channels)
    views, before = renderer(images, *transforms, seed=seed), images.clone()
    found = views.draw(torch.arange(6), 5).render()
    assert found.shape == images.shape
    assert found.dtype in {torch.uint8, torch.float32}
    assert torch.isfinite(found.float()).all()
    if found.dtype == torch.float32:
        assert found.min() >= 0
        assert found.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(found, views.draw(torch.arange(6), 5).render())
    assert torch.equal(found[2:3], views.draw(torch.tensor([2]), 5).render())


@settings(max_examples=20, deadline=None)
@given(transforms=policies())
def test_steps_drawn_together_are_the_steps_drawn_one_by_one(
    transforms: Transforms, pixels: Make, renderer: Make
) -> None:
    views = renderer(pixels(12), *transforms)
    positions = torch.tensor([[0, 5, 11, 5], [3, 3, 2, 1], [9, 8, 7, 6]])
    numbers = torch.tensor([[0, 0, 1, 2], [0, 4, 1, 1], [7, 7, 7, 7]])
    together = views.draw(positions, numbers)
    for step in range(3):
        alone = views.draw(positions[step], numbers[step])
        assert torch.equal(together.render(step), alone.render())
        if together.mixed is not None:
            for name in ("partner_positions", "image_weight"):
                assert torch.equal(getattr(together.mixed, name)[step], getattr(alone.mixed, name))
    whole = torch.cat([together.render(step) for step in range(3)])
    assert torch.equal(together.render(), whole)


@pytest.mark.parametrize("transforms", EACH, ids=NAMES)
def test_views_and_examples_differ_and_the_given_images_are_not_changed(
    transforms: Transforms, pixels: Make, renderer: Make
) -> None:
    mixes = transforms[0] in MIXING
    images = pixels(50) if mixes else pixels(1).expand(50, -1, -1, -1)
    views, before = renderer(images, *transforms), images.clone()
    first, second = (views.draw(torch.arange(50), view).render() for view in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(images, before)
    if not mixes:
        assert len(torch.unique(first, dim=0)) > 1


def test_drawing_uses_no_global_random_state(pixels: Make, renderer: Make) -> None:
    before = torch.random.get_rng_state()
    renderer(pixels(), *PLAIN, MIXING[0]).draw(torch.arange(16), 3).render()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_views_examples_seeds_and_transforms_draw_apart(renderer: Make) -> None:
    images, shift = torch.zeros(2001, 1, 1, 1), {"name": "shift", "max_pixels": 2}

    def draw(view: int = 0, first: int = 0, **settings: Any) -> tuple[Any, ...]:
        rows = torch.arange(first, first + 2000)
        return renderer(images, shift, shift, **settings).draw(rows, view).drawn

    base, other = draw()
    others = [
        other["down"],
        base["right"],
        draw(view=1)[0]["down"],
        draw(first=1)[0]["down"],
        draw(seed=1)[0]["down"],
    ]
    for values in others:
        assert (base["down"] == values).double().mean() == pytest.approx(0.2, abs=0.05)


def test_draws_stay_what_they_were(renderer: Make) -> None:
    """Caches on disk hold logits of these very views: another draw would make them wrong."""
    shift, flip = {"name": "shift", "max_pixels": 4}, {"name": "horizontal_flip"}
    views = renderer(torch.zeros(6, 1, 1, 1), shift, flip, seed=7)
    first_ids = replace(views, pixels=replace(views.pixels, example_ids=torch.arange(6)))
    moved, mirrored = first_ids.draw(torch.arange(6), 3).drawn
    assert moved["down"].tolist() == [4, 0, 1, 0, -4, -3]
    assert moved["right"].tolist() == [3, -3, 1, 3, 2, 1]
    assert mirrored["flipped"].tolist() == [True, False, True, True, False, False]


def test_clean_views_are_the_pixels_as_they_are(pixels: Make, renderer: Make) -> None:
    views = renderer(pixels(12))
    assert torch.equal(views.draw(torch.arange(12), 0).render(), pixels(12))
    steps = views.draw(torch.arange(12).view(3, 4), 0)
    assert steps.drawn == ()
    assert steps.mixed is None
    assert torch.equal(steps.render(1), pixels(12)[4:8])


def test_pixels_stay_uint8_until_a_transform_interpolates_or_blends(
    pixels: Make, renderer: Make
) -> None:
    whole = {"shift", "horizontal_flip", "grey", "cutout", "rand_augment", "cutmix"}
    for transforms in EACH:
        found = renderer(pixels(), *transforms).draw(torch.arange(16), 0).render()
        is_whole = transforms[0]["name"] in whole
        assert found.dtype == (torch.uint8 if is_whole else torch.float32)


@pytest.mark.parametrize(
    "transform",
    [
        {"name": "affine", "max_degrees": 20.0},
        {"name": "resized_crop"},
        {"name": "blur", "kernel_size": 21},
        {"name": "mixup"},
    ],
    ids=lambda transform: transform["name"],
)
def test_no_pixel_is_whiter_than_white(transform: dict[str, Any], renderer: Make) -> None:
    """Weights of pixels may add up to a little more than 1."""
    white = torch.full((500, 1, 31, 37), 255, dtype=torch.uint8)
    found = renderer(white, transform).draw(torch.arange(500), 0).render()
    assert found.max() == 1
    assert found.min() >= 0


def test_a_policy_that_mixes_needs_partners(pixels: Make, renderer: Make) -> None:
    mixing = renderer(pixels(), *MIXING[:1])
    for partners in (None, renderer(pixels(0)).pixels):
        rule = r"not mix images where there are no partners, got \['mixup'\]"
        with pytest.raises(ParameterError, match=f"^`transforms` must {rule}$"):
            replace(mixing, partners=partners)


def test_a_policy_that_does_not_mix_draws_no_partners(pixels: Make, renderer: Make) -> None:
    plain = renderer(pixels(), *PLAIN[:2])
    for views in (plain, replace(plain, partners=None)):
        drawn = views.draw(torch.arange(2), 0)
        assert drawn.partners is None
        assert drawn.mixed is None


def test_every_transform_is_tested_here() -> None:
    assert {transforms[0]["name"] for transforms in EACH} == set(TRANSFORMS)


@pytest.mark.parametrize(
    "transforms", [PLAIN[:1], PLAIN[4:5] + MIXING[:1]], ids=["plain", "mixing"]
)
def test_render_takes_any_examples_and_views(
    pixels: Make, renderer: Make, transforms: Transforms
) -> None:
    whole = renderer(pixels(), *transforms)
    images, views = whole.pixels, torch.tensor([3, 0, 3, 2])
    rendered = render(whole.policy, images, [110, 100, 110, 115], views)
    expected = whole.draw(torch.tensor([10, 0, 10, 15]), views).render()
    assert torch.equal(rendered, expected)
    assert torch.equal(render(whole.policy, images, [110, 110], 3), expected[[0, 2]])


@pytest.mark.parametrize(
    ("unknown", "named"), [([99], "[99]"), ([116], "[116]"), ([1, 2, 3, 4], "[1, 2, 3]")]
)
def test_render_names_some_of_the_examples_that_are_not_there(
    unknown: list[int], named: str, pixels: Make, renderer: Make
) -> None:
    images = renderer(pixels()).pixels
    message = f"^`example_ids` must be among the images, got {re.escape(named)}$"
    with pytest.raises(ParameterError, match=message):
        render(ViewPolicy(), images, [100, *unknown], 0)
