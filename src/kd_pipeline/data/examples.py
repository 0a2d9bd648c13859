"""The table `examples`: one row per image."""

from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.data.listing import ImageListing
from kd_pipeline.errors import DataError

COLUMNS = ("example_id", "label", "class_name", "source", "partition", "content_hash")
PARTITIONS = frozenset({"train", "test", "pool"})


def make_examples(
    listing: ImageListing,
    kept: NDArray[np.bool_],
    class_names: Sequence[str],
    content_hashes: Sequence[str],
) -> pd.DataFrame:
    """Table of the images of a listing that are kept.

    Args:
        listing: All images of the source.
        kept: bool [num_images].
        class_names: Position = label.
        content_hashes: Of the decoded pixels, of all images.

    Returns:
        `example_id` int64, `label` Int64 or null, `class_name` string or null, `source`,
        `partition` and `content_hash` string.
    """
    labels = listing.labels[kept]
    names = np.array([*class_names, None], dtype=object)  # None at -1
    return pd.DataFrame(
        {
            "example_id": listing.example_ids[kept],
            "label": pd.arrays.IntegerArray(labels, labels < 0),
            "class_name": pd.array(names[labels], dtype="string"),
            "source": pd.array(list(compress(listing.sources, kept)), dtype="string"),
            "partition": pd.array(listing.partitions[kept].astype(object), dtype="string"),
            "content_hash": pd.array(list(compress(content_hashes, kept)), dtype="string"),
        }
    )


def make_rejected(listing: ImageListing, reasons: Mapping[int, str]) -> pd.DataFrame:
    """Table of rejected images: `source`, `example_id` and `reason`, in the listing's order."""
    rows = [(listing.sources[at], listing.example_ids[at], reasons[at]) for at in sorted(reasons)]
    table = pd.DataFrame(rows, columns=["source", "example_id", "reason"])
    return table.astype({"source": "string", "example_id": "int64", "reason": "string"})


def contradictions(examples: pd.DataFrame) -> dict[str, int]:
    """Count the images whose pixels are there under more than one label.

    Returns:
        Number of examples by the names of their classes, as "cat / dog"; the most first.
    """
    labelled = examples.dropna(subset="label")
    groups = labelled.groupby("content_hash")["class_name"]
    found = labelled[groups.transform("nunique") > 1]
    names = found.groupby("content_hash")["class_name"].agg(
        lambda all_: " / ".join(sorted(set(all_)))
    )
    counts = found["content_hash"].map(names).value_counts()
    return {str(name): int(count) for name, count in counts.items()}


def check_examples(examples: pd.DataFrame) -> pd.DataFrame:
    """Return the table if it is as `make_examples` describes: the catalog's validator.

    Raises:
        DataError: If columns, types, order, partitions or class names are not as described.
    """
    if tuple(examples.columns) != COLUMNS:
        raise DataError(f"`examples` must have the columns {COLUMNS}, got {list(examples.columns)}")
    _check_types(examples)
    ids = examples["example_id"].to_numpy()
    if np.any(ids[1:] <= ids[:-1]):
        raise DataError("`examples` must be sorted by unique `example_id`, got another order")
    if unknown := set(examples["partition"].unique()) - PARTITIONS:
        raise DataError(
            f"`partition` must be one of {sorted(PARTITIONS)}, got {sorted(map(str, unknown))}"
        )
    _check_class_names(examples)
    return examples


def check_labels(examples: pd.DataFrame, class_names: Sequence[str]) -> None:
    """Refuse labels that contradict their class names.

    Args:
        examples: With the columns `label` and `class_name`.
        class_names: Position = label.

    Raises:
        DataError: If a label is not the position of its class name.
    """
    pairs = examples[["label", "class_name"]].dropna().drop_duplicates()
    expected = dict(enumerate(class_names))
    for label, name in pairs.itertuples(index=False):
        if expected.get(label) != name:
            raise DataError(
                f"`label` must be the position of `class_name` among the images' classes, got "
                f"{label} for {name!r}; run `kedro run --pipelines=data_ingest` again"
            )


def _check_types(examples: pd.DataFrame) -> None:
    types = examples.dtypes
    if types["example_id"] != np.int64:
        raise DataError(f"`example_id` must be int64, got {types['example_id']}")
    if not pd.api.types.is_integer_dtype(types["label"]):
        raise DataError(f"`label` must be an integer or null, got {types['label']}")
    for column in COLUMNS[2:]:
        if not pd.api.types.is_string_dtype(examples[column].dropna()):
            raise DataError(f"`{column}` must be text, got {types[column]}")
        if column != "class_name" and examples[column].isna().any():
            raise DataError(f"`{column}` must be there for every example, got null")


def _check_class_names(examples: pd.DataFrame) -> None:
    labelled = examples["label"].notna()
    if (labelled != examples["class_name"].notna()).any():
        raise DataError("`label` and `class_name` must be null together, got one without the other")
    pairs = examples.loc[labelled, ["label", "class_name"]].drop_duplicates()
    if (pairs["label"] < 0).any():
        raise DataError(f"`label` must be >= 0, got {pairs['label'].min()}")
    if pairs["label"].duplicated().any() or pairs["class_name"].duplicated().any():
        raise DataError("`label` and `class_name` must belong one to one, got two for one")
