"""Tables in CSV files: nothing that a spreadsheet runs, and the saved table back."""

import csv
from pathlib import Path

import pandas as pd
import yaml
from kedro.io import DataCatalog

from kd_pipeline.datasets.tables import TableDataset

CONF = Path(__file__).parents[2] / "conf"
TABLE = pd.DataFrame(
    {
        "source": ["=cmd|' /C calc'!A0/1.png", "a, b.png", "'-x.png"],
        "gain": [-0.5, 0.25, float("nan")],
        "-1": [-1, 0, 1],
    }
)


def test_no_cell_is_a_formula_and_the_table_comes_back(tmp_path: Path) -> None:
    dataset = TableDataset(filepath=str(tmp_path / "t.csv"))
    dataset.save(TABLE)
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["source", "gain", "'-1"]
    assert [row[0] for row in rows[1:]] == ["'=cmd|' /C calc'!A0/1.png", "a, b.png", "''-x.png"]
    assert rows[1][1:] == ["-0.5", "-1"]
    pd.testing.assert_frame_equal(dataset.load(), TABLE, check_dtype=False)
    assert dataset.load()["gain"].dtype == TABLE["gain"].dtype


def test_a_catalog_gives_it_back_with_its_arguments(tmp_path: Path) -> None:
    """Kedro-Viz previews a copy made from them."""
    entry = {
        "type": "kd_pipeline.datasets.tables.TableDataset",
        "filepath": str(tmp_path / "t.csv"),
        "load_args": {"dtype": {"gain": "str"}},
    }
    catalog = DataCatalog.from_config({"table": entry})
    catalog["table"].save(TABLE)
    assert catalog["table"].load()["gain"].tolist()[:2] == ["-0.5", "0.25"]
    assert catalog.to_config()[0]["table"] == entry
    assert catalog["table"].preview(nrows=1)["data"][0][0] == TABLE["source"][0]


def test_every_csv_of_the_catalog_is_such_a_table() -> None:
    entries: dict[str, dict[str, str]] = {}
    for path in CONF.glob("*/catalog*.yml"):
        entries |= yaml.safe_load(path.read_text(encoding="utf-8"))
    tables = {n: e for n, e in entries.items() if str(e.get("filepath", "")).endswith(".csv")}
    assert len(tables) > 8
    assert {entry["type"] for entry in tables.values()} == {
        "kd_pipeline.datasets.tables.TableDataset"
    }
