"""ImageSet: found by id, fingerprinted by all that matters, refused where malformed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import DataError
from kd_pipeline.memory import MemoryBudget


def make(ids: list[int], *, names: tuple[str, ...] = ("a", "b")) -> ImageSet:
    pixels = np.arange(len(ids) * 12, dtype=np.uint8).reshape(len(ids), 3, 2, 2)
    return ImageSet(np.array(ids, dtype=np.int64), pixels, names)


@given(ids=st.lists(st.integers(0, 2**63 - 1), min_size=1, unique=True), data=st.data())
def test_positions_find_what_ids_name(ids: list[int], data: st.DataObject) -> None:
    images = make(sorted(ids))
    asked = data.draw(st.lists(st.sampled_from(ids)))
    found = images.positions(asked)
    assert found.dtype == np.int64
    assert images.example_ids[found].tolist() == asked


def test_take_copies_in_the_order_asked() -> None:
    images = make([3, 5, 9])
    taken = images.take(np.array([9, 3, 9]))
    assert taken.dtype == torch.uint8
    assert torch.equal(taken, torch.from_numpy(images.pixels[[2, 0, 2]]))
    taken.zero_()
    assert images.pixels[2].any()


@pytest.mark.parametrize("unknown", [-1, 4, 10])
def test_an_unknown_id_is_refused(unknown: int) -> None:
    with pytest.raises(DataError, match=rf"1 unknown ones, first \[{unknown}\]"):
        make([3, 5, 9]).positions([3, unknown])


def test_fingerprint_is_of_content_not_of_storage(tmp_path: Path) -> None:
    images = make([1, 2, 3])
    np.save(tmp_path / "p.npy", images.pixels)
    mapped = np.load(tmp_path / "p.npy", mmap_mode="c")
    assert (
        ImageSet(images.example_ids, mapped, images.class_names).fingerprint == images.fingerprint
    )


def test_a_stored_fingerprint_is_not_computed_again() -> None:
    images = make([1, 2])
    stored = ImageSet(images.example_ids, images.pixels, images.class_names, "stored")
    assert stored.fingerprint == "stored"


@pytest.mark.parametrize(("budget", "is_loaded"), [(0, False), (35, False), (36, True)])
def test_a_reader_gives_the_same_from_memory_and_from_the_array(
    budget: int, is_loaded: bool
) -> None:
    images = make([3, 5, 9, 12])
    pixels = images.reader([5, 9, 12], device="cpu", budget=MemoryBudget(budget))
    assert (pixels.loaded is not None) == is_loaded
    assert pixels.example_ids.tolist() == [5, 9, 12]
    assert pixels.image_size == (2, 2)
    asked = torch.tensor([2, 0, 2])
    assert torch.equal(pixels(asked), images.take([12, 5, 12]))
    assert torch.equal(pixels(asked[:, None]), images.take([12, 5, 12])[:, None])


def test_a_reader_of_an_unknown_id_is_refused() -> None:
    with pytest.raises(DataError, match="1 unknown ones"):
        make([3, 5]).reader([4], device="cpu")


def test_fingerprint_changes_with_each_part() -> None:
    images = make([1, 2, 3])
    pixels = images.pixels.copy()
    pixels[2, 2, 1, 1] ^= 1
    others = [
        make([1, 2, 4]),
        make([1, 2, 3], names=("b", "a")),
        ImageSet(images.example_ids, pixels, images.class_names),
        ImageSet(images.example_ids, images.pixels.reshape(3, 3, 1, 4), images.class_names),
    ]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize(
    ("ids", "pixels", "names", "message"),
    [
        ([1, 2], np.zeros((2, 1, 2, 2), np.float32), ("a",), "must be uint8"),
        ([1, 2], np.zeros((2, 2, 2), np.uint8), ("a",), "must be uint8 of shape"),
        ([1], np.zeros((2, 1, 2, 2), np.uint8), ("a",), "must be int64 of shape"),
        ([2, 1], np.zeros((2, 1, 2, 2), np.uint8), ("a",), "strictly ascending"),
        ([1, 1], np.zeros((2, 1, 2, 2), np.uint8), ("a",), "strictly ascending"),
        ([1, 2], np.zeros((2, 1, 2, 2), np.uint8), ("a", "a"), "must be unique"),
    ],
)
def test_malformed_sets_are_refused(
    ids: list[int], pixels: np.ndarray, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet(np.array(ids, dtype=np.int64), pixels, names)
