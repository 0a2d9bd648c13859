"""Training states: the node gets a folder to write to; the catalog itself saves nothing."""

from pathlib import Path

import pytest
import torch
from kedro.io.core import DatasetError

from kd_pipeline.datasets.training_states import TrainingStatesDataset


@pytest.fixture
def dataset(tmp_path: Path) -> TrainingStatesDataset:
    return TrainingStatesDataset(filepath=str(tmp_path / ".interrupted/arm"))


def test_a_folder_that_need_not_exist_is_handed_out(
    dataset: TrainingStatesDataset, tmp_path: Path
) -> None:
    assert dataset.exists()
    states = dataset.load()
    assert states.load("key") is None
    assert not (tmp_path / ".interrupted").exists()
    states.save("key", {"weights": torch.arange(3)})
    again = dataset.load().load("key")
    assert again is not None
    assert torch.equal(again["weights"], torch.arange(3))
    dataset.load().clear()
    assert states.load("key") is None


def test_saving_is_refused(dataset: TrainingStatesDataset) -> None:
    with pytest.raises(DatasetError, match="not allowed"):
        dataset.save(None)
    with pytest.raises(DatasetError, match="written by the training itself"):
        dataset.save({"weights": torch.arange(3)})  # type: ignore[arg-type]
