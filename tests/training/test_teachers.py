"""Teachers: members with seeds of their own, pretrained weights, and given checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.errors import CheckpointError, DataError, StaleArtefactError
from kd_pipeline.labelling.predictor import open_predictor
from kd_pipeline.models.architectures import build_network
from kd_pipeline.models.checkpoint import ModelCheckpoint, write_checkpoint
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.teachers import adopt_given, initial_teacher, train_teachers


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


def given_in(folder: Path) -> dict[str, Any]:
    return {"kind": "checkpoint", "folder": str(folder)}


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
    (adopted,) = adopt_given(data, [given_in(tmp_path / "given")])
    assert adopted.fingerprint == trained.fingerprint
    assert adopted.facts["splits"] == split_fingerprint(data.splits)


def test_a_checkpoint_of_other_images_has_no_claim_to_a_clean_test_set(
    data: TrainingData, tmp_path: Path
) -> None:
    (trained,) = train(data, tmp_path / "states")
    foreign = replace(trained, facts={**trained.facts, "images": "another"})
    write_checkpoint(foreign, tmp_path / "given")
    (adopted,) = adopt_given(data, [given_in(tmp_path / "given")])
    assert "splits" not in adopted.facts
    assert "images" not in adopted.facts


def test_a_checkpoint_of_another_split_of_these_images_is_refused(
    data: TrainingData, tmp_path: Path
) -> None:
    (trained,) = train(data, tmp_path / "states")
    leaking = replace(trained, facts={**trained.facts, "splits": "another"})
    write_checkpoint(leaking, tmp_path / "given")
    with pytest.raises(StaleArtefactError, match="may have seen their test set"):
        adopt_given(data, [given_in(tmp_path / "given")])


def test_a_checkpoint_of_other_classes_is_refused(data: TrainingData, tmp_path: Path) -> None:
    (trained,) = train(data, tmp_path / "states")
    write_checkpoint(replace(trained, class_names=("low", "high", "centre")), tmp_path / "given")
    with pytest.raises(CheckpointError, match="only in the teacher: centre; only in the images"):
        adopt_given(data, [given_in(tmp_path / "given")])


def logits_file(data: TrainingData, folder: Path, *, roles: tuple[str, ...]) -> dict[str, Any]:
    ids = np.concatenate([ids_with_role(data.splits, role) for role in roles])
    logits = np.stack([ids, -ids, ids * 0], axis=1).astype(np.float32)
    names = np.array(["high", "low", "middle"])
    np.savez(folder / "logits.npz", example_ids=ids, logits=logits, class_names=names)
    return {
        "kind": "logits",
        "file": str(folder / "logits.npz"),
        "class_names": None,
        "class_names_file": None,
    }


def test_imported_logits_are_put_into_the_images_order_of_classes(
    data: TrainingData, tmp_path: Path
) -> None:
    (adopted,) = adopt_given(data, [logits_file(data, tmp_path, roles=("validation", "transfer"))])
    ids = ids_with_role(data.splits, "transfer")[:4]
    logits = open_predictor(adopted, data.images, batch_size=1).logits(ids)
    assert logits.tolist() == [[-i, 0, i] for i in ids]
    assert adopted.class_names == data.images.class_names
    assert "splits" not in adopted.facts


def test_imported_logits_must_cover_the_transfer_set(data: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must cover the transfer set"):
        adopt_given(data, [logits_file(data, tmp_path, roles=("validation",))])
    entry = logits_file(data, tmp_path, roles=("transfer",))
    with pytest.raises(CheckpointError, match="2 classes where the images have 3"):
        adopt_given(data, [{**entry, "class_names": ["low", "high"]}])


def test_teacher_and_student_may_differ_in_size(data: TrainingData, tmp_path: Path) -> None:
    model = {"name": "small_cnn", "arguments": {"channels": [4, 8]}, "input_size": 16}
    (trained,) = train(data, tmp_path, model=model)
    assert trained.preprocessing.shape == (1, 16, 16)
    assert trained.facts["image_shape"] == [1, 8, 8]
    predictor = open_predictor(trained, data.images, batch_size=50)
    assert predictor.logits(data.images.example_ids[:3]).shape == (3, 3)


def test_a_pretrained_network_of_colours_keeps_its_own_normalisation_for_grey_images(
    data: TrainingData, tmp_path: Path
) -> None:
    network = build_network("squeezenet1_1", shape=(3, 8, 8), num_classes=5, arguments={})
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    pretrained = {"weights": None, "file": str(tmp_path / "weights.pth"), "trainable_layers": None}
    model = {"name": "squeezenet1_1", "arguments": {}, "input_size": 32}
    classifier = initial_teacher(data, model, pretrained, seed=0)
    assert classifier.preprocessing == Preprocessing(
        (3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert classifier(data.images.take(data.images.example_ids[:2])).shape == (2, 3)
