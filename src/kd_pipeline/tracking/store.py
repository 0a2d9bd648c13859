"""Where the runs are kept, and the link under which they can be compared."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from kd_pipeline.errors import ParameterError

_SQLITE = "sqlite:///"
_LOCAL_UI = "http://127.0.0.1:5000"
# MLflow's own defaults wait for minutes; a user's own settings win.
_IMPATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Store:
    """A tracking store and the experiment in it."""

    uri: str
    experiment: str
    artifacts: str | None
    """URI of the folder for a new experiment's artifacts; None leaves it to the server."""

    @property
    def public_uri(self) -> str:
        """The URI without a user's name and password, fit for logs and files."""
        if "@" not in self.uri:
            return self.uri
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def locate_store(project: Path, *, uri: str | None = None, experiment: str) -> Store:
    """Find the store: `MLFLOW_TRACKING_URI`, else the given URI, else the project's database.

    A relative sqlite path is meant from the project's root, never from the working directory.
    """
    if not experiment:
        raise ParameterError("mlflow.experiment", "name an experiment", experiment)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or uri or f"{_SQLITE}mlflow.db"
    if not uri.startswith(_SQLITE):
        return Store(uri, experiment, None)
    database = (project / uri.removeprefix(_SQLITE)).absolute()
    return Store(f"{_SQLITE}{database}", experiment, (database.parent / "mlartifacts").as_uri())


_project_store: Store | None = None


def remember_store(store: Store) -> None:
    """Let the workshops of this process know the store that `mlflow.yml` names."""
    global _project_store  # noqa: PLW0603 (one process has one project)
    _project_store = store


def project_store() -> Store:
    """The store that `mlflow.yml` names; before that is read, the one in the working directory."""
    return _project_store or locate_store(Path.cwd(), experiment="kd_pipeline")


def be_impatient() -> None:
    """Set short time-outs for MLflow's requests, unless the user has set them."""
    for name, value in _IMPATIENCE.items():
        os.environ.setdefault(name, value)


def chart_link(store: Store, experiment_id: str, view: str) -> str:
    """The page of MLflow's UI that shows a saved view: the arms of one comparison as charts."""
    base = store.public_uri.rstrip("/") if store.uri.startswith("http") else _LOCAL_UI
    page = f"{base}/#/experiments/{quote(experiment_id)}/runs"
    mode = "workflowType=machine_learning&compareRunsMode=CHART"
    return f"{page}?{mode}&viewStateShareKey={quote(view)}"


def compare_link(store: Store, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page of MLflow's UI that shows these runs side by side."""
    base = store.public_uri.rstrip("/") if store.uri.startswith("http") else _LOCAL_UI
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}"
