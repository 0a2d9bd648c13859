"""What deleted runs leave behind is listed, and removed only when that is confirmed."""

import shutil
from pathlib import Path

import mlflow
import pytest

from kd_pipeline.tracking.clean import main
from kd_pipeline.tracking.fluent import fluent_uri
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import locate_store, open_client


@pytest.fixture
def project(tmp_path: Path, tracked_project: Path) -> Path:
    open_client(locate_store(tracked_project, MLflowParams()))
    shutil.copy(tracked_project / "mlflow.db", tmp_path)
    return tmp_path


def test_only_what_no_run_needs_is_listed_and_then_removed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = locate_store(project, MLflowParams(experiment="clean"))
    sender, client = Sender(store), open_client(store)
    models = {}
    for run in ("kept", "deleted", "registered"):
        sender.open_run(run, tags={"kd.group": "g"}, time_ms=1)
        sender.log_artifact(run, path="report.md", content=b"0" * 200_000)
        run_id, name = sender.run_ids[run], f"model of {run}"
        models[run] = client.create_logged_model(sender.experiment_id, name, run_id).model_id
    client.create_registered_model("student")
    with fluent_uri(store.uri):
        client.create_model_version("student", f"models:/{models['registered']}")
    for run in ("deleted", "registered"):
        client.delete_run(sender.run_ids[run])
    gone = project / "mlartifacts" / ("0" * 32)
    gone.mkdir()
    mine = project / "mlartifacts" / "my notes"
    mine.mkdir()
    assert main(["--project", str(project)]) == 0
    listed = capsys.readouterr().out
    assert f"run deleted ({sender.run_ids['deleted']}): 0.2 MB\n" in listed
    assert f"model model of deleted ({models['deleted']})\n" in listed
    assert f"folder {gone.name}: 0.0 MB\n" in listed
    assert len(listed.splitlines()) == 5  # With the registered one's run, and what to do.
    assert "CONFIRM=yes" in listed
    assert gone.is_dir()
    assert main(["--project", str(project), "--confirm", "yes"]) == 0
    assert capsys.readouterr().out.endswith("Removed.\n")
    left = {path.name for path in (project / "mlartifacts").iterdir()}
    assert left == {sender.run_ids["kept"], "my notes"}
    assert client.get_run(sender.run_ids["kept"]).info.status == "RUNNING"
    for model in ("kept", "registered"):
        assert client.get_logged_model(models[model]).model_id == models[model]
    with pytest.raises(mlflow.MlflowException):
        client.get_run(sender.run_ids["deleted"])
    assert main(["--project", str(project)]) == 0
    assert capsys.readouterr().out == "Nothing is left of deleted runs.\n"


def test_folders_may_be_of_another_database_beside_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(project / "mlflow.db", project / "mine.db")
    of_mine = project / "mlartifacts" / ("1" * 32)
    of_mine.mkdir(parents=True)
    assert main(["--project", str(project), "--confirm", "yes"]) == 0
    assert capsys.readouterr().out == "Nothing is left of deleted runs.\n"
    assert of_mine.is_dir()


def test_a_server_is_left_to_its_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:s3cret@tracking:5000")
    assert main(["--project", str(tmp_path), "--confirm", "yes"]) == 1
    said = capsys.readouterr().err
    assert "http://tracking:5000 is no database of this project" in said
