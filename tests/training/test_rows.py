"""Batch order: full batches, every row once a pass, paired between arms."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.training.rows import BatchOrder


@given(num_rows=st.integers(1, 50), batch_size=st.integers(1, 70), seed=st.integers(0, 100))
def test_every_pass_is_a_permutation_and_every_batch_is_full(
    num_rows: int, batch_size: int, seed: int
) -> None:
    order = BatchOrder(torch.arange(num_rows) * 7, seed, batch_size)
    positions, passes = order.steps(0, 5 * num_rows)
    assert positions.shape == (5 * num_rows, batch_size)
    flat = positions.flatten()
    for start in range(0, len(flat) - num_rows + 1, num_rows):
        assert sorted(flat[start : start + num_rows].tolist()) == list(range(num_rows))
    assert torch.equal(passes.flatten(), torch.arange(len(flat)) // num_rows)


@given(first=st.integers(0, 30), count=st.integers(1, 10))
def test_any_step_is_the_same_wherever_one_starts(first: int, count: int) -> None:
    order = BatchOrder(torch.arange(13), 5, 4)
    whole, passes = order.steps(0, 40)
    part, part_passes = order.steps(first, count)
    assert torch.equal(part, whole[first : first + count])
    assert torch.equal(part_passes, passes[first : first + count])


def test_the_same_ids_give_the_same_batches_however_they_are_stored() -> None:
    ids = torch.tensor([4, 8, 15, 16, 23, 42])
    stored_otherwise = ids[[5, 0, 3, 1, 4, 2]]
    here, _ = BatchOrder(ids, 1, 4).steps(0, 9)
    there, _ = BatchOrder(stored_otherwise, 1, 4).steps(0, 9)
    assert torch.equal(ids[here], stored_otherwise[there])


def test_passes_and_seeds_shuffle_apart() -> None:
    order, _ = BatchOrder(torch.arange(100), 0, 100).steps(0, 2)
    other, _ = BatchOrder(torch.arange(100), 1, 100).steps(0, 1)
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order[0], other[0])
