"""Where the runs are kept, and links to MLflow's pages that compare them."""

import json
import logging
import os
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from kd_pipeline.errors import KdPipelineError, ParameterError, TrackingStoreError
from kd_pipeline.tracking.moved import ARTIFACTS, follow_project
from kd_pipeline.tracking.settings import MLflowParams

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_MAX_REASON = 300
# MLflow's defaults add up to minutes. A request that is repeated may be carried out twice: what
# fails is kept by the journal instead, and sent in a way that makes no run a second time.
_SHORT_TIMEOUTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Store:
    """A tracking store and the experiment in it."""

    uri: str
    experiment: str
    artifacts: str | None
    """URI of a new experiment's folder of artifacts; None where the server chooses it."""
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    """User name and password for a server, kept out of the URI: MLflow's errors quote that."""
    max_wait_seconds: float | None = None
    """For a registration, and for the fetching of a model; None waits without end."""

    @property
    def public_uri(self) -> str:
        """The URI without user name and password, for logs and files."""
        return redact(self.uri)


def locate_store(project: Path, params: MLflowParams) -> Store:
    """Find the store: `MLFLOW_TRACKING_URI`, else the given URI, else the project's database.

    A relative sqlite path starts from the project's root, not from the working directory.
    """
    if not params.experiment:
        raise ParameterError("mlflow.experiment", "name an experiment", params.experiment)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or params.tracking_uri or f"{_SQLITE}mlflow.db"
    if uri.startswith("http"):
        plain, credentials = _split_credentials(uri)
        return Store(plain, params.experiment, None, credentials, params.max_wait_seconds)
    if not uri.startswith(_SQLITE):
        return Store(uri, params.experiment, None, max_wait_seconds=params.max_wait_seconds)
    database = (project / uri.removeprefix(_SQLITE)).absolute()
    artifacts = (database.parent / ARTIFACTS).as_uri()
    uri = f"{_SQLITE}{database}"
    return Store(uri, params.experiment, artifacts, max_wait_seconds=params.max_wait_seconds)


def redact(text: str) -> str:
    """A text with the user names and passwords taken out of all URIs in it."""
    return re.sub(r"(?<=://)[^/\s]+@", "", text)


def reason_of(error: Exception) -> str:
    """The first line of an error without passwords; an error of this project is not shortened."""
    line = next(iter(redact(str(error)).splitlines()), "") or type(error).__name__
    return line if isinstance(error, KdPipelineError) else line[:_MAX_REASON]


def _split_credentials(uri: str) -> tuple[str, tuple[str, str] | None]:
    parts = urlsplit(uri)
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if "@" in plain:
        rule = "have / as %2F, ? as %3F and # as %23 in its password"
        raise ParameterError("mlflow.tracking_uri", rule, "...@" + plain.rpartition("@")[2])
    if not parts.username or not parts.password:
        return uri, None
    return plain, (unquote(parts.username), unquote(parts.password))


def adopt_folder(store: Store) -> None:
    """Correct the locations in the project's own database if its folder was moved or copied.

    Raises:
        TrackingStoreError: If it cannot be read.
    """
    if store.artifacts is None:
        return
    try:
        follow_project(Path(store.uri.removeprefix(_SQLITE)), store.artifacts)
    except sqlite3.Error as error:
        raise TrackingStoreError(f"the database {store.public_uri}: {error}") from error


def open_client(store: Store) -> "MlflowClient":
    """A client of the store's runs and of its registry, with short time-outs.

    The locations in a project's own database are those of the folder that it now lies in.

    Raises:
        TrackingStoreError: If the database is of another version of MLflow.
    """
    # MLflow takes these from environment variables only; time-outs that the user has set stay.
    for name, value in _SHORT_TIMEOUTS.items():
        os.environ.setdefault(name, value)
    if store.credentials is not None:
        user, password = store.credentials
        os.environ |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    import mlflow

    # They log every table that is made and every run that is closed.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    adopt_folder(store)
    try:
        return mlflow.MlflowClient(store.uri, registry_uri=store.uri)
    except mlflow.MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise
        raise TrackingStoreError(
            "another version of MLflow has made the database: copy it, then run "
            f"`mlflow db upgrade {store.public_uri}`"
        ) from error


def chart_link(store: Store, experiment_id: str, view: str) -> str:
    """MLflow's page of charts with a saved view."""
    mode = "workflowType=machine_learning&compareRunsMode=CHART"
    page = f"experiments/{quote(experiment_id)}/runs?{mode}&viewStateShareKey={quote(view)}"
    return f"{_ui(store)}/#/{page}"


def compare_link(store: Store, experiment_id: str, run_ids: Sequence[str]) -> str:
    """MLflow's page with these runs side by side."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    return f"{_ui(store)}/#/compare-runs?runs={runs}&experiments={experiments}"


def _ui(store: Store) -> str:
    return store.public_uri.rstrip("/") if store.uri.startswith("http") else "http://127.0.0.1:5000"
