"""A project that was moved or copied writes beside its own database, and finds what it had."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from kd_pipeline.tracking.__main__ import main
from kd_pipeline.tracking.moved import follow_project
from kd_pipeline.tracking.registry import read_predictions, register_student
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import locate_store, open_client

PREDICTIONS = pd.DataFrame({"example_id": [0, 1], "label": [0, 1], "predicted": [0, 1]})


def log(project: Path, run: str) -> str:
    """Log a file to a new run of a project's own store; where it is now."""
    sender = Sender(locate_store(project, MLflowParams()))
    sender.open_run(run, tags={"kd.group": run}, time_ms=1)
    sender.log_artifact(run, path="report.md", content=run.encode())
    return sender.run_ids[run]


def read(project: Path, run_id: str) -> str:
    store = locate_store(project, MLflowParams())
    folder = open_client(store).get_run(run_id).info.artifact_uri
    assert folder.startswith((project / "mlartifacts").as_uri())
    return Path(mlflow.artifacts.download_artifacts(f"{folder}/report.md")).read_text()


@pytest.fixture
def project(tmp_path: Path, tracked_project: Path) -> Path:
    """With a database of its own, which is faster copied than made."""
    log(tracked_project, "so that there is a database")
    made = tmp_path / "a project"
    made.mkdir()
    shutil.copy(tracked_project / "mlflow.db", made)
    shutil.copytree(tracked_project / "mlartifacts", made / "mlartifacts")
    return made


def test_after_a_move_new_runs_follow_and_old_runs_and_models_are_found(
    project: Path, onnx_student: Path, student_card: dict[str, Any]
) -> None:
    old = log(project, "old")
    register_student(
        locate_store(project, MLflowParams()),
        onnx_file=onnx_student,
        card=student_card,
        predictions=PREDICTIONS,
        paired_interval=lambda a, b: (0, 0),
    )
    moved = project.rename(project.with_name("100%_moved"))
    new = log(moved, "new")
    assert (read(moved, old), read(moved, new)) == ("old", "new")
    assert not project.exists()
    store = locate_store(moved, MLflowParams())
    assert len(read_predictions(store, "student", "1")) == 2
    dump = "\n".join(sqlite3.connect(moved / "mlflow.db").iterdump())
    assert f"{project.as_uri()}/mlartifacts" not in dump


def test_the_command_that_goes_before_the_pages_of_mlflow_corrects_locations(project: Path) -> None:
    old = log(project, "old")
    moved = project.rename(project.with_name("moved"))
    assert main(["--project", str(moved)]) == 0
    run = mlflow.MlflowClient(f"sqlite:///{moved}/mlflow.db").get_run(old)
    assert run.info.artifact_uri.startswith((moved / "mlartifacts").as_uri())


def test_a_copy_leaves_the_original_alone(project: Path) -> None:
    old = log(project, "old")
    before = sorted((project / "mlartifacts").rglob("*"))
    copied = Path(shutil.copytree(project, project.with_name("copy")))
    new = log(copied, "new")
    assert (read(copied, old), read(copied, new)) == ("old", "new")
    assert sorted((project / "mlartifacts").rglob("*")) == before
    assert read(project, old) == "old"


def test_locations_that_a_user_has_chosen_stay(project: Path, tmp_path: Path) -> None:
    chosen = {(tmp_path / "mlartifacts_elsewhere").as_uri(), "mlflow-artifacts:/7"}
    client = open_client(locate_store(project, MLflowParams()))
    ids = [client.create_experiment(uri, uri) for uri in sorted(chosen)]
    moved = project.rename(project.with_name("moved"))
    client = open_client(locate_store(moved, MLflowParams()))
    assert {client.get_experiment(one).artifact_location for one in ids} == chosen


def test_a_database_that_was_copied_alone_keeps_the_way_to_its_artifacts(
    project: Path, tmp_path: Path
) -> None:
    log(project, "old")
    shutil.copy(project / "mlflow.db", tmp_path)
    follow_project(tmp_path / "mlflow.db", (tmp_path / "mlartifacts").as_uri())
    assert (tmp_path / "mlflow.db").read_bytes() == (project / "mlflow.db").read_bytes()
