"""mixup and cutmix: the papers' laws, torchvision's boxes, and partners that are fixed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, chisquare, ks_2samp, kstest
from torch import Tensor
from torchvision.transforms import v2

from kd_pipeline.errors import ParameterError
from kd_pipeline.randomness import seeded
from kd_pipeline.views import DrawnViews
from kd_pipeline.views.mixing import beta_quantile, cutmix_edges
from kd_pipeline.views.renderer import MixedWith

Make = Callable[..., Any]


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 2.5])
def test_weights_are_beta_distributed_as_torchvisions(alpha: float, drawn: Make) -> None:
    ours = drawn(4000, name="mixup", alpha=alpha)["weight"]
    assert kstest(ours.numpy(), beta(alpha, alpha).cdf).pvalue > 1e-3
    transform = v2.MixUp(num_classes=2, alpha=alpha)
    with seeded(0):
        theirs = [transform.make_params([])["lam"] for _ in range(4000)]
    # Torchvision draws in float32, where the ends of small alphas pile up.
    assert ks_2samp(ours.numpy().round(4), np.round(theirs, 4)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.05, 0.3, 2.0, 4.0])
def test_quantiles_are_exact_and_ordered(alpha: float) -> None:
    at = torch.linspace(0, 1, 4097, dtype=torch.float64)[:-1]
    found = beta_quantile(at, alpha=alpha)
    expected = torch.from_numpy(beta(alpha, alpha).ppf(at.numpy()))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-5)
    between = beta_quantile(torch.linspace(0, 0.9999, 20_011, dtype=torch.float64), alpha=alpha)
    assert (between.diff() >= 0).all()
    assert between.min() >= 0
    assert between.max() <= 1


def test_of_alpha_one_a_quantile_is_the_uniform_draw_itself() -> None:
    uniform = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(beta_quantile(uniform, alpha=1.0), uniform)


@pytest.mark.parametrize("size", [(5, 5), (4, 7)])
def test_cutmix_boxes_are_torchvisions_in_law(
    size: tuple[int, int], pixels: Make, renderer: Make, same_law: Make
) -> None:
    """Place, size and the exact fraction of the image's own pixels, jointly."""
    views = renderer(pixels(5000, *size, 1), {"name": "cutmix"}).draw(torch.arange(5000), 0)
    top, left, bottom, right = cutmix_edges(views.drawn[0], image_size=size)
    weight = [round(value, 5) for value in views.mixed.image_weight.tolist()]
    ours = zip(left.tolist(), top.tolist(), right.tolist(), bottom.tolist(), weight, strict=True)
    transform, image = v2.CutMix(num_classes=2), torch.zeros(2, 3, *size)
    with seeded(0):
        theirs = [transform.make_params([image]) for _ in range(5000)]
    same_law(ours, ((*draw["box"], round(draw["lam_adjusted"], 5)) for draw in theirs))


def mixed(views: DrawnViews) -> tuple[Tensor, MixedWith]:
    assert views.mixed is not None
    return views.render(), views.mixed


def test_mixup_blends_with_the_partner(pixels: Make, renderer: Make) -> None:
    images = pixels(32)
    views = renderer(images, {"name": "mixup", "alpha": 0.4}).draw(torch.arange(32), 0)
    found, mixed_with = mixed(views)
    weight = mixed_with.image_weight.view(-1, 1, 1, 1).double()
    partner = images[mixed_with.partner_positions] / 255
    torch.testing.assert_close(
        found.double(), weight * (images / 255) + (1 - weight) * partner, atol=1e-6, rtol=0
    )


def test_cutmix_pastes_the_partner_and_weights_are_exact(renderer: Make) -> None:
    # Every image is even, of a level of its own, so that its pixels can be counted.
    images = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 9, 14)
    views = renderer(images, {"name": "cutmix", "probability": 0.8}).draw(torch.arange(200), 0)
    found, mixed_with = mixed(views)
    own = found == images
    is_partner = found == images[mixed_with.partner_positions]
    assert torch.equal(own | is_partner, torch.ones_like(own))
    counted = own.sum(dim=(1, 2, 3)) / (9 * 14)
    assert torch.equal(mixed_with.image_weight, counted)
    assert len(set(mixed_with.image_weight.tolist())) > 20


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_an_image_that_is_not_mixed_stays_exactly(name: str, pixels: Make, renderer: Make) -> None:
    images = pixels(400, 4, 4)
    views = renderer(images, {"name": name, "probability": 0.25}).draw(torch.arange(400), 0)
    found, mixed_with = mixed(views)
    alone = mixed_with.image_weight == 1
    # Some boxes are too small to hold a pixel.
    assert alone.double().mean() == pytest.approx(0.75 if name == "mixup" else 0.8, abs=0.06)
    images = images if name == "cutmix" else images / 255
    assert torch.equal(found[alone], images[alone])


def test_every_other_example_is_equally_likely_to_be_the_partner(
    pixels: Make, renderer: Make
) -> None:
    partners, images = torch.tensor([102, 103, 105, 108, 113]), pixels(20, 1, 1)
    views = renderer(images, {"name": "mixup"}, partner_ids=partners)
    every = [0, 1, 2, 3, 4]
    for position, others in ((5, [0, 1, 3, 4]), (2, [1, 2, 3, 4]), (7, every), (19, every)):
        found = views.draw(torch.full((4000,), position), torch.arange(4000)).mixed
        counts = [(found.partner_positions == other).sum().item() for other in others]
        assert sum(counts) == 4000
        assert chisquare(counts).pvalue > 1e-3


def test_the_only_partner_of_an_image_may_be_itself(pixels: Make, renderer: Make) -> None:
    views = renderer(pixels(1), {"name": "cutmix"}).draw(torch.zeros(1, dtype=torch.int64), 0)
    found, mixed_with = mixed(views)
    assert mixed_with.partner_positions.tolist() == [0]
    assert torch.equal(found, pixels(1))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_partner_enters_as_it_is_shown_alone_in_that_view(
    name: str, pixels: Make, renderer: Make
) -> None:
    before = ({"name": "shift", "max_pixels": 2}, {"name": "horizontal_flip"})
    rows, images = torch.arange(40), pixels(40)
    found, mixed_with = mixed(renderer(images, *before, {"name": name}, seed=3).draw(rows, 6))
    alone = renderer(images, *before, seed=3).draw(rows, 6).render()
    partner = alone[mixed_with.partner_positions]
    if name == "mixup":
        weight = mixed_with.image_weight.view(-1, 1, 1, 1)
        expected = weight * (alone / 255) + (1 - weight) * (partner / 255)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    else:
        assert ((found == alone) | (found == partner)).all()
        assert not torch.equal(found, alone)


def test_transforms_after_a_mix_are_applied_to_the_mixed_image(
    pixels: Make, renderer: Make
) -> None:
    mix, flip = {"name": "cutmix"}, {"name": "horizontal_flip", "probability": 1.0}
    rows, images = torch.arange(20), pixels(20)
    plain = renderer(images, mix).draw(rows, 0).render()
    flipped = renderer(images, mix, flip).draw(rows, 0).render()
    assert torch.equal(flipped, plain.flip(-1))


@pytest.mark.parametrize("wrong", [[103, 101, 102], [101, 101, 102]])
def test_partners_in_another_order_are_refused(
    wrong: list[int], pixels: Make, renderer: Make
) -> None:
    rule = "be in ascending order, each once, got 'another order'"
    with pytest.raises(ParameterError, match=f"^`partners` must {rule}$"):
        renderer(pixels(4), {"name": "mixup"}, partner_ids=torch.tensor(wrong))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 4.0, 1000.0])
def test_tails_of_extreme_alphas_are_as_exact_as_the_middle(alpha: float) -> None:
    """Draws that come once in thousands are still of the law."""
    law = beta(alpha, alpha)
    even = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    found = beta_quantile(even, alpha=alpha).numpy()
    # Of small alphas, all quantiles of the upper tail are 1 as float64: that tail mirrors this one.
    assert np.abs(law.cdf(found) - even.numpy())[:100_000].max() < 1e-4
    np.testing.assert_allclose(found, 1 - found[::-1], rtol=1e-9, atol=1e-12)
    rare = torch.tensor([2.0**-53, 1e-12, 1e-7, 1e-4, 1 / 8192], dtype=torch.float64)
    for drawn, expected in ((rare, law.ppf(rare)), (1 - rare, law.ppf(1 - rare))):
        np.testing.assert_allclose(beta_quantile(drawn, alpha=alpha), expected, rtol=1e-3)
