"""Checked datasets: what was written comes back; anything else is refused with the file's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.io import DatasetError

from kd_pipeline.datasets.checked import (
    CheckedJSONDataset,
    CheckedParquetDataset,
)
from kd_pipeline.datasets.tables import TableDataset
from kd_pipeline.errors import our_cause

TABLE = pd.DataFrame({"example_id": [1, 2], "role": ["test", "transfer"]})
Make = Callable[[Path], Any]


def parquet(file: Path) -> CheckedParquetDataset:
    return CheckedParquetDataset(filepath=str(file), metadata={"made_by": "transfer_split"})


def csv(file: Path) -> TableDataset:
    return TableDataset(filepath=str(file))


def refusal(dataset: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        dataset.load()
    return str(our_cause(caught.value))


@pytest.mark.parametrize("make", [parquet, csv])
def test_round_trip(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "new" / "file").save(TABLE)
    pd.testing.assert_frame_equal(make(tmp_path / "new" / "file").load(), TABLE)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    message = refusal(parquet(tmp_path / "splits.parquet"))
    command = "run `kedro run --pipelines=transfer_split` to make it"
    assert message == f"{tmp_path}/splits.parquet is missing: {command}"


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"fingerprints": []}'])
@pytest.mark.parametrize("make", [parquet, csv])
def test_a_file_that_was_changed_names_the_command_that_makes_it(
    make: Make, content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    make(file).save(TABLE)
    file.write_bytes(content)
    message = refusal(make(file))
    assert f"{file} is not as it was written (its checksum differs): delete it and run" in message
    if make is parquet:
        assert message.endswith("`kedro run --pipelines=transfer_split` again")


def test_a_file_of_another_program_is_read_and_refused_in_our_words(tmp_path: Path) -> None:
    file = tmp_path / "splits.parquet"
    TABLE.to_parquet(file)
    pd.testing.assert_frame_equal(parquet(file).load(), TABLE)
    file.write_bytes(file.read_bytes()[:100])
    assert refusal(parquet(file)).startswith(f"{file} cannot be read: delete it and run")


def test_a_file_that_was_written_by_half_is_refused(tmp_path: Path) -> None:
    dataset = CheckedJSONDataset(filepath=str(tmp_path / "card.json"))
    dataset.save({"fingerprints": ["a"]})
    with pytest.raises(DatasetError, match="not JSON serializable"):
        dataset.save({"fingerprints": ["a"], "other": object()})
    assert "card.json is not as it was written" in refusal(dataset)
