"""Memory for pixels: the budget decides, dropping rows needs no second copy, scratch goes away."""

import gc
from pathlib import Path

import numpy as np
import pytest

from kd_pipeline.data.pixel_store import allocate_pixels, keep_rows, scratch_file
from kd_pipeline.errors import DataError
from kd_pipeline.memory import MemoryBudget

SHAPE = (40, 1, 256, 256)  # 2.5 MiB


@pytest.fixture(autouse=True)
def _scratch_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.parametrize(("budget", "on_disk"), [(1, True), (3, False)])
def test_keep_rows_is_boolean_indexing(budget: int, on_disk: bool) -> None:
    pixels = allocate_pixels(SHAPE, MemoryBudget(budget * 2**20))
    assert (scratch_file(pixels) is not None) == on_disk
    pixels[:] = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    kept = np.random.default_rng(1).random(40) < 0.7
    expected = pixels[kept].copy()
    np.testing.assert_array_equal(keep_rows(pixels, kept), expected)


def test_the_scratch_file_goes_with_its_array(tmp_path: Path) -> None:
    pixels = allocate_pixels(SHAPE, MemoryBudget(2**20))
    shorter = keep_rows(pixels, np.arange(40) % 2 == 0)
    del pixels
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1
    assert shorter.shape[0] == 20
    del shorter
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_free_disk_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """As `image_size: 1000000` with the digits: 1.6 PiB."""
    message = (
        r"1,797 images of `data_ingest.image_size` 1000000 need 1,673,\d{3}\.\d GiB, got .* free"
    )
    with pytest.raises(DataError, match=message):
        allocate_pixels((1797, 1, 10**6, 10**6), MemoryBudget(2**32))
    assert list(tmp_path.iterdir()) == []


def test_part_of_a_scratch_file_is_not_the_file() -> None:
    pixels = allocate_pixels(SHAPE, MemoryBudget(2**20))
    assert scratch_file(pixels) is not None
    assert scratch_file(pixels[:3]) is None
    assert scratch_file(keep_rows(pixels, np.arange(40) > 0)) is None
    assert scratch_file(np.asarray(pixels)) is None
