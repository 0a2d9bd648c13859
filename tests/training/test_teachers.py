"""Teachers: members with seeds of their own, pretrained weights, and given checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, StaleArtefactError
from kd_pipeline.models.architectures import build_network
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier, write_checkpoint
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import GivenCheckpoint, Model, Pretrained
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.initial import initial_model
from kd_pipeline.training.settings import TeacherParams
from kd_pipeline.training.teachers import adopt_given, train_teachers


def train(data: LabelledImages, folder: Path, **changes: Any) -> list[ModelCheckpoint]:
    training = {"num_epochs": 2, "batch_size": 16, "device": "cpu", "precision": "float32"}
    settings: dict[str, Any] = {
        "model": {"name": "small_cnn", "arguments": {"channels": [4, 8]}},
        "transforms": [{"name": "shift", "max_pixels": 1}],
        "training": training | {"schedule": {"name": "constant"}},
    }
    params = TeacherParams(**(settings | changes))
    checkpoints, _ = train_teachers(data, params, StateFolder(folder))
    return checkpoints


def adopt(data: LabelledImages, folder: Path) -> ModelCheckpoint:
    entry = GivenCheckpoint(kind="checkpoint", folder=str(folder))
    (adopted,) = adopt_given(data, [entry], [None])
    return adopted


def relabelled(data: LabelledImages) -> LabelledImages:
    """The same images and splits, with one validation image in another class."""
    examples = data.examples.copy()
    row = examples["example_id"] == data.ids("validation")[0]
    label = (examples.loc[row, "label"].item() + 1) % 3
    examples.loc[row, "label"] = label
    examples.loc[row, "class_name"] = data.images.class_names[label]
    return replace(data, examples=examples)


def test_members_differ_and_each_names_its_data(data: LabelledImages, tmp_path: Path) -> None:
    members = train(data, tmp_path, num_members=2)
    assert members[0].fingerprint != members[1].fingerprint
    for member in members:
        assert member.facts["splits"] == data.provenance["splits"]
        assert member.facts["num_training_rows"] == len(data.ids("teacher_train"))
    assert train(data, tmp_path / "alone")[0].fingerprint == members[0].fingerprint


def test_fine_tuning_only_the_last_layer_keeps_the_rest_bit_for_bit(
    data: LabelledImages, tmp_path: Path
) -> None:
    (given,) = train(data, tmp_path / "first")
    path = tmp_path / "weights.pth"
    torch.save(dict(given.state), path)
    pretrained = {"file": str(path), "trainable_layers": 1}
    (tuned,) = train(data, tmp_path / "second", pretrained=pretrained, seed=1)
    changed = {k for k in given.state if not torch.equal(given.state[k], tuned.state[k])}
    assert changed == {"9.weight", "9.bias"}


def test_a_given_checkpoint_is_used_as_it_is(data: LabelledImages, tmp_path: Path) -> None:
    (trained,) = train(data, tmp_path / "states")
    write_checkpoint(trained, tmp_path / "given")
    adopted = adopt(data, tmp_path / "given")
    assert adopted.fingerprint == trained.fingerprint
    assert adopted.facts["splits"] == data.provenance["splits"]


def test_a_checkpoint_of_other_images_has_no_claim_to_a_clean_test_set(
    data: LabelledImages, tmp_path: Path
) -> None:
    (trained,) = train(data, tmp_path / "states")
    foreign = replace(trained, facts={**trained.facts, "images": "another"})
    write_checkpoint(foreign, tmp_path / "given")
    adopted = adopt(data, tmp_path / "given")
    assert "splits" not in adopted.facts
    assert "images" not in adopted.facts


def test_a_checkpoint_of_another_split_of_these_images_is_refused(
    data: LabelledImages, tmp_path: Path
) -> None:
    (trained,) = train(data, tmp_path / "states")
    leaking = replace(trained, facts={**trained.facts, "splits": "another"})
    write_checkpoint(leaking, tmp_path / "given")
    with pytest.raises(
        StaleArtefactError,
        match=r"teacher.given\[0\]` .*folder=.*may have been trained on their test set",
    ):
        adopt(data, tmp_path / "given")


def test_a_checkpoint_of_other_labels_of_these_images_is_refused(
    data: LabelledImages, tmp_path: Path
) -> None:
    (trained,) = train(data, tmp_path / "states")
    assert trained.facts["labels"] == data.labelled_provenance["labels"]
    write_checkpoint(trained, tmp_path / "given")
    with pytest.raises(StaleArtefactError, match="was trained on other labels of these very image"):
        adopt(relabelled(data), tmp_path / "given")


def test_a_checkpoint_of_other_classes_is_refused(data: LabelledImages, tmp_path: Path) -> None:
    (trained,) = train(data, tmp_path / "states")
    write_checkpoint(replace(trained, class_names=("low", "high", "centre")), tmp_path / "given")
    with pytest.raises(CheckpointError, match="only in the teacher: centre; only in the images"):
        adopt(data, tmp_path / "given")


def test_teacher_and_student_may_differ_in_size(data: LabelledImages, tmp_path: Path) -> None:
    model = {"name": "small_cnn", "arguments": {"channels": [4, 8]}, "input_size": 16}
    (trained,) = train(data, tmp_path, model=model)
    assert trained.preprocessing.shape == (1, 16, 16)
    assert trained.facts["image_shape"] == [1, 8, 8]
    pixels = data.images.take(data.images.example_ids[:3])
    assert build_classifier(trained)(pixels).shape == (3, 3)


def test_a_pretrained_network_of_colours_keeps_its_own_normalisation_for_grey_images(
    data: LabelledImages, tmp_path: Path
) -> None:
    network = build_network("squeezenet1_1", shape=(3, 8, 8), num_classes=5, arguments={})
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    pretrained = Pretrained(file=str(tmp_path / "weights.pth"))
    model = Model(name="squeezenet1_1", input_size=32)
    classifier = initial_model(data, model, pretrained, data.ids("teacher_train"))(0)
    assert classifier.preprocessing == Preprocessing(
        (3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert classifier(data.images.take(data.images.example_ids[:2])).shape == (2, 3)
