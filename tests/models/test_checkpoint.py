"""Checkpoints: what is written is what is read, and nothing is adapted in silence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    check_classes,
    count_costs,
    count_macs,
    count_parameters,
    read_checkpoint,
    snapshot,
    write_checkpoint,
)
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model

PREPROCESSING = Preprocessing((1, 8, 8), (0.3,), (0.2,))


def checkpoint(seed: int = 0) -> ModelCheckpoint:
    model = Model(name="small_cnn", arguments={"channels": [4, 8]})
    classifier = build_untrained(model, PREPROCESSING, num_classes=3, seed=seed)
    return snapshot(classifier, model, class_names=("a", "b", "c"), facts={"replicate": 0})


def test_a_checkpoint_predicts_alike_after_a_round_trip(tmp_path: Path) -> None:
    original = checkpoint()
    write_checkpoint(original, tmp_path / "model")
    again = read_checkpoint(tmp_path / "model")
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert again.fingerprint == original.fingerprint
    assert again.facts == original.facts
    assert again.preprocessing == PREPROCESSING
    assert torch.equal(build_classifier(again)(pixels), build_classifier(original)(pixels))


def test_no_pickle_is_written(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(), tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["model.json", "model.safetensors"]
    json.loads((tmp_path / "model" / "model.json").read_text())


def test_the_fingerprint_sees_everything_but_the_facts() -> None:
    original = checkpoint()
    assert replace(original, facts={"other": 1}).fingerprint == original.fingerprint
    others = [
        checkpoint(seed=1),
        replace(original, class_names=("a", "c", "b")),
        replace(original, preprocessing=Preprocessing((1, 8, 8), (0.3,), (0.21,))),
        replace(original, arguments={"channels": [4, 8], "dropout": 0.1}),
    ]
    assert len({original.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: its fingerprint differs"):
        read_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_or_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    write_checkpoint(checkpoint(), tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(CheckpointError, match="no readable checkpoint in"):
        read_checkpoint(tmp_path / "model")
    path.unlink()
    with pytest.raises(CheckpointError, match="no readable checkpoint in"):
        read_checkpoint(tmp_path / "model")


def test_a_changed_fact_is_found(tmp_path: Path) -> None:
    """The fingerprint leaves the facts out: whose images, labels and teacher they were."""
    write_checkpoint(checkpoint(), tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(path.read_text().replace('"replicate": 0', '"replicate": 4'))
    with pytest.raises(CheckpointError, match=r"its checksum differs.*; train it again"):
        read_checkpoint(tmp_path / "model")


def test_all_files_may_be_read_by_the_same_users(tmp_path: Path) -> None:
    both = replace(checkpoint(), quantised_state=checkpoint(seed=1).state)
    write_checkpoint(both, tmp_path / "model")
    files = list((tmp_path / "model").iterdir())
    assert len(files) == 3
    assert len({file.stat().st_mode for file in files}) == 1


def test_weights_of_another_head_are_refused_not_reinitialised() -> None:
    with pytest.raises(CheckpointError, match="do not fit small_cnn with 4 classes"):
        build_classifier(replace(checkpoint(), class_names=("a", "b", "c", "d")))


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("a", "b"), "3 classes where the images have 2"),
        (("a", "c", "b"), "class 1 is 'b' where the images have 'c'"),
    ],
)
def test_classes_are_matched_by_name_and_order(names: tuple[str, ...], difference: str) -> None:
    with pytest.raises(CheckpointError, match=difference):
        check_classes(checkpoint(), names, name="teacher.checkpoints")


def test_a_rebuilt_classifier_is_in_eval_mode_and_holds_nothing_but_its_network() -> None:
    classifier = build_classifier(checkpoint())
    assert not any(module.training for module in classifier.modules())
    assert set(checkpoint().state) == set(classifier.network.state_dict())


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first = checkpoint(3)
    torch.manual_seed(999)
    torch.rand(10)
    assert checkpoint(3).fingerprint == first.fingerprint != checkpoint(4).fingerprint


def test_costs_match_values_worked_by_hand() -> None:
    model = Model(name="mlp", arguments={"hidden": [32]})
    classifier = build_untrained(model, PREPROCESSING, num_classes=10, seed=0)
    num_parameters = 64 * 32 + 32 + 32 * 10 + 10
    assert count_parameters(classifier.network) == num_parameters
    assert count_macs(classifier) == 64 * 32 + 32 * 10
    assert count_costs(classifier) == {
        "model/parameters": num_parameters,
        "model/macs": 64 * 32 + 32 * 10,
        "model/size_bytes": 4 * num_parameters,
    }


def test_a_model_of_its_own_input_size_takes_images_of_any() -> None:
    model = Model(name="mlp", arguments={"hidden": []}, input_size=4)
    classifier = build_untrained(model, PREPROCESSING, num_classes=2, seed=0)
    assert classifier.preprocessing.shape == (1, 4, 4)
    assert classifier(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 2)


def test_weights_fine_tuned_for_int8_lie_beside_the_float_ones(tmp_path: Path) -> None:
    plain, other = checkpoint(), checkpoint(seed=1)
    both = replace(plain, quantised_state=other.state)
    assert both.fingerprint not in {plain.fingerprint, other.fingerprint}
    assert replace(both, quantised_state=checkpoint(seed=2).state).fingerprint != both.fingerprint
    assert replace(both, quantised_state=None).fingerprint == plain.fingerprint
    write_checkpoint(both, tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["model.json", "model.safetensors", "quantised.safetensors"]
    again = read_checkpoint(tmp_path / "model")
    assert again.fingerprint == both.fingerprint
    assert again.quantised_state is not None
    tuned = replace(again, state=again.quantised_state, quantised_state=None)
    assert tuned.fingerprint == other.fingerprint
    (tmp_path / "model" / "quantised.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is damaged: its fingerprint differs"):
        read_checkpoint(tmp_path / "model")
