"""Where runs are kept, and the link that compares them."""

import base64
import shutil
import sqlite3
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from kd_pipeline.errors import ParameterError
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, compare_link, locate_store, open_client, redact
from kd_pipeline.tracking.unsent import Unsent


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
    assert (store.uri, store.experiment, store.artifacts) == ("http://tracking:5000", "e", None)


@pytest.mark.parametrize("uri", [None, "http://tracking:5000", "postgresql://tracking/runs"])
def test_every_kind_of_store_is_waited_for_as_long_as_set(tmp_path: Path, uri: str | None) -> None:
    params = MLflowParams(tracking_uri=uri, max_wait_seconds=7)
    assert locate_store(tmp_path, params).max_wait_seconds == 7


def test_an_experiment_must_have_a_name(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"`mlflow.experiment` must name an experiment"):
        locate_store(tmp_path, MLflowParams(experiment=""))


SECRET = "http://ada:s3cret%40@127.0.0.1:9"


def locate(tmp_path: Path, uri: str) -> Store:
    return locate_store(tmp_path, MLflowParams(tracking_uri=uri, experiment="e"))


def test_a_password_is_in_no_error_and_no_text_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "restored afterwards")
    store = locate(tmp_path, SECRET)
    assert store.credentials == ("ada", "s3cret@")
    with pytest.raises(Exception, match="refused") as raised:
        open_client(store).get_experiment("1")
    chain = "".join(traceback.format_exception(raised.value))
    link = compare_link(store, "1", ["a"])
    assert "s3cret" not in f"{chain} {store} {store.public_uri} {link}"


def test_a_server_gets_the_password(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "of an earlier run")
    uri = server.uri.replace("//", "//ada:s3cret%40@")
    open_client(locate(tmp_path, uri)).get_experiment("1")
    assert base64.b64decode(server.authorization.removeprefix("Basic ")) == b"ada:s3cret@"


@pytest.mark.parametrize("password", ["s3/cret", "s3#cret", "s3?cret"])
def test_a_password_that_ends_the_address_is_refused_and_not_shown(
    tmp_path: Path, password: str
) -> None:
    with pytest.raises(ParameterError, match=r"`mlflow\.tracking_uri` must have") as raised:
        locate(tmp_path, f"http://ada:{password}@tracking:5000")
    assert "s3" not in str(raised.value)
    assert "cret" not in str(raised.value)


def test_user_info_is_taken_out_of_every_address_in_a_text() -> None:
    text = "no http://a:b@c:5/x, no postgresql://me@db/m; models:/teacher@champion and a@b stay"
    expected = "no http://c:5/x, no postgresql://db/m; models:/teacher@champion and a@b stay"
    assert redact(text) == expected
    assert redact("s3://key:pa@ss@bucket/a@b") == "s3://bucket/a@b"


def test_link_opens_the_runs_side_by_side() -> None:
    link = compare_link(Store("sqlite:////p/mlflow.db", "e", None), "1", ["a", "b"])
    assert " " not in link
    assert '"' not in link
    page = 'http://127.0.0.1:5000/#/compare-runs?runs=["a","b"]&experiments=["1"]'
    assert unquote(link) == page


def test_a_database_of_another_version_comes_with_the_whole_remedy(
    store: Store, tracked_project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_client(store)
    folder = tmp_path / ("a folder of a long name " * 6) / "in one more"
    folder.mkdir(parents=True)
    database = Path(shutil.copy(tracked_project / "mlflow.db", folder))
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    old = locate_store(folder, MLflowParams())
    journal = Journal(Sender(old), Unsent(tmp_path / "unsent-a.jsonl", old), max_wait_seconds=60)
    journal.put(Sender.open_run, "a", tags={"kd.group": "g"}, time_ms=1)
    journal.close()
    assert f"copy it, then run `mlflow db upgrade sqlite:///{database}`" in caplog.text
    assert "cannot be reached" not in caplog.text
