"""A table that names the label of each image file."""

import posixpath
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kd_pipeline.data.listing import first_few
from kd_pipeline.data.settings import LabelsFile
from kd_pipeline.errors import DataError

_NAME = "data_ingest.source.labels_file"
SPLITS = frozenset({"train", "val", "test"})


class Entry(NamedTuple):
    """What a table has on one image file."""

    label: str
    """Empty where the image has none."""
    split: str | None
    """One of `SPLITS`; None in a table without that column."""


def read_label_table(settings: LabelsFile) -> dict[str, Entry]:
    """Read labels, and splits where there is such a column, by path relative to the root.

    Raises:
        DataError: If the table cannot be read, has no columns `path` and `label`, names a path
            twice, or a split of another name than `SPLITS`.
    """
    table = _read(settings)
    if missing := {"path", "label"} - set(table.columns):
        raise DataError(
            f"`{_NAME}` must have the columns path and label, got {list(table.columns)} without "
            f"{sorted(missing)}"
        )
    if table.empty:
        raise DataError(f"`{_NAME}` must have rows, got {settings.file!r} without any")
    paths = [posixpath.normpath(f"{settings.folder or '.'}/{path}") for path in table["path"]]
    if twice := pd.Series(paths)[pd.Series(paths).duplicated()].tolist():
        raise DataError(
            f"`{_NAME}` must name every path once, got {first_few(twice)} more than once"
        )
    splits = table["split"] if "split" in table else [None] * len(table)
    if unknown := sorted(set(splits) - SPLITS - {None}):
        raise DataError(
            f"`{_NAME}` must have train, val or test as `split`, got "
            f"{first_few(list(map(repr, unknown)))}"
        )
    return dict(zip(paths, map(Entry, table["label"].str.strip(), splits), strict=True))


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A label column of numbers may have gaps: 1 is "1", not "1.0"."""
    # pandas reads and stores whole numbers with gaps as floats.
    return table.convert_dtypes().astype("string").fillna("").astype(object)


def _read(settings: LabelsFile) -> pd.DataFrame:
    file, columns = Path(settings.file), settings.columns
    if not file.is_file():
        raise DataError(f"`{_NAME}` must be a CSV or parquet file, got {settings.file!r}")
    try:
        if file.suffix == ".parquet":
            return _as_text(pd.read_parquet(file))
        by_position = {"header": None, "names": columns, "usecols": range(len(columns or ()))}
        return pd.read_csv(
            file,
            sep=settings.separator,
            dtype=str,
            keep_default_na=False,
            **({} if columns is None else by_position),
        )
    except (OSError, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors too.
        raise DataError(f"`{_NAME}` {file} cannot be read as a table: {error}") from error
