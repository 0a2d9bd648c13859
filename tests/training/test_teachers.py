"""Teachers: members with seeds of their own, pretrained weights, and given checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.errors import CheckpointError, StaleArtefactError
from kd_pipeline.models.checkpoint import ModelCheckpoint, write_checkpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.students import TrainingData
from kd_pipeline.training.teachers import adopt_checkpoints, train_teachers


@pytest.fixture
def data(images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame) -> TrainingData:
    return TrainingData(images, examples, splits)


def train(data: TrainingData, folder: Path, **changes: Any) -> list[ModelCheckpoint]:
    arguments: dict[str, Any] = {
        "model": {"name": "small_cnn", "arguments": {"channels": [4, 8]}},
        "pretrained": None,
        "settings": TrainingSettings(num_epochs=2, batch_size=16),
        "label_smoothing": 0.0,
        "transforms": [{"name": "shift", "max_pixels": 1}],
        "seed": 0,
        "num_members": 1,
        "parameters": {},
        "states": StateFolder(folder),
    }
    checkpoints, _ = train_teachers(data, **(arguments | changes))
    return checkpoints


def test_members_differ_and_each_knows_its_data(data: TrainingData, tmp_path: Path) -> None:
    members = train(data, tmp_path, num_members=2)
    assert members[0].fingerprint != members[1].fingerprint
    for member in members:
        assert member.facts["splits"] == split_fingerprint(data.splits)
        assert member.facts["num_training_rows"] == len(ids_with_role(data.splits, "teacher_train"))
    assert train(data, tmp_path / "alone")[0].fingerprint == members[0].fingerprint


def test_fine_tuning_only_the_last_layer_keeps_the_rest_bit_for_bit(
    data: TrainingData, tmp_path: Path
) -> None:
    (given,) = train(data, tmp_path / "first")
    path = tmp_path / "weights.pth"
    torch.save(dict(given.state), path)
    pretrained = {"weights": None, "file": str(path), "trainable_layers": 1}
    (tuned,) = train(data, tmp_path / "second", pretrained=pretrained, seed=1)
    changed = {k for k in given.state if not torch.equal(given.state[k], tuned.state[k])}
    assert changed == {"9.weight", "9.bias"}


def test_a_given_checkpoint_is_used_as_it_is(data: TrainingData, tmp_path: Path) -> None:
    (trained,) = train(data, tmp_path / "states")
    write_checkpoint(trained, tmp_path / "given")
    (adopted,) = adopt_checkpoints(data, [str(tmp_path / "given")])
    assert adopted.fingerprint == trained.fingerprint
    assert adopted.facts["splits"] == split_fingerprint(data.splits)


def test_a_checkpoint_of_other_images_has_no_claim_to_a_clean_test_set(
    data: TrainingData, tmp_path: Path
) -> None:
    (trained,) = train(data, tmp_path / "states")
    foreign = replace(trained, facts={**trained.facts, "images": "another"})
    write_checkpoint(foreign, tmp_path / "given")
    (adopted,) = adopt_checkpoints(data, [str(tmp_path / "given")])
    assert "splits" not in adopted.facts
    assert "images" not in adopted.facts


def test_a_checkpoint_of_another_split_of_these_images_is_refused(
    data: TrainingData, tmp_path: Path
) -> None:
    (trained,) = train(data, tmp_path / "states")
    leaking = replace(trained, facts={**trained.facts, "splits": "another"})
    write_checkpoint(leaking, tmp_path / "given")
    with pytest.raises(StaleArtefactError, match="may have seen their test set"):
        adopt_checkpoints(data, [str(tmp_path / "given")])


def test_a_checkpoint_of_other_classes_is_refused(data: TrainingData, tmp_path: Path) -> None:
    (trained,) = train(data, tmp_path / "states")
    write_checkpoint(replace(trained, class_names=("low", "high", "middle")), tmp_path / "given")
    with pytest.raises(CheckpointError, match="class 1 is 'high' where the images have 'middle'"):
        adopt_checkpoints(data, [str(tmp_path / "given")])
