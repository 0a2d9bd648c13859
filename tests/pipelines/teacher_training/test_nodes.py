"""The teacher's node: trained, or given and used as it is, and its card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.events import Event, TrainingStarted
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import ModelCheckpoint, write_checkpoint
from kd_pipeline.models.given import FetchedModel
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.pipelines.teacher_training.nodes import train_teacher
from kd_pipeline.tracking.store import Store
from kd_pipeline.training.settings import TeacherParams

TRAINING: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": 8,
    "device": "cpu",
    "checkpoint_every": 1,
}
STORE = Store("sqlite:///mlflow.db", "tests", None)

Trained = tuple[list[ModelCheckpoint], pd.DataFrame, dict[str, Any]]
Train = Callable[..., Trained]


@pytest.fixture
def train(tables: dict[str, Any], tmp_path: Path) -> Train:
    """Run the node with changes to the block `teacher`."""

    def train(params: TeacherParams | None = None, **changes: Any) -> Trained:
        block = {
            "model": {"name": "small_cnn", "arguments": {"channels": [4, 8]}},
            "transforms": [{"name": "shift", "max_pixels": 1}],
            "training": TRAINING,
        }
        return train_teacher(
            **tables,
            training_states=StateFolder(tmp_path / "states"),
            tracking_store=STORE,
            memory_budget=MemoryBudget(2**30),
            params=params or TeacherParams(**(block | changes)),
        )

    return train


def test_members_are_trained_and_their_states_outlive_the_node(
    train: Train, tmp_path: Path
) -> None:
    checkpoints, history, card = train(num_members=2)
    assert len({checkpoint.fingerprint for checkpoint in checkpoints}) == 2
    assert history[["replicate", "epoch"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    # Until the checkpoints are on disk: tests/hooks/test_resume_hook.py.
    assert len(list((tmp_path / "states").iterdir())) == 2
    assert json.loads(json.dumps(card)) == {
        "fingerprints": [checkpoint.fingerprint for checkpoint in checkpoints],
        "architectures": ["small_cnn", "small_cnn"],
        "class_names": ["low", "middle", "high"],
        "labels": checkpoints[0].facts["labels"],
    }


def test_the_settings_in_force_are_emitted_and_kept(train: Train, events: list[Event]) -> None:
    (checkpoint,), *_ = train(label_smoothing=0.1)
    (started,) = [event for event in events if isinstance(event, TrainingStarted)]
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
        {"training": TRAINING | {"num_epochs": 1}},
        {"training": TRAINING | {"optimiser": {"name": "SGD", "arguments": {"lr": 0.1}}}},
    ],
)
def test_every_setting_matters(train: Train, changes: dict[str, Any]) -> None:
    (first,), *_ = train()
    (other,), *_ = train(**changes)
    assert first.fingerprint != other.fingerprint


def test_a_given_teacher_is_not_trained(
    train: Train, untrained: Callable[..., ModelCheckpoint], tmp_path: Path, events: list[Event]
) -> None:
    write_checkpoint(untrained(), tmp_path / "given")
    entry = {"kind": "checkpoint", "folder": str(tmp_path / "given")}
    (given,), history, card = train(given=[entry])
    assert events == []
    assert given.fingerprint == untrained().fingerprint
    assert all(torch.equal(given.state[k], v) for k, v in untrained().state.items())
    assert history.empty
    assert list(history.columns) == ["replicate", "epoch", "step"]
    assert card["fingerprints"] == [given.fingerprint]


def test_of_logits_computed_elsewhere_there_is_a_card_and_no_checkpoint(
    train: Train, data: LabelledImages, write_logits: Callable[..., TeacherParams]
) -> None:
    ids = data.ids("transfer")
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    checkpoints, history, card = train(write_logits(ids, logits, data.images.class_names))
    assert checkpoints == []
    assert history.empty
    assert card["architectures"] == ["imported logits"]
    changed = write_logits(ids, logits + 1, data.images.class_names)
    assert train(changed)[2]["fingerprints"] != card["fingerprints"]


def test_a_model_of_mlflows_is_fetched_read_and_its_files_deleted(
    train: Train, untrained: Callable[..., ModelCheckpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def fetch(uri: str, folder: Path, store: Store) -> FetchedModel:
        assert (uri, store) == ("models:/teacher/1", STORE)
        folders.append(folder)
        names = ("high", "low", "middle")
        write_checkpoint(untrained(class_names=names), folder)
        return FetchedModel(folder, "checkpoint", names)

    monkeypatch.setattr("kd_pipeline.tracking.fetch.fetch_model", fetch)
    (given,), *_ = train(given=[{"kind": "mlflow", "uri": "models:/teacher/1"}])
    assert given.class_names == ("low", "middle", "high")
    assert given.class_order == (1, 2, 0)
    assert [folder.exists() for folder in folders] == [False]
