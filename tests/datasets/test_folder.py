"""What all datasets share: the catalog gives back the entries that it was made from."""

from pathlib import Path

import pytest
from kedro.io import DataCatalog


@pytest.mark.parametrize(
    "kind",
    [
        "checkpoints.CheckpointsDataset",
        "images.ImageSetDataset",
        "soft_targets.SoftTargetsDataset",
        "training_states.TrainingStatesDataset",
    ],
)
def test_a_catalog_gives_back_its_entries(tmp_path: Path, kind: str) -> None:
    entry = {"type": f"kd_pipeline.datasets.{kind}", "filepath": str(tmp_path / "data")}
    catalog = DataCatalog.from_config({"one": {**entry, "metadata": {"layer": "raw"}}})
    assert catalog.get("one").metadata == {"layer": "raw"}
    assert str(tmp_path / "data") in repr(catalog.get("one"))
    config, *_ = catalog.to_config()
    assert config == {"one": entry}
