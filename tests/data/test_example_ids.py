"""Example ids of paths and of images in shards: pinned, unique, in the order of storage."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.data import example_ids
from kd_pipeline.data.example_ids import (
    example_id_of_path,
    example_ids_of_paths,
    example_ids_of_shards,
)
from kd_pipeline.errors import DataError


def test_ids_are_narrow_and_pinned() -> None:
    """A cache names examples by them: another hash would orphan every cache on disk."""
    assert example_id_of_path("train/cat/0001.jpg") == 28720662016
    assert example_id_of_path("train/cat/0001.jpg") < 2**36


@given(num_ids=st.integers(1, 30), seed=st.integers(0, 99))
def test_paths_of_one_hash_get_ids_of_their_own(num_ids: int, seed: int) -> None:
    """The order of walking does not matter, and a path that does not collide keeps its id."""
    paths = [f"a/{number}.jpg" for number in range(num_ids)]

    def few(path: str, *, attempt: int = 0, bits: int = 0) -> int:
        return (
            sum(map(ord, path)) % 7
            if not attempt
            else zlib.crc32(f"{path} {attempt}".encode()) % 1000
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_ids, "example_id_of_path", few)
        ids = dict(zip(paths, example_ids_of_paths(paths).tolist(), strict=True))
        shuffled = np.random.default_rng(seed).permutation(paths).tolist()
        assert dict(zip(shuffled, example_ids_of_paths(shuffled).tolist(), strict=True)) == ids
    assert len(set(ids.values())) == num_ids
    firsts = {few(path): path for path in sorted(paths, reverse=True)}
    assert all(ids[path] == own for own, path in firsts.items())


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_ids_in_shards_are_unique_ascend_and_stay_when_shards_are_added(counts: list[int]) -> None:
    paths = [f"train-{number}.tar" for number in range(len(counts))]
    ids = example_ids_of_shards(paths, counts)
    together = np.concatenate(ids)
    assert len(np.unique(together)) == sum(counts)
    assert all((np.diff(of_one) == 1).all() for of_one in ids)
    more = example_ids_of_shards([*paths, "test.tar"], [*counts, 3])
    for before, after in zip(ids, more, strict=False):
        np.testing.assert_array_equal(before, after)


def test_ids_in_shards_are_pinned_and_fit_a_double() -> None:
    (ids,) = example_ids_of_shards(["train-0.tar"], [2])
    assert ids.tolist() == [150297565462528, 150297565462529]
    assert ids.max() < 2**48
    with pytest.raises(DataError, match=r"at most 16,777,216 images, got big.tar"):
        example_ids_of_shards(["big.tar"], [2**24 + 1])
