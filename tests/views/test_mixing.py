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
from kd_pipeline.views import (
    MixedWith,
    ViewPolicy,
    mixing_of,
    render_views,
    view_parameters,
)
from kd_pipeline.views.mixing import beta_quantile, cutmix_edges

Make = Callable[..., Any]


def mixed(policy: ViewPolicy, images: Tensor, view: int = 0) -> tuple[Tensor, MixedWith]:
    ids = torch.arange(len(images))
    drawn = view_parameters(policy, ids, view, partners=ids)
    found = mixing_of(drawn, policy, image_size=(images.shape[-2], images.shape[-1]))
    assert found is not None
    return render_views(images, drawn, policy, pixels_of=lambda ids: images[ids]), found


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 2.5])
def test_shares_are_beta_distributed_as_torchvisions(alpha: float, drawn: Make) -> None:
    ours = drawn(4000, name="mixup", alpha=alpha)["share"]
    assert kstest(ours.numpy(), beta(alpha, alpha).cdf).pvalue > 1e-3
    transform = v2.MixUp(num_classes=2, alpha=alpha)
    with seeded(0):
        theirs = [transform.make_params([])["lam"] for _ in range(4000)]
    # Torchvision draws in float32, where the ends of small alphas pile up.
    assert ks_2samp(ours.numpy().round(4), np.round(theirs, 4)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.05, 0.3, 4.0])
def test_quantiles_are_exact_and_ordered(alpha: float) -> None:
    at = torch.linspace(0, 1, 4097, dtype=torch.float64)[:-1]
    found = beta_quantile(at, alpha=alpha)
    expected = torch.from_numpy(beta(alpha, alpha).ppf(at.numpy()))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-5)
    between = beta_quantile(torch.linspace(0, 0.9999, 20_011, dtype=torch.float64), alpha=alpha)
    assert (between.diff() >= 0).all()
    assert between.min() >= 0
    assert between.max() <= 1


@pytest.mark.parametrize("size", [(5, 5), (4, 7)])
def test_cutmix_boxes_are_torchvisions_in_law(
    size: tuple[int, int], drawn: Make, same_law: Make
) -> None:
    """Place, size and the exact share of the image's own pixels, jointly."""
    policy, ids = ViewPolicy(0, ({"name": "cutmix"},)), torch.arange(5000)
    parameters = view_parameters(policy, ids, 0, partners=ids)
    edges = cutmix_edges(drawn(5000, name="cutmix"), image_size=size)
    found = mixing_of(parameters, policy, image_size=size)
    assert found is not None
    top, left, bottom, right = edges
    share = [round(value, 5) for value in found.own_share.tolist()]
    ours = zip(left.tolist(), top.tolist(), right.tolist(), bottom.tolist(), share, strict=True)
    transform, image = v2.CutMix(num_classes=2), torch.zeros(2, 3, *size)
    with seeded(0):
        theirs = [transform.make_params([image]) for _ in range(5000)]
    same_law(ours, ((*draw["box"], round(draw["lam_adjusted"], 5)) for draw in theirs))


def test_mixup_blends_with_the_partner(pixels: Make) -> None:
    images = pixels(32)
    found, with_whom = mixed(ViewPolicy(0, ({"name": "mixup", "alpha": 0.4},)), images)
    share = with_whom.own_share.view(-1, 1, 1, 1).double()
    partner = images[with_whom.partner_ids] / 255
    torch.testing.assert_close(
        found.double(), share * (images / 255) + (1 - share) * partner, atol=1e-6, rtol=0
    )


def test_cutmix_pastes_the_partner_and_tells_the_exact_share() -> None:
    # Every image is even, of a level of its own, so that its pixels can be counted.
    images = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 9, 14)
    found, with_whom = mixed(ViewPolicy(0, ({"name": "cutmix", "probability": 0.8},)), images)
    own = found == images
    assert torch.equal(own | (found == images[with_whom.partner_ids]), torch.ones_like(own))
    counted = own.sum(dim=(1, 2, 3)) / (9 * 14)
    assert torch.equal(with_whom.own_share, counted)
    assert len(set(with_whom.own_share.tolist())) > 20


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_an_image_that_is_not_mixed_stays_exactly(name: str, pixels: Make) -> None:
    images = pixels(400, 4, 4)
    found, with_whom = mixed(ViewPolicy(0, ({"name": name, "probability": 0.25},)), images)
    alone = with_whom.own_share == 1
    # Some boxes are too small to hold a pixel.
    assert alone.double().mean() == pytest.approx(0.75 if name == "mixup" else 0.8, abs=0.06)
    images = images if name == "cutmix" else images / 255
    assert torch.equal(found[alone], images[alone])


def test_every_other_example_is_equally_likely_to_be_the_partner(drawn: Make) -> None:
    partners, policy = torch.tensor([2, 3, 5, 8, 13]), ViewPolicy(0, ({"name": "mixup"},))
    views = torch.arange(4000)
    for example_id, others in ((5, [2, 3, 8, 13]), (2, [3, 5, 8, 13]), (7, partners.tolist())):
        ids = torch.full((4000,), example_id)
        found = view_parameters(policy, ids, views, partners=partners)["0.partner_id"]
        counts = [(found == other).sum().item() for other in others]
        assert sum(counts) == 4000
        assert chisquare(counts).pvalue > 1e-3


def test_the_only_partner_is_oneself() -> None:
    only, policy = torch.tensor([4]), ViewPolicy(0, ({"name": "cutmix"},))
    assert view_parameters(policy, only, 0, partners=only)["0.partner_id"].tolist() == [4]


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_partner_looks_as_it_would_look_alone_in_that_view(name: str, pixels: Make) -> None:
    before = ({"name": "shift", "max_pixels": 2}, {"name": "horizontal_flip"})
    policy, images, ids = ViewPolicy(3, (*before, {"name": name})), pixels(40), torch.arange(40)
    found, with_whom = mixed(policy, images, view=6)
    alone = ViewPolicy(3, before)
    looks = render_views(images, view_parameters(alone, ids, 6), alone)
    partner = looks[with_whom.partner_ids]
    if name == "mixup":
        share = with_whom.own_share.view(-1, 1, 1, 1)
        expected = share * (looks / 255) + (1 - share) * (partner / 255)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    else:
        assert ((found == looks) | (found == partner)).all()
        assert not torch.equal(found, looks)


def test_what_follows_a_mix_is_done_to_the_mixed_image(pixels: Make) -> None:
    images, flip = pixels(20), {"name": "horizontal_flip", "probability": 1.0}
    mix = {"name": "cutmix"}
    plain, _ = mixed(ViewPolicy(0, (mix,)), images)
    flipped, _ = mixed(ViewPolicy(0, (mix, flip)), images)
    assert torch.equal(flipped, plain.flip(-1))


def test_partners_in_another_order_or_none_are_refused() -> None:
    policy, ids = ViewPolicy(0, ({"name": "mixup"},)), torch.arange(4)
    for wrong in (torch.tensor([3, 1, 2]), torch.tensor([1, 1, 2])):
        with pytest.raises(ParameterError, match="`partners` must be in ascending order"):
            view_parameters(policy, ids, 0, partners=wrong)
    with pytest.raises(ParameterError, match="`partners` must hold at least one example"):
        view_parameters(policy, ids, 0, partners=ids[:0])


@pytest.mark.parametrize("alpha", [0.1, 0.5, 4.0, 1000.0])
def test_tails_of_extreme_alphas_are_as_exact_as_the_middle(alpha: float) -> None:
    """Draws that come once in thousands are still of the law."""
    law = beta(alpha, alpha)
    even = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    found = beta_quantile(even, alpha=alpha).numpy()
    # Of small alphas, all shares of the upper tail are 1 as float64: that tail mirrors this one.
    assert np.abs(law.cdf(found) - even.numpy())[:100_000].max() < 1e-4
    np.testing.assert_allclose(found, 1 - found[::-1], rtol=1e-9, atol=1e-12)
    rare = torch.tensor([2.0**-53, 1e-12, 1e-7, 1e-4, 1 / 8192], dtype=torch.float64)
    for drawn, expected in ((rare, law.ppf(rare)), (1 - rare, law.ppf(1 - rare))):
        np.testing.assert_allclose(beta_quantile(drawn, alpha=alpha), expected, rtol=1e-3)
