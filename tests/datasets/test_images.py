"""ImageSetDataset: what is saved comes back, memory-mapped; half a folder never does."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from kedro.io import DatasetError

from kd_pipeline.checksums import file_checksum
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.pixel_store import allocate_pixels, keep_rows
from kd_pipeline.datasets.images import ImageSetDataset
from kd_pipeline.memory import MemoryBudget


def images(num: int = 5, side: int = 4) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (num, 3, side, side), dtype=np.uint8)
    return ImageSet(np.arange(num, dtype=np.int64) * 7, pixels, ("a", "ü"))


def test_round_trip(tmp_path: Path) -> None:
    dataset = ImageSetDataset(filepath=str(tmp_path / "new" / "images"))
    assert not dataset.exists()
    dataset.save(images())
    back = dataset.load()
    assert dataset.exists()
    assert isinstance(back.pixels, np.memmap)
    np.testing.assert_array_equal(back.pixels, images().pixels)
    np.testing.assert_array_equal(back.example_ids, images().example_ids)
    assert back.class_names == ("a", "ü")
    again = ImageSet(back.example_ids, back.pixels, back.class_names)
    assert back.fingerprint == images().fingerprint == again.fingerprint


def test_writing_into_loaded_pixels_leaves_the_files_alone(tmp_path: Path) -> None:
    dataset = ImageSetDataset(filepath=str(tmp_path / "images"))
    dataset.save(images())
    dataset.load().pixels[:] = 0
    np.testing.assert_array_equal(dataset.load().pixels, images().pixels)


def test_what_was_loaded_can_be_saved_over_itself(tmp_path: Path) -> None:
    dataset = ImageSetDataset(filepath=str(tmp_path / "images"))
    dataset.save(images())
    dataset.save(dataset.load())
    np.testing.assert_array_equal(dataset.load().pixels, images().pixels)


def test_a_scratch_file_is_moved_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pixels = allocate_pixels((2, 3, 512, 512), MemoryBudget(2**20))
    pixels[:] = 7
    scratch = next(tmp_path.glob("*.npy"))
    inode = scratch.stat().st_ino
    dataset = ImageSetDataset(filepath=str(tmp_path / "images"))
    dataset.save(ImageSet(np.arange(2, dtype=np.int64), pixels, ("a", "b")))
    assert not scratch.exists()
    assert (tmp_path / "images" / "pixels.npy").stat().st_ino == inode
    del pixels
    loaded = dataset.load().pixels
    assert loaded.min() == loaded.max() == 7


def test_what_is_left_of_a_scratch_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pixels = allocate_pixels((4, 3, 512, 512), MemoryBudget(2**20))
    pixels[:] = np.arange(4, dtype=np.uint8)[:, None, None, None]
    fewer = keep_rows(pixels, np.array([False, True, False, True]))
    dataset = ImageSetDataset(filepath=str(tmp_path / "images"))
    dataset.save(ImageSet(np.arange(2, dtype=np.int64), fewer, ("a", "b")))
    assert dataset.load().pixels[:, 0, 0, 0].tolist() == [1, 3]


def test_a_save_that_fails_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ImageSetDataset(filepath=str(tmp_path / "images"))
    dataset.save(images())

    def fail(*args: object, **kwargs: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(json, "dumps", fail)
    made = images(num=3)
    fresh = ImageSet(made.example_ids, made.pixels, made.class_names, "its computing takes json")
    with pytest.raises(DatasetError, match="disk full"):
        dataset.save(fresh)
    monkeypatch.undo()
    assert len(dataset.load().pixels) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


def test_a_missing_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is missing: run the pipeline data_ingest"):
        ImageSetDataset(filepath=str(tmp_path / "images")).load()


@pytest.mark.parametrize("name", ["pixels.npy", "example_ids.npy", "images.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    dataset = ImageSetDataset(filepath=str(tmp_path / "images"))
    dataset.save(images())
    file = tmp_path / "images" / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"is damaged .*kedro run --pipelines=data_ingest"):
        dataset.load()


@pytest.mark.parametrize("opened_before", [True, False])
def test_pixels_that_were_changed_are_refused(tmp_path: Path, opened_before: bool) -> None:
    """As .npy they are as good as before: only what was ingested can tell."""
    dataset = ImageSetDataset(filepath=str(tmp_path / "images"))
    dataset.save(images())
    if opened_before:
        dataset.load()
    file = tmp_path / "images" / "pixels.npy"
    pixels = np.load(file)
    pixels[3] = 255 - pixels[3]
    np.save(file, pixels)
    os.utime(file, (1, 1))  # Two writes may fall into one tick of the clock.
    with pytest.raises(DatasetError, match=r"the checksum of pixels.npy differs.*data_ingest"):
        dataset.load()


def test_pixels_are_read_whole_only_when_first_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, read = ImageSetDataset(filepath=str(tmp_path / "images")), []
    dataset.save(images())
    monkeypatch.setattr(
        "kd_pipeline.datasets.images.file_checksum",
        lambda file: read.append(file.name) or file_checksum(file),
    )
    dataset.load()
    dataset.load()
    assert read.count("pixels.npy") == 1
