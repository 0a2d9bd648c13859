"""The table `examples`: one row per image, what is known of it beside its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kd_pipeline.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = ("example_id", "label", "class_name", "source", "partition", "content_hash")
REJECTED_COLUMNS = ("source", "example_id", "reason")
PARTITIONS = frozenset({"train", "test", "pool"})


def make_examples(
    *,
    example_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    sources: Sequence[str],
    partitions: NDArray[np.str_],
    content_hashes: Sequence[str],
) -> pd.DataFrame:
    """Build the table from columns of equal length.

    Args:
        example_ids: int64 [num_images], strictly ascending.
        labels: int64 [num_images]; below 0 = none.
        class_names: Position = label.
        sources: Where each image comes from.
        partitions: train, test or pool, per image.
        content_hashes: Hash of the decoded pixels, per image.

    Returns:
        `example_id` int64, `label` Int64 or null, `class_name` string or null, `source`,
        `partition` and `content_hash` string.
    """
    without = labels < 0
    names = np.array([*class_names, None], dtype=object)
    table = pd.DataFrame(
        {
            "example_id": example_ids,
            "label": pd.arrays.IntegerArray(labels.copy(), without),
            "class_name": pd.array(names[np.where(without, -1, labels)], dtype="string"),
            "source": pd.array(sources, dtype="string"),
            "partition": pd.array(partitions.astype(object), dtype="string"),
            "content_hash": pd.array(content_hashes, dtype="string"),
        }
    )
    return check_examples(table)


def make_rejected(rows: Sequence[tuple[str, int, str]]) -> pd.DataFrame:
    """Table of rejected images from (source, example_id, reason), in this order."""
    table = pd.DataFrame(list(rows), columns=list(REJECTED_COLUMNS))
    return table.astype({"source": "string", "example_id": "int64", "reason": "string"})


def check_examples(examples: pd.DataFrame) -> pd.DataFrame:
    """Refuse a table `examples` that later stages could not rely on.

    Args:
        examples: As `make_examples` builds it, or as it was read from a file.

    Returns:
        The table itself.

    Raises:
        DataError: If columns, types, order, partitions or class names are not as promised.
    """
    if tuple(examples.columns) != COLUMNS:
        raise DataError(f"`examples` must have the columns {COLUMNS}, got {list(examples.columns)}")
    _check_types(examples)
    ids = examples["example_id"].to_numpy()
    if np.any(ids[1:] <= ids[:-1]):
        raise DataError(
            "`examples` must be sorted by unique `example_id`, got equal or falling ids"
        )
    if unknown := set(examples["partition"].unique()) - PARTITIONS:
        raise DataError(
            f"`partition` must be one of {sorted(PARTITIONS)}, got {sorted(map(str, unknown))}"
        )
    _check_classes(examples)
    return examples


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


def _check_classes(examples: pd.DataFrame) -> None:
    labelled = examples["label"].notna()
    if (labelled != examples["class_name"].notna()).any():
        raise DataError("`label` and `class_name` must be null together, got one without the other")
    pairs = examples.loc[labelled, ["label", "class_name"]].drop_duplicates()
    if (pairs["label"] < 0).any():
        raise DataError(f"`label` must be >= 0, got {pairs['label'].min()}")
    if pairs["label"].duplicated().any() or pairs["class_name"].duplicated().any():
        raise DataError("`label` and `class_name` must belong one to one, got two for one")
