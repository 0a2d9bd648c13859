"""What cannot end well is refused before anything trains, and the message gives the reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kd_pipeline.config import Computing
from kd_pipeline.datasets.checked import CheckedParquetDataset
from kd_pipeline.datasets.images import ImageSetDataset
from kd_pipeline.errors import (
    CheckpointError,
    DataError,
    KdPipelineError,
    ParameterError,
    StaleArtefactError,
)
from kd_pipeline.models.checkpoint import build_classifier, read_checkpoint, write_checkpoint
from kd_pipeline.models.predict import predict_batches

Run = Callable[..., Any]

FLIPS = {"transforms": [{"name": "horizontal_flip", "probability": 0.5}]}


@pytest.mark.parametrize(
    ("stage", "changes", "what"),
    [
        ("teacher_training", {"teacher": {"seed": 1}}, "teacher"),
        ("transfer_split", {"transfer_split": {"seed": 1}}, "splits"),
        ("data_ingest", {"data_ingest": {"image_size": 4}}, "images"),
        (None, {"views": FLIPS}, "view policy"),
        (None, {"views": {**FLIPS, "num_views": 2}}, "number of views"),
    ],
)
def test_stale_soft_targets_are_refused_before_any_arm_trains(
    stage: str | None, changes: dict[str, Any], what: str, finished: Any, run_here: Run
) -> None:
    """The design's eighth mistake: a new teacher silently served the old teacher's cache."""
    if stage is not None:
        assert run_here(finished, [stage], params=changes).error is None
        changes = {}
    outcome = run_here(finished, ["student_distillation"], params=changes, stop_at_training=True)
    message = outcome.refused(StaleArtefactError)
    assert f"this run's {what}" in message or f" and {what} (" in message
    assert "kedro run --pipelines=soft_target_caching" in message


def test_soft_targets_made_anew_are_accepted(finished: Any, run_here: Run) -> None:
    assert run_here(finished, ["teacher_training"], params={"teacher": {"seed": 1}}).error is None
    params = {"student": {"num_replicates": 1, "training": {"num_epochs": 1}}}
    stages = ["soft_target_caching", "student_distillation"]
    outcome = run_here(finished, stages, params=params)
    assert outcome.error is None
    assert outcome.trained == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "names",
    [tuple("abcdefghij"), tuple("012345678"), tuple("012345677")],
    ids=["other names", "one class less", "one class twice"],
)
def test_a_given_teacher_of_other_classes_is_refused_before_anything_trains(
    names: tuple[str, ...], finished: Any, tmp_path: Path, run_here: Run
) -> None:
    """The design's tenth mistake."""
    trained = read_checkpoint(finished.data / "06_models/teacher/0")
    write_checkpoint(replace(trained, class_names=names), tmp_path / "given")
    params = {"teacher": {"given": [{"kind": "checkpoint", "folder": str(tmp_path / "given")}]}}
    outcome = run_here(finished, params=params, stop_at_training=True)
    message = outcome.refused(CheckpointError)
    assert "`teacher.given[0]` must have the images' classes" in message


def test_a_given_teacher_is_used_as_it_is(finished: Any, tmp_path: Path, run_here: Run) -> None:
    trained = read_checkpoint(finished.data / "06_models/teacher/0")
    write_checkpoint(trained, tmp_path / "given")
    params = {"teacher": {"given": [{"kind": "checkpoint", "folder": str(tmp_path / "given")}]}}
    outcome = run_here(finished, ["teacher_training"], params=params)
    assert outcome.error is None
    assert outcome.trained == []
    used = read_checkpoint(finished.data / "06_models/teacher/0")
    assert used.fingerprint == trained.fingerprint


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"teacher": {"training": {"optimiser": {"name": "AdamWW"}}}}, "optimiser.name"),
        ({"teacher": {"training": {"schedule": {"name": "cosin"}}}}, "schedule.name"),
        ({"teacher": {"model": {"name": "small_cn"}}}, "model.name"),
        ({"teacher": {"model": {"arguments": {"chanels": [8]}}}}, "model.arguments"),
        ({"teacher": {"pretrained": {"file": "no.pth"}}}, "teacher.pretrained.file"),
        ({"student": {"training": {"optimiser": {"arguments": {"rate": 1}}}}}, "optimiser"),
        ({"student": {"model": {"name": "mlpp"}}}, "model.name"),
        ({"student_baseline": {"soft_weight": 0.5}}, "soft_weight"),
        ({"student_smoothed": {"soft_weight": 0.5}}, "soft_weight"),
        ({"student_pseudo": {"temperature": 4.0}}, "temperature"),
        ({"student_kd": {"soft_loss": "logit_mse", "temperature": 4.0}}, "temperature"),
        ({"student_kd": {"model": {"name": "mlp"}}}, "student_kd.model"),
        ({"transfer_split": {"teacher": {"labels_per_class": 10**6}}}, "labels_per_class"),
        ({"transfer_split": {"transfer": {"excluded_classes": ["cat"]}}}, "excluded_classes"),
    ],
)
def test_names_and_settings_that_cannot_work_are_refused_before_anything_trains(
    params: dict[str, Any], name: str, finished: Any, run_here: Run
) -> None:
    outcome = run_here(finished, params=params, stop_at_training=True)
    assert name in outcome.refused(KdPipelineError)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"student": {"num_replicates": 0}}, "num_replicates"),
        ({"student_kd": {"temperature": 0}}, "temperature"),
        ({"studnet": {"num_replicates": 1}}, "studnet"),
        ({"num_replicates": 1}, "num_replicates"),
    ],
)
def test_values_and_names_of_blocks_are_refused_before_the_first_node(
    params: dict[str, Any], name: str, fresh: Any, run_here: Run
) -> None:
    """Kedro skips a block that no node asks for: `--params=studnet.seed=1` would do nothing."""
    outcome = run_here(fresh, params=params, tracked=True, to_nodes=["split_transfer_set"])
    assert outcome.error is not None, "it was ignored"
    assert name in str(outcome.error)
    assert [path.name for path in fresh.data.iterdir()] in ([], [".run.lock"])


def test_the_command_line_names_the_block_and_the_key(fresh: Any) -> None:
    done = fresh.command("kedro run --env=smoke --params=student_kd.temperature=0")
    assert done.returncode == 1
    *_, hint, last = done.stderr.splitlines()
    assert "KD_TRACEBACK" in hint
    assert last.startswith("SettingsError: `student_kd.temperature`, ")
    assert "Traceback" not in done.stderr
    assert "pydantic" not in done.stderr
    assert not (fresh.path / "mlflow.db").exists()


def test_an_unknown_pipeline_is_one_line_with_the_nearest_names(fresh: Any) -> None:
    done = fresh.command("kedro run --pipelines=distil")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: Failed to find the pipeline named 'distil'.")
    assert "Did you mean one of these instead? distill " in last
    assert "Traceback" not in done.stderr


def make_tree(root: Path, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            shade = np.full((8, 8), 10 * number, dtype=np.uint8)
            Image.fromarray(shade).save(root / name / f"{number}.png")


ALL_LABELS = {"transfer_split": {"teacher": {"labels_per_class": "all"}}}


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({}, {}, "my_images"),
        ({"a": 3}, {"a": 3}, "at least 2 classes"),
        ({"a": 3, "b": 0}, {"a": 3}, "train/b"),
        ({"a": 3, "b": 3}, {"a": 1, "b": 1, "c": 1}, "more classes in test than in train: c"),
    ],
    ids=["missing folder", "one class", "empty class", "more classes in test"],
)
def test_images_that_cannot_be_used_are_refused_first(
    train: dict[str, int], test: dict[str, int], message: str, fresh: Any, run_here: Run
) -> None:
    root = fresh.data / "01_raw/my_images"
    make_tree(root / "train", train)
    make_tree(root / "test", test)
    outcome = run_here(fresh, env="image_folder", params=ALL_LABELS)
    assert message in outcome.refused(KdPipelineError)


def test_the_template_is_refused_until_a_choice_is_made(fresh: Any, run_here: Run) -> None:
    outcome = run_here(fresh, env="image_folder")
    assert "--params=transfer_split.teacher.labels_per_class=all" in str(outcome.error)


def test_own_images_in_a_folder_work(fresh: Any, run_here: Run) -> None:
    """The template and the one choice that it asks for, down to the transfer set."""
    root = fresh.data / "01_raw/my_images"
    make_tree(root / "train", {"dark": 20, "light": 20})
    make_tree(root / "test", {"dark": 3, "light": 3})
    choices = {"params": ALL_LABELS, "to_nodes": ["split_transfer_set"]}
    assert run_here(fresh, env="image_folder", **choices).error is None
    assert (fresh.data / "03_primary/splits.parquet").is_file()


def test_a_data_folder_that_cannot_be_written_is_refused(fresh: Any, run_here: Run) -> None:
    fresh.data.rmdir()
    fresh.data.write_text("in the way")
    outcome = run_here(fresh, tracked=True)
    assert "must be writable" in outcome.refused(DataError)
    assert not (fresh.path / "mlflow.db").exists()


def test_models_of_other_splits_are_not_measured(finished: Any, run_here: Run) -> None:
    params = {"transfer_split": {"seed": 1}}
    assert run_here(finished, ["transfer_split"], params=params).error is None
    message = run_here(finished, ["evaluation"]).refused(StaleArtefactError)
    assert "splits" in message


@pytest.mark.parametrize("by", ["hand", "data_ingest"])
def test_models_of_other_labels_are_not_measured(by: str, finished: Any, run_here: Run) -> None:
    """Two test images change their classes: neither images nor splits are others."""
    file = finished.data / "02_intermediate/examples.parquet"
    examples, tested = pd.read_parquet(file), finished_splits(finished).query("role == 'test'")
    first, *others = examples.index[examples["example_id"].isin(tested["example_id"])]
    other = next(row for row in others if examples["label"][row] != examples["label"][first])
    columns = ["label", "class_name"]
    examples.loc[[first, other], columns] = examples.loc[[other, first], columns].to_numpy()
    if by == "hand":
        examples.to_parquet(file)
        message = run_here(finished, ["evaluation"]).refused(DataError)
        assert f"{file} is not as it was written" in message
        assert message.endswith("run `kedro run --pipelines=data_ingest` again")
    else:
        CheckedParquetDataset(filepath=str(file)).save(examples)
        message = run_here(finished, ["evaluation"]).refused(StaleArtefactError)
        assert "`teacher.checkpoints[0]` do not match this run's labels" in message
        outcome = run_here(finished, ["student_distillation"], stop_at_training=True)
        message = outcome.refused(StaleArtefactError)
        assert "`teacher.card` do not match this run's labels" in message
        assert message.endswith("--from-nodes=teacher.train_teacher makes it anew")


def test_pixels_that_were_changed_after_caching_are_refused(finished: Any, run_here: Run) -> None:
    file = finished.data / "02_intermediate/images/pixels.npy"
    pixels = np.load(file)
    np.save(file, pixels[::-1])
    outcome = run_here(finished, ["student_distillation"], stop_at_training=True)
    assert "the checksum of pixels.npy differs" in outcome.refused(DataError)


@pytest.mark.parametrize("damage", ["gone", "cut"])
@pytest.mark.parametrize(
    ("place", "maker"),
    [
        ("02_intermediate/examples.parquet", "data_ingest"),
        ("03_primary/splits.parquet", "transfer_split"),
    ],
)
def test_tables_that_are_missing_or_cut_are_refused_in_our_words(
    place: str, maker: str, damage: str, finished: Any, run_here: Run
) -> None:
    file = finished.data / place
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    outcome = run_here(finished, ["student_distillation"], stop_at_training=True)
    message = outcome.refused(DataError)
    assert message.startswith(f"{file} is {'missing' if damage == 'gone' else 'not as it was'}")
    assert f"`kedro run --pipelines={maker}`" in message


def test_the_refusal_of_missing_soft_targets_names_their_stage(
    finished: Any, run_here: Run
) -> None:
    (finished.data / "05_model_input/soft_targets/manifest.json").unlink()
    outcome = run_here(finished, ["student_distillation"], stop_at_training=True)
    assert "soft_target_caching" in outcome.refused(KdPipelineError)


def imported(finished: Any, folder: Path, role: str) -> dict[str, Any]:
    """The finished run's own teacher, as logits computed elsewhere for one role."""
    ids = finished_splits(finished).query("role == @role")["example_id"].sort_values().to_numpy()
    images = ImageSetDataset(filepath=str(finished.data / "02_intermediate/images")).load()
    teacher = read_checkpoint(finished.data / "06_models/teacher/0")
    logits = predict_batches(build_classifier(teacher), [images.take(ids)], Computing()).numpy()
    names = np.array(images.class_names)
    np.savez(folder / "logits.npz", example_ids=ids, logits=logits, class_names=names)
    return {"teacher": {"given": [{"kind": "logits", "file": str(folder / "logits.npz")}]}}


def finished_splits(finished: Any) -> pd.DataFrame:
    return pd.read_parquet(finished.data / "03_primary/splits.parquet")


@pytest.mark.parametrize(
    ("role", "changes", "kind", "message"),
    [
        ("transfer", {"views": FLIPS}, ParameterError, "`views.transforms` must be empty"),
        ("validation", {}, DataError, "must cover the transfer set"),
    ],
)
def test_imported_logits_that_cannot_teach_are_refused_before_anything_trains(
    role: str,
    changes: dict[str, Any],
    kind: type[KdPipelineError],
    message: str,
    finished: Any,
    tmp_path: Path,
    run_here: Run,
) -> None:
    params = {**imported(finished, tmp_path, role), **changes}
    outcome = run_here(finished, params=params, stop_at_training=True)
    assert message in outcome.refused(kind)


def test_students_learn_from_imported_logits_and_the_report_names_what_is_missing(
    finished: Any, tmp_path: Path, run_here: Run
) -> None:
    params = {
        **imported(finished, tmp_path, "transfer"),
        "student": {"num_replicates": 1, "training": {"num_epochs": 1}},
    }
    outcome = run_here(finished, params=params, to_nodes=["write_report"])
    assert outcome.error is None
    comparison = json.loads((finished.data / "08_reporting/comparison.json").read_text())
    assert comparison["teacher"] is None
    assert set(comparison["arms"]) >= {"student_baseline", "student_kd"}
    report = (finished.data / "08_reporting/report.md").read_text(encoding="utf-8")
    assert "imported and do not cover the test set" in report
