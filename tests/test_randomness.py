"""Counter-based draws: pure, well spread, independent of order and of global state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.randomness import derive_seed, random_bits, seeded, shuffled_order, uniform


def test_splitmix_matches_its_published_first_output() -> None:
    """SplitMix64's finaliser of the golden gamma is 0xE220A8397B1DCDAF (Steele et al. 2014)."""
    from kd_pipeline import randomness

    first = randomness._mix(torch.tensor([randomness._GOLDEN_GAMMA]))
    assert int(first) % 2**64 == 0xE220A8397B1DCDAF


@given(seed=st.integers(0, 2**31), start=st.integers(-(2**62), 2**62))
def test_draws_depend_on_the_id_and_not_on_its_place(seed: int, start: int) -> None:
    ids = torch.arange(start, start + 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    together = uniform(ids, stream=derive_seed(seed, "x"))
    assert torch.equal(together[order], uniform(ids[order], stream=derive_seed(seed, "x")))
    assert torch.equal(together[3:4], uniform(ids[3:4], stream=derive_seed(seed, "x")))


def test_uniform_draws_are_uniform_and_streams_are_independent() -> None:
    ids = torch.arange(100_000)
    first, second = (uniform(ids, stream=derive_seed(0, name)) for name in "ab")
    counts = torch.histc(first, bins=20, min=0, max=1)
    # 5,000 expected in each bin, standard deviation 69: six of them is never by chance.
    assert (counts - 5000).abs().max() < 6 * 69
    assert first.min() >= 0
    assert first.max() < 1
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    neighbours = torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1]
    assert abs(correlation) < 0.02
    assert abs(neighbours) < 0.02


@given(seed=st.integers(0, 1000))
def test_a_shuffle_is_a_permutation_keyed_by_ids(seed: int) -> None:
    ids = torch.tensor([5, 900, 17, -3, 44, 2**60])
    stored_otherwise = ids.flip(0)
    shuffled = ids[shuffled_order(ids, stream=seed)]
    assert sorted(shuffled.tolist()) == sorted(ids.tolist())
    again = stored_otherwise[shuffled_order(stored_otherwise, stream=seed)]
    assert torch.equal(shuffled, again)


def test_several_shuffles_at_once_are_those_of_each_seed() -> None:
    ids, seeds = torch.tensor([5, 900, 17, -3, 44]), [derive_seed(0, number) for number in range(3)]
    together = shuffled_order(ids, stream=torch.tensor(seeds)[:, None])
    assert torch.equal(together, torch.stack([shuffled_order(ids, stream=one) for one in seeds]))


def test_signs_of_bits_are_fair() -> None:
    assert (random_bits(torch.arange(10_000), stream=1) < 0).double().mean() == pytest.approx(
        0.5, abs=0.03
    )


def test_seeded_gives_the_global_state_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(7):
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


def test_derived_seeds_differ_by_key_and_kind() -> None:
    seeds = {derive_seed(0, *keys) for keys in (("a",), ("b",), ("a", 0), (1,), ("1",))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
