"""The table `examples`: what is built passes, survives parquet, and what is broken is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.examples import check_examples, make_examples, make_rejected
from kd_pipeline.data.listing import ArrayReader, ImageListing
from kd_pipeline.errors import DataError


def listing() -> ImageListing:
    pixels = np.zeros((4, 1, 2, 2), dtype=np.uint8)
    return ImageListing(
        example_ids=np.array([2, 5, 6, 7], dtype=np.int64),
        sources=["a", "b", "bad", "c"],
        labels=np.array([1, -1, 0, 0], dtype=np.int64),
        partitions=np.array(["train", "train", "train", "test"]),
        class_names=("cat", "dog"),
        keys=range(4),
        reader=ArrayReader(pixels),
    )


def table() -> pd.DataFrame:
    kept = np.array([True, True, False, True])
    return make_examples(listing(), kept, ("cat", "dog"), ["x", "y", "", "z"])


def test_what_is_built_is_accepted() -> None:
    examples = table()
    assert check_examples(examples) is examples
    assert examples["source"].tolist() == ["a", "b", "c"]


def test_labels_become_names_and_no_label_becomes_null() -> None:
    examples = table()
    assert examples["class_name"].fillna("-").tolist() == ["dog", "-", "cat"]
    assert examples["label"].isna().tolist() == [False, True, False]
    assert str(examples["label"].dtype) == "Int64"


def test_survives_parquet(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "t.parquet")
    back = check_examples(pd.read_parquet(tmp_path / "t.parquet"))
    pd.testing.assert_frame_equal(back, table())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop(columns="source"), "must have the columns"),
        (lambda t: t.iloc[::-1], "sorted by unique"),
        (lambda t: t.assign(example_id=[2, 2, 7]), "sorted by unique"),
        (lambda t: t.assign(example_id=["2", "5", "7"]), "`example_id` must be int64"),
        (lambda t: t.assign(label=[0.5, 1.5, 0.0]), "`label` must be an integer"),
        (lambda t: t.assign(source=[1, 2, 3]), "`source` must be text"),
        (lambda t: t.assign(content_hash=["x", None, "z"]), "must be there for every"),
        (lambda t: t.assign(partition="dev"), r"`partition` must be one of .*got \['dev'\]"),
        (lambda t: t.assign(class_name=["dog", "dog", "cat"]), "null together"),
        (lambda t: t.assign(class_name=["dog", None, "dog"]), "one to one"),
        (lambda t: t.assign(label=pd.array([0, None, 0], dtype="Int64")), "one to one"),
        (lambda t: t.assign(label=pd.array([-1, None, 0], dtype="Int64")), "`label` must be >= 0"),
    ],
)
def test_broken_tables_are_refused(
    damage: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_examples(damage(table()))


def test_rejected_images_are_in_the_order_of_the_listing() -> None:
    rejected = make_rejected(listing(), {2: "no image", 0: "oversized"})
    assert rejected["example_id"].tolist() == [2, 6]
    assert rejected["reason"].tolist() == ["oversized", "no image"]


def test_an_empty_rejected_table_keeps_its_columns(tmp_path: Path) -> None:
    make_rejected(listing(), {}).to_csv(tmp_path / "r.csv", index=False)
    assert list(pd.read_csv(tmp_path / "r.csv").columns) == ["source", "example_id", "reason"]
