"""image_folder: which trees are which partition, what a path is called, what is refused."""

import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.data import sources_image_folder
from kd_pipeline.data.listing import ImageListing
from kd_pipeline.data.settings import ImageFolderSource
from kd_pipeline.data.sources_image_folder import (
    example_id_of_path,
    example_ids_of_paths,
    list_image_folder,
)
from kd_pipeline.errors import DataError

Make = Callable[..., None]


def listed(root: Path, labels_file: Path | None = None) -> ImageListing:
    file = None if labels_file is None else str(labels_file)
    return list_image_folder(
        ImageFolderSource(kind="image_folder", root=str(root), labels_file=file)
    )


def partitions(listing: ImageListing) -> dict[str, str]:
    pairs = zip(listing.sources, listing.partitions, strict=True)
    return {source.rpartition("/")[0].rpartition("/")[0]: str(part) for source, part in pairs}


@pytest.mark.parametrize(
    ("trees", "expected"),
    [
        (("",), {"": "pool"}),
        (("train",), {"train": "pool"}),
        (("train", "test"), {"train": "train", "test": "test"}),
        (("train", "val"), {"train": "train", "val": "test"}),
        (("train", "val", "test"), {"train": "train", "val": "train", "test": "test"}),
    ],
)
def test_partitions(
    tmp_path: Path, make_tree: Make, trees: tuple[str, ...], expected: dict[str, str]
) -> None:
    make_tree(*trees)
    assert partitions(listed(tmp_path)) == expected


def test_labels_are_the_sorted_folder_names(tmp_path: Path, make_tree: Make) -> None:
    make_tree("", classes=("zebra", "ant", "Bee"))
    listing = listed(tmp_path)
    assert listing.class_names == ("Bee", "ant", "zebra")
    for source, label in zip(listing.sources, listing.labels, strict=True):
        assert source.split("/")[0] == listing.class_names[label]


def test_ids_are_stable_when_files_are_added(
    tmp_path: Path, make_tree: Make, write_image: Callable[..., Path]
) -> None:
    make_tree("")
    before = listed(tmp_path)
    write_image("ant/0.png", seed=99)
    after = listed(tmp_path)
    old = dict(zip(before.sources, before.example_ids, strict=True))
    new = dict(zip(after.sources, after.example_ids, strict=True))
    assert {source: new[source] for source in old} == old
    assert all(old[source] == example_id_of_path(source) for source in old)
    assert (after.example_ids[1:] > after.example_ids[:-1]).all()
    assert after.example_ids.min() >= 0


def test_ids_are_narrow_and_pinned() -> None:
    """A cache names examples by them: another hash would orphan every cache on disk."""
    assert example_id_of_path("train/cat/0001.jpg") == 28720662016
    assert example_id_of_path("train/cat/0001.jpg") < 2**36


@given(num_ids=st.integers(1, 30), seed=st.integers(0, 99))
def test_paths_of_one_hash_get_ids_of_their_own(num_ids: int, seed: int) -> None:
    """The order of walking does not matter, and a path that does not collide keeps its id."""
    paths = [f"a/{number}.jpg" for number in range(num_ids)]

    def few(path: str, *, attempt: int = 0) -> int:
        return (
            sum(map(ord, path)) % 7
            if not attempt
            else zlib.crc32(f"{path} {attempt}".encode()) % 1000
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources_image_folder, "example_id_of_path", few)
        ids = dict(zip(paths, example_ids_of_paths(paths).tolist(), strict=True))
        shuffled = np.random.default_rng(seed).permutation(paths).tolist()
        assert dict(zip(shuffled, example_ids_of_paths(shuffled).tolist(), strict=True)) == ids
    assert len(set(ids.values())) == num_ids
    firsts = {few(path): path for path in sorted(paths, reverse=True)}
    assert all(ids[path] == own for own, path in firsts.items())


def test_extensions_in_any_case_nested_folders_and_no_hidden_files(
    tmp_path: Path, make_tree: Make, write_image: Callable[..., Path]
) -> None:
    make_tree("", num_each=1)
    write_image("cat/UPPER.JPG", seed=1)
    write_image("cat/deeper/x.webp", seed=2)
    write_image("cat/._hidden.png", seed=3)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    assert sorted(listed(tmp_path).sources) == [
        "cat/0.png",
        "cat/UPPER.JPG",
        "cat/deeper/x.webp",
        "dog/0.png",
    ]


def test_folders_beside_train_are_named(
    tmp_path: Path, make_tree: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree("train", "test", "extra")
    with caplog.at_level(logging.WARNING):
        listed(tmp_path)
    assert "left out: extra" in caplog.text


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`data_ingest.source.root` must be a folder, got .*gone"):
        listed(tmp_path / "gone")


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold a folder of images per class, got none"):
        listed(tmp_path)


def test_an_empty_class(tmp_path: Path, make_tree: Make) -> None:
    make_tree("train", "test")
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(DataError, match="an empty class: train/emu"):
        listed(tmp_path)


def test_test_without_train(tmp_path: Path, make_tree: Make) -> None:
    make_tree("test")
    with pytest.raises(DataError, match="must hold `train` beside `test`"):
        listed(tmp_path)


AGREEING = "path,label\ncat/0.png,cat\ndog/0.png,dog\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AGREEING.replace("0.png,cat", "0.png,dog"), "cat/0.png is 'dog' in the file and 'cat'"),
        (AGREEING + "cat/9.png,cat\n", "cat/9.png is in the file and not in the folders"),
        ("path,label\ncat/0.png,cat\n", "dog/0.png is not in the file"),
        (AGREEING + "cat/0.png,cat\n", "must name every path once"),
        ("file,label\n", "must have the columns path and label"),
    ],
)
def test_labels_that_disagree(tmp_path: Path, make_tree: Make, text: str, message: str) -> None:
    make_tree("images", num_each=1)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / "images", tmp_path / "labels.csv")


def test_labels_that_agree(tmp_path: Path, make_tree: Make) -> None:
    make_tree("images", num_each=1)
    (tmp_path / "labels.csv").write_text(AGREEING)
    assert listed(tmp_path / "images", tmp_path / "labels.csv").sources
    with pytest.raises(DataError, match=r"`data_ingest.source.labels_file` must be a CSV file"):
        listed(tmp_path / "images", tmp_path / "gone.csv")
