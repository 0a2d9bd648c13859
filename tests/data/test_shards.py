"""Shards: equal to an image folder, which files they are, how labels become numbers."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_pipeline.data.ingest import IngestedImages, ingest_images
from kd_pipeline.data.settings import DataIngestParams
from kd_pipeline.data.shards import number_labels
from kd_pipeline.errors import DataError, ParameterError

Encoded = Callable[[int], bytes]
Write = Callable[..., Path]
CLASSES = ("cat", "dog")


def ingested(**source: Any) -> IngestedImages:
    return ingest_images(DataIngestParams.model_validate({"source": source}))


def by_content(images: IngestedImages) -> dict[str, tuple[str, str, bytes]]:
    """Partition, class name and pixels of each image by its content hash."""
    rows = zip(images.examples.itertuples(), images.images.pixels, strict=True)
    return {r.content_hash: (r.partition, r.class_name, pixels.tobytes()) for r, pixels in rows}


@pytest.mark.parametrize("has_test", [True, False])
def test_a_folder_a_tar_and_a_parquet_give_the_same(
    tmp_path: Path,
    write_image: Write,
    write_tar: Write,
    write_parquet: Write,
    encoded: Encoded,
    has_test: bool,
) -> None:
    for split, seeds in {"train": range(12), "test": range(12, 18)}.items():
        for seed in seeds:
            write_image(f"folder/{split}/{CLASSES[seed % 2]}/{seed}.png", seed=seed)
        for shard in range(2):
            part = seeds[shard :: len(CLASSES)]
            members = [
                member
                for seed in part
                for member in (
                    (f"{seed:04}.png", encoded(seed)),
                    (f"{seed:04}.cls", b"%d\n" % (seed % 2)),
                )
            ]
            write_tar(f"tar/{split}-{shard}.tar", *members)
            images, labels = [encoded(seed) for seed in part], [seed % 2 for seed in part]
            write_parquet(f"hf/{split}-{shard}.parquet", images, labels, names=CLASSES)
    folder = tmp_path / "folder" / ("" if has_test else "train")
    expected = ingested(kind="image_folder", root=str(folder))
    shards: dict[str, Any] = {"train": "train-*"} | ({"test": ["test-*"]} if has_test else {})
    tar = ingested(kind="webdataset", root=str(tmp_path / "tar"), class_names=CLASSES, **shards)
    parquet = ingested(kind="parquet", root=str(tmp_path / "hf"), **shards)
    assert len(by_content(expected)) == (18 if has_test else 12)
    assert by_content(tar) == by_content(parquet) == by_content(expected)
    assert tar.images.class_names == parquet.images.class_names == CLASSES
    assert expected.images.class_names == CLASSES


def test_a_copy_of_a_test_image_is_kept_out_and_a_pattern_may_cross_folders(
    tmp_path: Path,
    write_parquet: Write,
    encoded: Encoded,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_parquet("a/b/train.parquet", list(map(encoded, range(4))), [0, 1, 0, 1])
    write_parquet("a/test.parquet", [encoded(0), encoded(9)], [0, 1])
    with caplog.at_level(logging.WARNING):
        found = ingested(
            kind="parquet", root=str(tmp_path), train="**/train.parquet", test="a/test.*"
        )
    assert found.rejected["source"].tolist() == ["a/b/train.parquet/0"]
    assert "1 images are in the test set too" in caplog.text
    assert found.images.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "gone-*.tar"}, r"source.train` must match files below the root .*'gone-\*.tar'"),
        ({"test": "gone-*.tar"}, r"source.test` must match files below the root"),
        ({"root": "gone"}, r"source.train` must match files below the root 'gone'"),
        ({"test": "./train-0.tar"}, r"source.test` must match files that `train` does not have"),
        ({"class_names": "gone.txt"}, r"class_names` must be a list, or a text file .*'gone.txt'"),
        ({"class_names": ["a", "a"]}, r"class_names` must be at least 2 different names"),
        ({"class_names": ["a", ""]}, r"class_names` must be at least 2 different names"),
    ],
)
def test_patterns_and_names_are_refused_by_their_setting(
    tmp_path: Path, write_tar: Write, encoded: Encoded, settings: dict[str, Any], message: str
) -> None:
    write_tar("train-0.tar", ("0.png", encoded(0)), ("0.cls", b"0"))
    source = {"kind": "webdataset", "root": str(tmp_path), "train": "train-*.tar", **settings}
    with pytest.raises(ParameterError, match=message):
        ingested(**source)


@pytest.mark.parametrize("train", ["/tmp/a.tar", "../a.tar", "", []])
def test_a_pattern_that_leads_out_of_the_root_is_refused_before_any_file(train: Any) -> None:
    with pytest.raises(ValueError, match="train"):
        DataIngestParams.model_validate(
            {"source": {"kind": "webdataset", "root": "x", "train": train}}
        )


def test_class_names_from_a_file(tmp_path: Path, write_parquet: Write, encoded: Encoded) -> None:
    write_parquet("a.parquet", list(map(encoded, range(4))), [1, 0, 1, 0], names=["x", "y"])
    # As an editor of Windows may write it.
    (tmp_path / "names.txt").write_text("owl \nemu\n", encoding="utf-8-sig")
    names = str(tmp_path / "names.txt")
    found = ingested(kind="parquet", root=str(tmp_path), train="*.parquet", class_names=names)
    assert found.images.class_names == ("owl", "emu")
    assert found.examples["class_name"].tolist() == ["emu", "owl", "emu", "owl"]
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match="class_names` must be a file of UTF-8"):
        ingested(kind="parquet", root=str(tmp_path), train="*.parquet", class_names=names)


@pytest.mark.parametrize(
    ("labels", "names", "numbers", "expected"),
    [
        ([1, 0, None, -1], None, [1, 0, -1, -1], ("0", "1")),
        ([1, 0], ["owl", "emu"], [1, 0], ("owl", "emu")),
        (["owl", None, "emu"], None, [1, -1, 0], ("emu", "owl")),
        (["owl", "emu"], ["owl", "emu"], [0, 1], ("owl", "emu")),
        ([2], ["a", "b", "c"], [2], ("a", "b", "c")),
    ],
)
def test_labels_become_numbers(
    labels: list[Any], names: list[str] | None, numbers: list[int], expected: tuple[str, ...]
) -> None:
    found, class_names = number_labels(labels, names, "label_column")
    np.testing.assert_array_equal(found, numbers)
    assert found.dtype == np.int64
    assert class_names == expected


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, "cat"], None, r"source.label_field` must name .* all numbers or all names, got"),
        ([None, -1], None, r"source.label_field` must name labels"),
        ([1, 2], None, r"source.class_names` must be given where .* without gaps, as \[1, 2\]"),
        ([0, 10**20], None, r"source.class_names` must be given where"),
        ([0, -2], None, r"source.class_names` must be given where"),
        ([0, 2], ["a", "b"], r"a name for every label, which 2 have not, got \['a', 'b'\]"),
        ([0, -2], ["a", "b"], r"a name for every label, which -2 have not"),
        (["a", "c"], ["a", "b"], r"a name for every label, which c have not"),
    ],
)
def test_labels_and_classes_that_do_not_fit_are_refused(
    labels: list[Any], names: list[str] | None, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        number_labels(labels, names, "label_field")


def test_files_of_other_class_names_are_refused(
    tmp_path: Path, write_parquet: Write, encoded: Encoded
) -> None:
    for shard, names in enumerate((["a", "b"], ["b", "a"])):
        write_parquet(f"{shard}.parquet", [encoded(0), encoded(1)], [0, 1], names=names)
    message = r"source.train` must be files of the same class names, got others in 1.parquet than"
    with pytest.raises(DataError, match=message):
        ingested(kind="parquet", root=str(tmp_path), train="*.parquet")
