"""Carries operations out against an MLflow store."""

import json
import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_pipeline.tracking.chart_view import TAG_PREFIX, group_filter, runs_filter, view_tag
from kd_pipeline.tracking.operations import (
    CloseDeadRuns,
    CloseRun,
    DatasetFacts,
    LogArtifact,
    LogInputs,
    LogMetrics,
    LogModel,
    LogParams,
    OpenRun,
    Operation,
    Point,
    SaveView,
    SetTags,
)
from kd_pipeline.tracking.store import Store, be_impatient

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

# MLflow's own limits for one call.
_MAX_POINTS = 1000
_MAX_PARAMS = 100
_MAX_DIGEST = 36


class Sender:
    """Sends operations one at a time; any failure is raised. Use it from one thread."""

    def __init__(self, store: Store, run_ids: dict[str, str] | None = None) -> None:
        """Remember the store; it is opened, and mlflow imported, by the first operation.

        Args:
            store: Where the runs are kept.
            run_ids: Runs that exist already, by key.
        """
        self.store = store
        self.experiment_id = ""
        self.run_ids = dict(run_ids or {})
        self.groups: dict[str, str] = {}
        """`kd.group` of the runs, by key."""
        self._model_ids: dict[str, str] = {}
        self._opened: MlflowClient | None = None

    def send(self, operation: Operation) -> None:
        """Carry one operation out."""
        client = self._client()
        match operation:
            case OpenRun():
                self._open_run(client, operation)
            case CloseRun(run, status, time_ms):
                client.set_terminated(self.run_ids[run], status, end_time=time_ms)
            case CloseDeadRuns():
                self._close_dead_runs(client)
            case SaveView(_, key, models):
                value = view_tag(self._filter_for(models))
                client.set_experiment_tag(self.experiment_id, f"{TAG_PREFIX}{key}", value)
            case _:
                self._log(client, operation)

    def _log(self, client: "MlflowClient", operation: Operation) -> None:
        match operation:
            case LogParams(run, params):
                self._log_params(client, self.run_ids[run], dict(params))
            case LogMetrics(run, points):
                self._log_metrics(client, run, points)
            case SetTags(run, tags):
                self._set_tags(client, self.run_ids[run], dict(tags))
            case LogInputs(run, datasets):
                inputs = [_dataset_input(facts) for facts in datasets]
                client.log_inputs(self.run_ids[run], datasets=inputs)
            case LogArtifact(run, path, content):
                _log_artifact(client, self.run_ids[run], Path(path), content)
            case LogModel():
                self._log_model(operation)

    def _filter_for(self, models: Sequence[str]) -> str:
        """By group where all came from one, which reads better than a list of ids."""
        known = [model for model in models if model in self.run_ids]
        run_ids = [self.run_ids[model] for model in known]
        groups = {self.groups.get(model, "") for model in known} or {""}
        group = groups.pop()
        return runs_filter(run_ids) if groups or not group else group_filter(group)

    def is_reachable(self) -> bool:
        """Whether the store answers at all."""
        try:
            self._client().get_experiment(self.experiment_id)
        except Exception:  # Of whatever kind: mlflow, requests, sqlalchemy or a missing package.
            return False
        return True

    def _client(self) -> "MlflowClient":
        if self._opened is None:
            be_impatient()
            import mlflow

            # It announces every table it makes, run it closes and link it knows.
            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.WARNING)
            client = mlflow.MlflowClient(self.store.uri, registry_uri=self.store.uri)
            self.experiment_id = _find_experiment(client, self.store)
            self._opened = client
        return self._opened

    def _open_run(self, client: "MlflowClient", operation: OpenRun) -> None:
        if operation.find and (found := self._find_run(client, operation.tags)):
            self.run_ids[operation.run] = found.info.run_id
            self.groups[operation.run] = found.data.tags.get("kd.group", "")
            if found.outputs and found.outputs.model_outputs:
                self._model_ids[operation.run] = found.outputs.model_outputs[-1].model_id
            return
        created = client.create_run(
            self.experiment_id,
            start_time=operation.time_ms,
            tags=dict(operation.tags),
            run_name=operation.run,
        )
        self.run_ids[operation.run] = created.info.run_id
        self.groups[operation.run] = operation.tags.get("kd.group", "")
        if operation.find:
            client.set_terminated(created.info.run_id, "FINISHED", end_time=operation.time_ms)

    def _find_run(self, client: "MlflowClient", tags: Any) -> "Run | None":
        names = ("kd.role", "kd.replicate", "kd.checkpoint")
        wanted = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in names)
        newest_first = client.search_runs(
            [self.experiment_id], wanted, max_results=100, order_by=["attributes.start_time DESC"]
        )
        own = [run for run in newest_first if run.data.tags.get("kd.group") == tags["kd.group"]]
        return next(iter(own or newest_first), None)

    def _log_params(self, client: "MlflowClient", run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(entities), _MAX_PARAMS):
            client.log_batch(run_id, params=entities[start : start + _MAX_PARAMS])

    def _set_tags(self, client: "MlflowClient", run_id: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _log_metrics(self, client: "MlflowClient", run: str, points: Sequence[Point]) -> None:
        run_id = self.run_ids[run]
        metrics = [_metric(point, run_id, self._model_ids.get(run)) for point in points]
        for start in range(0, len(metrics), _MAX_POINTS):
            client.log_batch(run_id, metrics=metrics[start : start + _MAX_POINTS])

    def _log_model(self, operation: LogModel) -> None:
        if operation.run in self._model_ids:
            return
        # It brings torch, which a sender of mere numbers does without.
        from kd_pipeline.tracking.models import log_model

        model_id = log_model(
            operation.checkpoint,
            uri=self.store.uri,
            experiment_id=self.experiment_id,
            run_id=self.run_ids[operation.run],
        )
        if model_id is not None:
            self._model_ids[operation.run] = model_id

    def _close_dead_runs(self, client: "MlflowClient") -> None:
        wanted = f"attributes.status = 'RUNNING' and tags.`kd.host` = '{socket.gethostname()}'"
        for run in client.search_runs([self.experiment_id], wanted, max_results=1000):
            pid = int(run.data.tags.get("kd.pid", "0"))
            # Called before this process opens runs: those of its own number are older.
            if pid == os.getpid() or not is_alive(pid):
                client.set_tag(run.info.run_id, "kd.error", "the process was killed")
                client.set_terminated(run.info.run_id, "KILLED")


def _find_experiment(client: "MlflowClient", store: Store) -> str:
    experiment = client.get_experiment_by_name(store.experiment)
    if experiment is None:
        created: str = client.create_experiment(store.experiment, store.artifacts)
        return created
    found: str = experiment.experiment_id
    return found


def _metric(point: Point, run_id: str, model_id: str | None) -> "Metric":
    from mlflow.entities import Metric

    # A model's page shows what was measured of that model itself, not of its training.
    model = model_id if point.name.startswith("test/") else None
    return Metric(point.name, point.value, point.time_ms, point.step, model_id=model, run_id=run_id)


def _dataset_input(facts: DatasetFacts) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=facts.name,
        digest=facts.digest[:_MAX_DIGEST],
        source_type="code",
        source=json.dumps({"tags": {"catalog_entry": facts.catalog_entry}}),
        profile=json.dumps(dict(facts.profile)),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", facts.context)])


def _log_artifact(client: "MlflowClient", run_id: str, path: Path, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, path.name)
        file.write_bytes(content)
        parent = path.parent.as_posix()
        client.log_artifact(run_id, str(file), None if parent == "." else parent)


def is_alive(pid: int) -> bool:
    """Whether a process of this number lives on this machine."""
    if os.name == "nt":
        return True  # Signal 0 would end the process there.
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
