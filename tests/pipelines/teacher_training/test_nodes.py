"""The teacher's nodes: trained, or given and used as it is, and its card."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import CheckpointError
from kd_pipeline.events import Event, TrainingStarted, listening
from kd_pipeline.models.checkpoint import ModelCheckpoint, write_checkpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.pipelines.teacher_training.nodes import describe_teacher, train_teacher
from kd_pipeline.training.block_settings import TeacherParams

BLOCK: dict[str, Any] = {
    "model": {"name": "small_cnn", "arguments": {"channels": [4, 8]}},
    "transforms": [{"name": "shift", "max_pixels": 1}],
    "training": {"num_epochs": 2, "batch_size": 8, "device": "cpu", "checkpoint_every": 1},
}


def train(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame, folder: Path, **changes: Any
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    params = TeacherParams.model_validate(BLOCK | changes)
    return train_teacher(images, examples, splits, StateFolder(folder / "states"), params)


def given_in(folder: Path) -> dict[str, str]:
    return {"kind": "checkpoint", "folder": str(folder)}


@pytest.fixture
def data(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame
) -> tuple[ImageSet, pd.DataFrame, pd.DataFrame]:
    return images, examples, splits


def test_members_are_trained_and_their_states_outlive_the_node(data: Any, tmp_path: Path) -> None:
    checkpoints, history = train(*data, tmp_path, num_members=2)
    assert len({checkpoint.fingerprint for checkpoint in checkpoints}) == 2
    assert history[["replicate", "epoch"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    # Until the checkpoints are on disk: tests/hooks/test_resume_hook.py.
    assert len(list((tmp_path / "states").iterdir())) == 2


def test_the_settings_in_force_are_told_and_kept(data: Any, tmp_path: Path) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        (checkpoint,), _ = train(*data, tmp_path, label_smoothing=0.1)
    (started,) = [event for event in heard if isinstance(event, TrainingStarted)]
    for settings in (started.parameters, checkpoint.facts["parameters"]):
        assert settings["label_smoothing"] == 0.1
        assert settings["training"]["batch_size"] == 8
        assert settings["model"]["name"] == "small_cnn"
    json.dumps(checkpoint.facts, allow_nan=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"label_smoothing": 0.2},
        {"transforms": []},
        {"training": BLOCK["training"] | {"num_epochs": 1}},
        {"training": BLOCK["training"] | {"optimiser": {"name": "SGD", "arguments": {"lr": 0.1}}}},
    ],
)
def test_every_setting_matters(data: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    (first,), _ = train(*data, tmp_path)
    (other,), _ = train(*data, tmp_path, **changes)
    assert first.fingerprint != other.fingerprint


def test_a_given_teacher_is_not_trained(data: Any, tmp_path: Path) -> None:
    (trained,), _ = train(*data, tmp_path)
    write_checkpoint(trained, tmp_path / "given")
    heard: list[Event] = []
    with listening(heard.append):
        given, history = train(*data, tmp_path, given=[given_in(tmp_path / "given")])
    assert heard == []
    assert [checkpoint.fingerprint for checkpoint in given] == [trained.fingerprint]
    assert all(torch.equal(given[0].state[k], v) for k, v in trained.state.items())
    assert history.empty
    assert list(history.columns) == ["replicate", "epoch", "step"]


def test_a_model_of_mlflows_is_fetched_read_and_its_files_forgotten(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Head(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().flatten(1)[:, :3] / 10

    folders: list[Path] = []

    def fetch(uri: str, folder: Path) -> dict[str, Any]:
        folders.append(folder)
        example, batch = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.export.Dim.AUTO
        program = torch.export.export(Head(), (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, folder / "model.pt2")
        file = str(folder / "model.pt2")
        return {
            "format": "exported_program",
            "file": file,
            "class_names": ["high", "low", "middle"],
        }

    monkeypatch.setattr("kd_pipeline.tracking.fetch.fetch_model", fetch)
    (given,), _ = train(*data, tmp_path, given=[{"kind": "mlflow", "uri": "models:/teacher/1"}])
    assert given.class_names == ("low", "middle", "high")
    assert given.class_order == (1, 2, 0)
    assert [folder.exists() for folder in folders] == [False]


def test_a_given_teacher_of_fewer_classes_is_refused(data: Any, tmp_path: Path) -> None:
    (trained,), _ = train(*data, tmp_path)
    write_checkpoint(trained, tmp_path / "given")
    images, examples, splits = data
    more = ImageSet(images.example_ids, images.pixels, (*images.class_names, "extra"))
    with pytest.raises(CheckpointError, match="3 classes where the images have 4"):
        train(more, examples, splits, tmp_path, given=[given_in(tmp_path / "given")])


def test_the_card_outlives_the_weights(data: Any, tmp_path: Path) -> None:
    checkpoints, _ = train(*data, tmp_path, num_members=2)
    card = json.loads(json.dumps(describe_teacher(checkpoints)))
    assert card == {
        "fingerprints": [checkpoint.fingerprint for checkpoint in checkpoints],
        "architectures": ["small_cnn", "small_cnn"],
        "class_names": ["low", "middle", "high"],
    }
