"""Figures come back as the PNG files that they were saved as."""

from pathlib import Path

import pytest
from kedro.io import DataCatalog
from matplotlib.figure import Figure

from kd_pipeline.errors import DataError, our_cause


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    entry = {"type": "kd_pipeline.datasets.figures.FigureDataset"}
    return DataCatalog.from_config({"one": {**entry, "filepath": str(tmp_path / "one.png")}})


def test_a_figure_is_loaded_as_its_file(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("one", Figure((1, 1)))
    assert catalog.load("one") == (tmp_path / "one.png").read_bytes()
    assert catalog.load("one").startswith(b"\x89PNG")


def test_one_that_was_not_drawn_is_missing(catalog: DataCatalog) -> None:
    with pytest.raises(Exception, match=r"one\.png is missing") as error:
        catalog.load("one")
    assert isinstance(our_cause(error.value), DataError)
