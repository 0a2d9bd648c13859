"""Tables as CSV files that are safe to open in a spreadsheet."""

from typing import Any

import pandas as pd
from kedro_datasets.pandas import CSVDataset

from kd_pipeline.data.spreadsheets import escape_formulas, restore_formulas
from kd_pipeline.datasets.checked import Checked


class _EscapedCSVDataset(CSVDataset):  # type: ignore[misc] # kedro-datasets has no types
    """A CSV file whose texts are escaped when it is written and restored when it is read."""

    def save(self, data: pd.DataFrame) -> None:
        """Write the table without its index."""
        super().save(escape_formulas(data))

    def load(self) -> pd.DataFrame:
        """Read the table."""
        return restore_formulas(super().load())


class TableDataset(Checked, _EscapedCSVDataset):
    """A CSV file with a checksum, in which what spreadsheets would run as a formula begins with '.

    Loading takes the ' away again: the table is the one that was saved.

    Example catalog entry::

        split_summary:
          type: kd_pipeline.datasets.tables.TableDataset
          filepath: data/08_reporting/split_summary.csv
    """

    def __init__(
        self,
        *,
        filepath: str,
        load_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Keep a table in the file `filepath`; `load_args` are those of `pandas.read_csv`."""
        super().__init__(filepath=filepath, load_args=load_args, metadata=metadata)
