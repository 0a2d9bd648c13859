"""ingest_images: what is left out and why, what stops the run, and what comes out."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from kd_pipeline.config import Params
from kd_pipeline.data import ingest
from kd_pipeline.data.examples import check_examples, contradictions
from kd_pipeline.data.ingest import IngestedImages, ingest_images
from kd_pipeline.data.settings import (
    DataIngestParams,
    DigitsSource,
    ImageFolderSource,
    TorchvisionSource,
)
from kd_pipeline.errors import DataError
from kd_pipeline.memory import MemoryBudget

Make = Callable[..., None]


def ingest_from(
    source: Params, budget: MemoryBudget | None = None, **changes: Any
) -> IngestedImages:
    return ingest_images(DataIngestParams.model_validate({"source": source, **changes}), budget)


def from_folder(root: Path, **changes: Any) -> IngestedImages:
    source = ImageFolderSource(kind="image_folder", root=str(root))
    return ingest_from(source, **{"max_rejected_share": 0.2, **changes})


DIGITS = DigitsSource(kind="digits")


def test_digits() -> None:
    ingested = ingest_from(DIGITS)
    assert ingested.images.pixels.shape == (1797, 1, 8, 8)
    assert len(ingested.rejected) == 0
    assert ingested.examples["label"].tolist()[:4] == [0, 1, 2, 3]


def test_digits_resized_and_in_colour() -> None:
    ingested = ingest_from(DIGITS, image_size=16, colour="rgb")
    assert ingested.images.pixels.shape == (1797, 3, 16, 16)


def test_rows_of_table_and_pixels_belong_together(tmp_path: Path, make_tree: Make) -> None:
    make_tree("train", "test")
    (tmp_path / "train" / "cat" / "bad.png").write_text("no image")
    ingested = from_folder(tmp_path)
    examples, images = check_examples(ingested.examples), ingested.images
    np.testing.assert_array_equal(examples["example_id"].to_numpy(), images.example_ids)
    assert len(examples) == 12
    for row in examples.itertuples():
        expected = np.asarray(Image.open(tmp_path / row.source)).transpose(2, 0, 1)
        np.testing.assert_array_equal(images.take([row.example_id])[0].numpy(), expected)
        assert row.source.split("/")[:2] == [row.partition, row.class_name]
        assert images.class_names[row.label] == row.class_name
    assert ingested.rejected["source"].tolist() == ["train/cat/bad.png"]
    assert ingested.rejected["example_id"][0] not in set(images.example_ids)


def test_above_the_budget_the_same_comes_from_disk(
    tmp_path: Path, write_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        write_image(f"i/{'ab'[seed % 2]}/{seed}.png", seed=seed, size=(300, 300))
    (tmp_path / "i" / "a" / "bad.png").write_text("no image")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    on_disk = from_folder(tmp_path / "i", budget=MemoryBudget(2**20))
    in_memory = from_folder(tmp_path / "i")
    assert isinstance(on_disk.images.pixels, np.memmap)
    assert on_disk.images.fingerprint == in_memory.images.fingerprint


@pytest.mark.timeout(60)
def test_odd_files_and_loops_of_links_are_listed_as_rejected(
    tmp_path: Path, make_tree: Make
) -> None:
    make_tree("train", "test")
    cats = tmp_path / "train" / "cat"
    os.mkfifo(cats / "pipe.jpg")
    (cats / "loop").symlink_to(tmp_path / "train")
    (cats / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    (cats / "gone.png").symlink_to(tmp_path / "gone.png")
    ingested = from_folder(tmp_path, max_rejected_share=0.3)
    reasons = dict(zip(ingested.rejected["source"], ingested.rejected["reason"], strict=True))
    assert set(reasons) == {f"train/cat/{name}" for name in (
        "pipe.jpg", "loop", "script.jpg", "gone.png")}  # fmt: skip
    assert "not a regular file" in reasons["train/cat/pipe.jpg"]
    assert "listed already" in reasons["train/cat/loop"]
    assert "cannot identify its format" in reasons["train/cat/script.jpg"]
    assert len(ingested.examples) == 12


@pytest.mark.parametrize(("share", "stops"), [(0.24, True), (0.25, False)])
def test_the_share_of_rejected_images_is_bounded(
    tmp_path: Path, make_tree: Make, caplog: pytest.LogCaptureFixture, share: float, stops: bool
) -> None:
    make_tree(".", num_each=3)
    for name in ("x.png", "y.png"):
        (tmp_path / "cat" / name).write_text("no image")
    if stops:
        message = r"2 of 8 images .* 0\.2500, more than `data_ingest.max_rejected_share` = 0\.24"
        with pytest.raises(DataError, match=message + r".*cat/[xy].png: cannot identify"):
            from_folder(tmp_path, max_rejected_share=share)
    else:
        with caplog.at_level(logging.WARNING):
            assert len(from_folder(tmp_path, max_rejected_share=share).rejected) == 2
        assert "2 of 8 images cannot be used" in caplog.text


def test_copies_of_test_images_are_kept_out_of_training(
    tmp_path: Path, make_tree: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree("train", "test", num_each=4)
    shutil.copy(tmp_path / "test" / "cat" / "1.png", tmp_path / "train" / "cat" / "copy.png")
    # The same pixels in another file format, and under another label.
    Image.open(tmp_path / "test" / "dog" / "2.png").save(tmp_path / "train" / "cat" / "copy.bmp")
    with caplog.at_level(logging.WARNING):
        ingested = from_folder(tmp_path, max_rejected_share=0.0)
    assert sorted(ingested.rejected["source"]) == ["train/cat/copy.bmp", "train/cat/copy.png"]
    id_of = dict(zip(ingested.examples["source"], ingested.examples["example_id"], strict=True))
    reason_of = dict(zip(ingested.rejected["source"], ingested.rejected["reason"], strict=True))
    expected = f"same image as test example {id_of['test/cat/1.png']}"
    assert reason_of["train/cat/copy.png"] == expected
    assert "2 images are in the test set too" in caplog.text
    hashes = {
        part: set(rows["content_hash"]) for part, rows in ingested.examples.groupby("partition")
    }
    assert hashes["train"].isdisjoint(hashes["test"])
    assert len(ingested.examples) == 16


def test_repeats_inside_the_pool_stay_and_are_mentioned(
    tmp_path: Path, make_tree: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree(".")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "dog" / "copy.png")
    with caplog.at_level(logging.WARNING):
        assert len(from_folder(tmp_path).examples) == 7
    assert "1 images repeat another one exactly" in caplog.text


@pytest.fixture
def _never_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("too late: decoding has begun")

    monkeypatch.setattr(ingest, "decode_images", refuse)


@pytest.mark.usefixtures("_never_decode")
def test_one_class_only(tmp_path: Path, make_tree: Make) -> None:
    make_tree(".", classes=("cat",))
    with pytest.raises(DataError, match=r"at least 2 classes, got \['cat'\]"):
        from_folder(tmp_path)


@pytest.mark.usefixtures("_never_decode")
def test_more_classes_in_test_than_in_train(tmp_path: Path, make_tree: Make) -> None:
    make_tree("train")
    make_tree("test", classes=("cat", "dog", "emu", "yak"))
    with pytest.raises(DataError, match=r"more classes in test than in train: emu; yak"):
        from_folder(tmp_path)


def test_a_class_whose_images_are_all_unreadable(tmp_path: Path, make_tree: Make) -> None:
    make_tree(".", num_each=4)
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "x.png").write_text("no image")
    message = r"got none for emu \(all 1 are left out, emu/x.png: cannot identify its format\)"
    with pytest.raises(DataError, match=message):
        from_folder(tmp_path)


def test_a_class_whose_training_images_are_all_unreadable_is_named(
    tmp_path: Path, make_tree: Make
) -> None:
    make_tree("train", "test", num_each=4)
    for number in range(4):
        (tmp_path / f"train/dog/{number}.png").write_text("no image")
    message = r"image to train on, got none for dog \(all 4 are left out, train/dog/[0-3].png: can"
    with pytest.raises(DataError, match=message):
        from_folder(tmp_path, max_rejected_share=0.5)


def test_the_same_image_under_two_labels_is_mentioned_with_both(
    tmp_path: Path, make_tree: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree(".")
    for at in range(2):
        shutil.copy(tmp_path / f"cat/{at}.png", tmp_path / f"dog/copy{at}.png")
    shutil.copy(tmp_path / "cat/2.png", tmp_path / "cat/copy.png")
    with caplog.at_level(logging.WARNING):
        examples = from_folder(tmp_path).examples
    assert "under several labels, which all stay: cat / dog: 4 images" in caplog.text
    assert contradictions(examples) == {"cat / dog": 4}
    assert contradictions(examples[examples["class_name"] == "cat"]) == {}


class Unnamed:
    """A data set without class names, whose labels come with its images."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> tuple[Image.Image, int]:
        return Image.new("L", (2, 2), position), position % 2


def test_class_names_are_numbers_where_the_labels_come_with_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "SEMEION", Unnamed)
    source = TorchvisionSource(kind="torchvision", name="SEMEION", root=str(tmp_path))
    ingested = ingest_from(source)
    assert ingested.images.class_names == ("0", "1")
    assert ingested.examples["label"].tolist() == [0, 1, 0, 1]
