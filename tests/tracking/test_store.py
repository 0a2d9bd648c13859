"""Where runs are kept, and the link that compares them."""

from pathlib import Path
from urllib.parse import unquote

import pytest

from kd_pipeline.errors import ParameterError
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, compare_link, locate_store


def test_default_is_a_database_at_the_root_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    store = locate_store(tmp_path, MLflowParams())
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.artifacts == (tmp_path / "mlartifacts").as_uri()


def test_relative_database_is_meant_from_the_root(tmp_path: Path) -> None:
    store = locate_store(
        tmp_path, MLflowParams(tracking_uri="sqlite:///runs/all.db", experiment="e")
    )
    assert store.uri == f"sqlite:///{tmp_path}/runs/all.db"
    assert store.artifacts == (tmp_path / "runs" / "mlartifacts").as_uri()


def test_environment_overrides_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    store = locate_store(tmp_path, MLflowParams(tracking_uri="sqlite:///mlflow.db", experiment="e"))
    assert store == Store("http://tracking:5000", "e", None)


def test_an_experiment_must_have_a_name(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"`mlflow.experiment` must name an experiment"):
        locate_store(tmp_path, MLflowParams(experiment=""))


def test_password_stays_out_of_logs_and_links() -> None:
    store = Store("https://ada:secret@tracking:5000/team", "e", None)
    assert store.public_uri == "https://tracking:5000/team"
    assert "secret" not in compare_link(store, "1", ["a"])


def test_link_opens_the_runs_side_by_side() -> None:
    link = compare_link(Store("sqlite:////p/mlflow.db", "e", None), "1", ["a", "b"])
    assert " " not in link
    assert '"' not in link
    page = 'http://127.0.0.1:5000/#/compare-runs?runs=["a","b"]&experiments=["1"]'
    assert unquote(link) == page
