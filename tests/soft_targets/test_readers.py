"""Readers of parquet that are not Arrow's find the same rows."""

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets

IDS = np.array([3, 10, 77, 2**40, 2**62], dtype=np.int64)


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(2, 2.0)], ids=["dense", "top_k"])
def test_duckdb_and_polars_read_the_same_rows(
    tmp_path: Path, store: SoftTargets, encoding: Encoding
) -> None:
    """Both lack some of parquet's encodings for float16: DuckDB reads none with bytes split."""
    rows = np.random.default_rng(1).normal(size=(2, 2, 5, 4)).astype(np.float32)
    made = write_soft_targets(
        tmp_path / "s", rows, IDS, provenance=store.manifest.provenance, encoding=encoding
    )
    expected = np.concatenate([part.rows.logits for part in made.parts()]).tolist()
    files = str(made.folder / "*.parquet")
    query = f"SELECT * FROM '{files}' ORDER BY teacher, view, example_id"
    with duckdb.connect() as connection:
        table = connection.sql(query).to_arrow_table()
    assert table["logits"].to_pylist() == expected
    frame = pl.read_parquet(files)
    assert frame["logits"].to_list() == expected
    if encoding.top_k is not None:
        class_ids = [p.rows.class_ids for p in made.parts() if p.rows.class_ids is not None]
        assert table["class_ids"].to_pylist() == np.concatenate(class_ids).tolist()
        assert frame["class_ids"].to_list() == np.concatenate(class_ids).tolist()
