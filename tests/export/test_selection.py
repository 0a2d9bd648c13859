"""Which models, which replicate, and which images calibrate."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, ExportError, ParameterError, StaleArtefactError
from kd_pipeline.export.selection import (
    calibration_images,
    check_origin,
    choose_replicates,
    compared,
    learnt_from,
    read_models,
    read_source,
    select_models,
    validation_accuracy,
)
from kd_pipeline.export.settings import ModelExportParams
from kd_pipeline.models.checkpoint import ModelCheckpoint, write_checkpoint
from kd_pipeline.models.settings import GivenCheckpoint

Untrained = Callable[..., ModelCheckpoint]


def test_the_best_replicate_is_that_of_validation(
    data: LabelledImages, students: list[ModelCheckpoint]
) -> None:
    accuracies = [validation_accuracy(student, data) for student in students]
    assert accuracies[0] != accuracies[1]
    best = accuracies.index(max(accuracies))
    chosen = list(choose_replicates(data, {"s": students}, ModelExportParams(replicates="best")))
    assert chosen == [("s", best, max(accuracies), True)]
    both = list(choose_replicates(data, {"s": students}, ModelExportParams(replicates="all")))
    assert [one[1] for one in both] == [0, 1]
    assert [one[3] for one in both] == [best == 0, best == 1]


def test_calibration_images_are_of_the_transfer_set_and_never_of_the_test_set(
    data: LabelledImages,
) -> None:
    everything = calibration_images(data, ModelExportParams(num_calibration_rows=10_000))
    assert torch.equal(everything, data.images.take(data.ids("transfer")))
    test = data.images.take(data.ids("test"))
    assert not any((image == test).flatten(1).all(dim=1).any() for image in everything)


def test_as_many_calibration_images_as_asked_for_and_the_same_each_time(
    data: LabelledImages,
) -> None:
    params = ModelExportParams(num_calibration_rows=7)
    images = calibration_images(data, params)
    assert images.shape == (7, 1, 8, 8)
    assert torch.equal(images, calibration_images(data, params))


def test_without_a_transfer_set_there_is_nothing_to_calibrate_on(data: LabelledImages) -> None:
    splits = data.splits[data.splits["role"] != "transfer"]
    with pytest.raises(ExportError, match="`splits` must have rows of role transfer"):
        calibration_images(LabelledImages(data.images, data.examples, splits), ModelExportParams())


def test_a_model_that_is_not_there_is_refused_with_those_that_are(
    students: list[ModelCheckpoint], tmp_path: Path
) -> None:
    params = ModelExportParams(models=("student_kdd",))
    with pytest.raises(
        ParameterError, match=r"`model_export\.models` must .*'student_kdd'; legal: s"
    ):
        select_models({"s": students}, params)
    write_checkpoint(students[0], tmp_path / "s" / "0")
    (tmp_path / "export").mkdir()
    with pytest.raises(ParameterError, match=r"'student_kdd'; legal: s$"):
        read_models(tmp_path, params)
    assert [
        c.fingerprint for c in read_models(tmp_path, ModelExportParams(models=("s",)))["s"]
    ] == [students[0].fingerprint]


def test_a_teacher_of_imported_logits_has_nothing_to_export() -> None:
    with pytest.raises(CheckpointError, match="must have checkpoints, got none of teacher"):
        select_models({"teacher": []}, ModelExportParams(models=("teacher",)))


@pytest.mark.parametrize("fact", ["images", "splits", "labels"])
def test_a_model_of_other_data_is_refused(
    data: LabelledImages, untrained: Untrained, fact: str
) -> None:
    message = rf"`s\.checkpoints` do not match this run's {fact}"
    with pytest.raises(StaleArtefactError, match=message):
        check_origin(untrained(**{fact: "other"}), data, "s")


def test_a_model_of_other_classes_is_refused(data: LabelledImages, untrained: Untrained) -> None:
    with pytest.raises(CheckpointError, match="class 0 is 'a' where the images have 'low'"):
        check_origin(untrained(class_names=("a", "b", "c")), data, "s")


def test_what_each_model_learnt_from_is_read_off_its_facts(untrained: Untrained) -> None:
    assistant = [untrained(1, teacher=["t"]), untrained(2, teacher=["t"])]
    taught = [untrained(3, teacher=[one.fingerprint for one in assistant])]
    models = {"assistant": assistant, "s": taught, "b": [untrained(4)], "teacher": [untrained(5)]}
    assert learnt_from(models) == {
        "assistant": "teacher",
        "s": "assistant",
        "b": "labels",
        "teacher": "labels",
    }
    assert set(compared(models)) == {"s", "b"}


def test_a_model_without_record_of_its_data_is_exported_with_a_warning(
    data: LabelledImages, untrained: Untrained, caplog: pytest.LogCaptureFixture
) -> None:
    check_origin(untrained(), data, "given")
    assert "`given` has no record of its training data" in caplog.text


def test_any_checkpoint_can_be_given(
    data: LabelledImages, untrained: Untrained, tmp_path: Path
) -> None:
    write_checkpoint(untrained(5), tmp_path / "mine")
    source = GivenCheckpoint(kind="checkpoint", folder=str(tmp_path / "mine"))
    assert read_source(source, data, None)["given"][0].fingerprint == untrained(5).fingerprint
    missing = GivenCheckpoint(kind="checkpoint", folder=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        read_source(missing, data, None)
